"""`fit` that survives interruptions, and reuses a training run only if it is the same run.

Keras's own callbacks do not suffice: `BackupAndRestore` restores neither seed generators nor the
order of the data, `EarlyStopping` forgets its best weights, and `ModelCheckpoint` is not atomic.
A checkpoint holds variables in their order, as Keras counts their names up within a process.
"""

import contextlib
import ctypes
import json
import math
import platform
import time
import warnings
from pathlib import Path

import keras

from core import checkpoints, devices, fingerprint
from core.files import atomic_write
from core.progress import EpochLine

EARLY_STOPPING_STATE = ("wait", "stopped_epoch", "best")
LOST_WORKER = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
WITHOUT_EFFECT = ("verbose", "validation_batch_size")  # arguments of Keras's fit


class WorkerLostError(RuntimeError):
    """Another worker of a training run on several machines is gone."""


class DivergedError(RuntimeError):
    """A loss that is not a finite number; the message names the epoch, the step and every loss."""


def fit(model: keras.Model, batches: keras.utils.PyDataset, *, epochs: int, folder: Path,
        callbacks=(), resume: bool = True, checkpoint_seconds: float = 10.0,
        **arguments) -> dict:  # fmt: skip
    """Train a compiled model like Keras's `fit`, continuing where an interrupted call stopped.

    `folder` gets a subfolder per training run, named after its fingerprint, with checkpoints of
    epochs at least `checkpoint_seconds` apart. A run that changed is trained from the start;
    `resume=False` always does that. `callbacks` may hold one `EarlyStopping`, after those whose
    logs it watches. Those with a true attribute `only_watches` do not count; they receive `folder`,
    and `history` of the earlier epochs.

    Returns the run for its record: `history` (a list per metric), `seconds`, `steps` and so on; its
    `recipe` is the same for other seeds and images. Raises `CheckpointError`, `DivergedError`,
    `WorkerLostError`.
    """
    folder, strategy = Path(folder), devices.strategy()
    checkpoints.claim(folder)
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    important = {name: arguments[name] for name in arguments if name not in WITHOUT_EFFECT}
    replicas = strategy.num_replicas_in_sync
    defined = fingerprint.of_training_run(model, batches, epochs, callbacks, replicas, **important)
    saver = _Saver(batches, _own_folder(folder, defined), epochs, callbacks, checkpoint_seconds)
    saver.find_checkpoint(folder.name, resume and "unreadable" not in defined)
    with _explained_errors(folder):
        _train(model, batches, saver, callbacks, arguments)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # float16 wraps it
    return {
        "history": saver.state["history"], "seconds": saver.state["seconds"],
        "steps": saver.state["epoch"] * len(batches), "epochs_run": saver.state["epoch"],
        "epochs": epochs, "trained_on": len(batches.images), "batch_size": batches.batch_size,
        "seed": batches.seed, "optimizer": type(optimizer).__name__.lower(),
        "precision": defined["precision"], "replicas": replicas,
        "fingerprint": fingerprint.key(defined), "recipe": fingerprint.recipe(defined),
    }  # fmt: skip


def _train(model, batches, saver, callbacks, arguments):
    """Train until the last epoch is done, and give the model the weights that count."""
    if not saver.state.get("finished"):
        watchers = [ReuseMemory()]
        if not keras.config.is_interactive_logging_enabled() and "verbose" not in arguments:
            arguments = arguments | {"verbose": 0}
            watchers.append(EpochLine(saver.epochs, saver.folder.parent.name))
        first = saver.epochs if saver.state.get("stopped") else saver.state.get("epoch", 0)
        model.fit(batches, initial_epoch=first, epochs=saver.epochs, shuffle=False,
                  callbacks=[*watchers, *callbacks, saver], **arguments)  # fmt: skip
    saver.restore(model)


def _own_folder(folder, defined):
    """Return the folder of a training run; if it is new and others exist, say what differs."""
    paths = sorted(folder.glob("*/fingerprint.json"), key=lambda path: path.stat().st_mtime)
    previous = {}
    for path in paths:  # the newest readable one
        with contextlib.suppress(ValueError):  # damaged
            previous = json.loads(path.read_text(encoding="utf-8"))
    own, words = folder / fingerprint.key(defined), fingerprint.difference(defined, previous)
    if "unreadable" in defined:
        own = folder / "unreadable"
        print(f"{folder.name}: this run cannot be reused later, as part is unreadable: {words}")
    elif previous and not own.exists():
        print(f"{folder.name}: trained from the start, because the run changed: {words}")
    if devices.is_chief():
        own.mkdir(parents=True, exist_ok=True)
        try:  # at every call, so that the newest file belongs to the run that was used last
            with atomic_write(own / "fingerprint.json") as file:
                file.write(json.dumps(defined, indent=1).encode())
        except OSError as error:
            warnings.warn(f"the fingerprint was not written: {error}", stacklevel=3)
    return own


