"""Checkpoints on disk: locked by one process, written atomically, and checked for damage."""

import errno
import json
import warnings
from pathlib import Path

import filelock
import numpy as np

from core import devices
from core.files import atomic_write

CHECKPOINTS_KEPT = 2  # if the newest is damaged, the one before it is used
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_locks = {}


class CheckpointError(RuntimeError):
    """Raised when a checkpoint folder cannot be used; the message names it and says why."""


def claim(folder: Path) -> None:
    """Lock `folder` for this process until it ends or calls `release`.

    Workers other than the first do nothing. Raises `CheckpointError` if another process holds the
    lock, or if the folder cannot be written to. If the file system has no locks, this only warns.
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
        advice = "Wait for it to finish, or shut down its kernel."
        message = f"{folder} is in use by another run of this notebook. {advice}"
        raise CheckpointError(message) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            advice = "Check its permissions and the free space on its disk."
            message = f"The folder {folder} cannot be written to ({error}). {advice}"
            raise CheckpointError(message) from error
        message = "The file system has no locks, so a second run of this notebook goes undetected."
        warnings.warn(f"{message} Do not start one in {folder}.", stacklevel=2)


def release(folder: Path) -> None:
    """Release the locks that `claim` took on `folder` and on the folders in it."""
    for path in [path for path in _locks if path.is_relative_to(Path(folder).resolve())]:
        _locks.pop(path).release()


def write(folder: Path, state: dict) -> None:
    """Write `state` to `folder`/<epoch>.npz and remove older checkpoints.

    `state` has an "epoch" and, under "arrays", lists of arrays by group; all else can become JSON.

    If the file cannot be written, for example because the disk is full, this only warns.
    """
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
        message = f"Could not write the checkpoint {path}: {error}. Training continues without it."
        warnings.warn(message, stacklevel=2)


def read(path: Path) -> dict:
    """Return the state in a checkpoint file. Raises some exception if the file is damaged."""
    with np.load(path, allow_pickle=False) as file:
        state = json.loads(file["state"].tobytes())
        state["arrays"] = {"model": [], "optimizer": [], "best": []}
        for key in file.files:
            if key != "state":
                state["arrays"][key.partition("/")[0]].append(file[key])
    return state


def newest(folder: Path) -> dict | None:
    """Return the state in the newest intact checkpoint of a folder, or None if there is none."""
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            return read(path)
        except Exception as error:  # a damaged archive can raise anything
            reason = f"{type(error).__name__}: {error}"
            message = f"The checkpoint {path} is damaged ({reason}) and is ignored"
            warnings.warn(message, stacklevel=4)
    return None


def remove(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and partial files that killed runs left."""
    if devices.is_chief():
        old = sorted(folder.glob("*.npz"), reverse=True)[keep:]
        for path in (*old, *folder.glob("*.partial")):
            path.unlink(missing_ok=True)
