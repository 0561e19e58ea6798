"""Atomic file writing, and digests of contents."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the `with` block ends without an error.

    After an error, `path` is as before and no partial file remains. Raises `OSError` if the disk is
    full or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace(source: Path, target: Path, patience: float = 5.0) -> None:
    """Rename a file or folder, replacing a file at `target`.

    On Windows, this fails while an indexer or a virus scanner has it open, so it is tried again for
    `patience` seconds. Raises `OSError` if it still fails.
    """
    end = time.monotonic() + patience
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def array_digest(*arrays: np.ndarray) -> str:
    """Return the sha256 of the shapes, dtypes and contents of the arrays, in the order given."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(repr((array.shape, array.dtype.str)).encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def short_digest(value: Any) -> str:
    """Return the first sixteen hexadecimal digits of the sha256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
