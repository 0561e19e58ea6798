"""Checkpoints on disk: one process writes them, whole or not at all, and damage is found."""

import errno
import json
import warnings
from pathlib import Path

import filelock
import numpy as np

from core import devices
from core.files import atomic_write

CHECKPOINTS_KEPT = 2  # so that a damaged one has a predecessor
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_locks = {}


class CheckpointError(RuntimeError):
    """A folder of checkpoints that must not be used; the message says which one and why."""


def claim(folder: Path) -> None:
    """Take `folder` for this process, the first of its workers, until it ends or calls `release`.

    Raises `CheckpointError` if another process has it, or if it cannot be written.
    """
    if not devices.is_chief():
        return
    folder = Path(folder).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locks.setdefault(folder, filelock.FileLock(folder / "lock"))
        if not lock.is_locked:
            lock.acquire(blocking=False)
    except filelock.Timeout as error:
        words = "is in use by another run of this notebook. Wait for it, or shut its kernel down."
        raise CheckpointError(f"{folder} {words}") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise CheckpointError(f"{folder} cannot be written: {error}") from error
        words = "This file system has no locks, so a second run of this notebook is not noticed"
        warnings.warn(f"{folder}: {words}.", stacklevel=2)


def release(folder: Path) -> None:
    """Give back a folder taken by `claim`, and the folders within it."""
    for path in [path for path in _locks if path.is_relative_to(Path(folder).resolve())]:
        _locks.pop(path).release()


def write(folder: Path, state: dict) -> None:
    """Write the state of a run after an epoch. A full disk costs the checkpoint, not the run."""
    if not devices.is_chief():
        return
    path = folder / f"{state['epoch']:05d}.npz"
    groups = state["arrays"].items()
    arrays = {f"{group}/{i}": value for group, values in groups for i, value in enumerate(values)}
    rest = json.dumps({key: value for key, value in state.items() if key != "arrays"})
    try:
        with atomic_write(path) as file:
            np.savez(file, state=np.frombuffer(rest.encode(), np.uint8), **arrays)
        remove(folder, CHECKPOINTS_KEPT)
    except OSError as error:
        words = f"No checkpoint was written to {path}: {error}. The training run goes on."
        warnings.warn(words, stacklevel=2)


def read(path: Path) -> dict:
    """Return the state in a checkpoint. Any damage raises, as every array has a checksum."""
    with np.load(path, allow_pickle=False) as file:
        state = json.loads(file["state"].tobytes())
        state["arrays"] = {"model": [], "optimizer": [], "best": []}
        for key in file.files:
            if key != "state":
                state["arrays"][key.partition("/")[0]].append(file[key])
    return state


def newest(folder: Path) -> dict | None:
    """Return the state in the newest undamaged checkpoint of a folder, or None."""
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            return read(path)
        except Exception as error:  # a damaged archive can raise anything
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{path} is damaged ({reason}); the one before it is used", stacklevel=4)
    return None


def remove(folder: Path, keep: int) -> None:
    """Remove all checkpoints of a folder but the newest `keep`, and what a killed run left."""
    if devices.is_chief():
        old = sorted(folder.glob("*.npz"), reverse=True)[keep:]
        for path in (*old, *folder.glob("*.partial")):
            path.unlink(missing_ok=True)