@contextlib.contextmanager
def _explained_errors(folder):
    """Turn the stop button and the loss of a worker into errors that say what to do next."""
    try:
        yield
    except KeyboardInterrupt:  # without pages of the Keras code in which it struck
        words = "was stopped. Run it again, and it continues from the newest checkpoint."
        raise KeyboardInterrupt(f"The training run {words}") from None
    except Exception as error:
        if not (devices.is_multi_worker() and type(error).__name__ in LOST_WORKER):
            raise
        words = f"Another worker was lost while training {folder}. Start all workers again"
        raise WorkerLostError(f"{words}: the run continues from the newest checkpoint.") from error


class _Saver(keras.callbacks.Callback):
    """Writes and restores checkpoints; last in the list, so it sees what early stopping decided."""

    def __init__(self, batches, folder, epochs, callbacks, checkpoint_seconds):
        super().__init__()
        self.batches, self.folder, self.epochs = batches, folder, epochs
        self.checkpoint_seconds, self.state = checkpoint_seconds, {}
        self.watchers = [each for each in callbacks if getattr(each, "only_watches", False)]
        stopping = [each for each in callbacks if isinstance(each, keras.callbacks.EarlyStopping)]
        self.early_stopping = stopping[0] if stopping else None

    def find_checkpoint(self, name, resume):
        """Read the newest undamaged checkpoint and say how far it is, or clear the folder."""
        self.state = (resume and checkpoints.newest(self.folder)) or {}
        if self.state:
            found, done = self.state["seconds"], f"{self.state['epoch']} epochs are done"
            done = "finished" if self.state["finished"] else done
            print(f"{name}: found {found:.0f} s of this training run, {done}")
        else:
            checkpoints.remove(self.folder, keep=0)
        for watcher in self.watchers:
            watcher.folder, watcher.history = self.folder, dict(self.state.get("history", {}))

    def save(self, epoch, finished=False):
        """Keep the whole state in `self.state`, as NumPy arrays and plain values, and write it."""
        stopping, now = self.early_stopping, time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        groups = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        to_numpy = keras.ops.convert_to_numpy
        arrays = {group: [to_numpy(each).copy() for each in groups[group]] for group in groups}
        arrays["best"] = list(stopping.best_weights or []) if stopping else []
        self.state = {
            "epoch": epoch, "finished": finished, "stopped": self.model.stop_training,
            "seconds": self.seconds, "history": self.history, "arrays": arrays,
            "stopping": {key: getattr(stopping, key) for key in EARLY_STOPPING_STATE if stopping},
        }  # fmt: skip
        checkpoints.write(self.folder, self.state)
        self.saved = time.perf_counter()

    def restore(self, model):
        groups = {"model": model.variables, "optimizer": model.optimizer.variables}
        for group, variables in groups.items():
            for variable, value in zip(variables, self.state["arrays"][group], strict=True):
                variable.assign(value)

    def on_train_begin(self, logs=None):
        self.clock = self.saved = time.perf_counter()
        self.seconds, self.history = self.state.get("seconds", 0.0), self.state.get("history", {})
        if self.state:
            self.restore(self.model)
            for key, value in self.state["stopping"].items():
                setattr(self.early_stopping, key, value)
            if self.state["arrays"]["best"]:
                self.early_stopping.best_weights = self.state["arrays"]["best"]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.batches.epoch = epoch + 1  # Keras has advanced it before the first epoch

    def on_train_batch_end(self, batch, logs=None):
        losses = {name: float(value) for name, value in (logs or {}).items()}
        if not all(math.isfinite(value) for value in losses.values()):
            where = f"epoch {self.epoch + 1}, step {batch + 1}"
            raise DivergedError(f"{where}: {losses}. The newest checkpoint is from before that.")

    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            self.history = self.history | {name: [*self.history.get(name, []), float(value)]}
        last = epoch + 1 == self.epochs or self.model.stop_training
        if last or time.perf_counter() - self.saved >= self.checkpoint_seconds:
            self.save(epoch + 1)

    def on_train_end(self, logs=None):  # by now early stopping has put the best weights back
        self.save(self.state["epoch"], finished=True)


class ReuseMemory(keras.callbacks.Callback):
    """Lets a step reuse the memory that the step before has freed: up to 1.2 times faster on Linux.

    Against a leak of Python 3.11, TensorFlow has glibc map every array of 128 KB and more anew, at
    a page fault per page (`ApplyPython311MemoryPatch` in its source). This reverts that setting.
    """

    only_watches = True

    def on_train_batch_end(self, batch, logs=None):
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if batch == 0 and on_tensorflow and platform.libc_ver()[0] == "glibc":
            mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # malloc.h
            mallopt(mmap_threshold, 2**30)
            mallopt(trim_threshold, 2**31 - 1)
