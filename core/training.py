"""A `fit` that survives interruptions, and resumes a run only if nothing about it has changed.

Keras's own callbacks do not suffice: `BackupAndRestore` restores neither seed generators nor the
order of the data, `EarlyStopping` forgets its best weights, and `ModelCheckpoint` is not atomic.
A checkpoint identifies variables by position, because their names in Keras depend on what else the
process has created.
"""

import contextlib
import ctypes
import json
import math
import platform
import time
from pathlib import Path

import keras

import core
from core import checkpoints, devices, fingerprint
from core.files import atomic_write

EARLY_STOPPING_STATE = ("wait", "stopped_epoch", "best", "best_epoch")
LOST_WORKER = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
CONTINUE = "to continue from the newest checkpoint."
WITHOUT_EFFECT = ("verbose", "validation_batch_size")  # arguments of `fit` that change no weights


class WorkerLostError(RuntimeError):
    """Raised when another worker of a training run on several machines has been lost."""


class DivergedError(RuntimeError):
    """Raised when a loss or metric of a batch is not finite; the message gives step and values."""


def fit(model: keras.Model, batches: keras.utils.PyDataset, *, epochs: int, folder: Path,
        callbacks=(), resume: bool = True, checkpoint_seconds: float = 10.0,
        **arguments) -> dict:  # fmt: skip
    """Train a compiled model like Keras's `fit`, continuing where an interrupted call stopped.

    Each training run has a subfolder of `folder`, named after its fingerprint. Checkpoints are
    written at the end of an epoch, at least `checkpoint_seconds` apart, and after the last one. A
    run whose definition has changed starts from scratch, as does any run with `resume=False`.
    `callbacks` may hold one `EarlyStopping`, after the callbacks that log what it monitors.
    Callbacks whose attribute `only_watches` is true are left out of the fingerprint; their
    attributes `folder` and `history` (of earlier epochs) are set before training.

    `arguments` go to Keras's `fit`. Returns what a record needs to describe the run: `history` (one
    list per metric), `seconds`, `steps`, `epochs_run`, the precision, the seed and so on. `recipe`
    identifies the settings of a run apart from its seed, images and number of steps. Raises
    `CheckpointError` if the folder is in use or cannot be written to, `DivergedError` if the loss
    or a metric of a batch is not finite, and `WorkerLostError` if another worker is lost.
    """
    folder, strategy = Path(folder), devices.strategy()
    checkpoints.claim(folder)
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    important = {name: arguments[name] for name in arguments if name not in WITHOUT_EFFECT}
    replicas = strategy.num_replicas_in_sync
    defined = fingerprint.of_training_run(model, batches, epochs, callbacks, replicas, **important)
    saver = _Saver(batches, _own_folder(folder, defined), epochs, callbacks, checkpoint_seconds)
    resume = resume and "unreadable" not in defined
    saver.find_checkpoint(folder.name, resume)
    _train(model, batches, saver, callbacks, resume, arguments)
    # In mixed_float16, Keras wraps the optimiser.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {
        "history": saver.state["history"], "seconds": saver.state["seconds"],
        "steps": saver.state["epoch"] * len(batches), "epochs_run": saver.state["epoch"],
        "epochs": epochs, "trained_on": len(batches.images), "batch_size": batches.batch_size,
        "seed": batches.seed, "optimizer": type(optimizer).__name__.lower(),
        "precision": defined["precision"], "replicas": replicas,
        "fingerprint": fingerprint.key(defined), "recipe": fingerprint.recipe(defined),
    }  # fmt: skip


def _train(model, batches, saver, callbacks, resume, arguments):
    """Train the remaining epochs, if any, and load the final weights into the model."""
    if not saver.state.get("finished"):
        if core.HEADLESS:  # one line per epoch instead of a progress bar
            length = "1 epoch" if saver.epochs == 1 else f"{saver.epochs} epochs"
            print(f"{saver.folder.parent.name}: training for {length}", flush=True)
            arguments = {"verbose": 2} | arguments
        first = saver.epochs if saver.state.get("stopped") else saver.state.get("epoch", 0)
        try:
            model.fit(batches, initial_epoch=first, epochs=saver.epochs, shuffle=False,
                      callbacks=[ReuseMemory(), *callbacks, saver], **arguments)  # fmt: skip
        except KeyboardInterrupt:  # hide the long traceback through Keras
            again = CONTINUE if resume else "to train from the start."
            words = f"Training was interrupted. Run this cell again {again}"
            raise KeyboardInterrupt(words) from None
        except Exception as error:
            if not (devices.is_multi_worker() and type(error).__name__ in LOST_WORKER):
                raise
            words = f"A worker was lost (checkpoints: {saver.folder}). Start all workers again"
            raise WorkerLostError(f"{words} {CONTINUE}") from error
    saver.restore(model)


def _own_folder(folder, defined):
    """Return a training run's folder; if it is new, print how it differs from the latest one."""
    paths = sorted(folder.glob("*/fingerprint.json"), key=lambda path: path.stat().st_mtime)
    previous = {}
    for path in paths:  # the newest readable one
        with contextlib.suppress(ValueError):  # skip damaged files
            previous = json.loads(path.read_text(encoding="utf-8"))
    own, words = folder / fingerprint.key(defined), fingerprint.difference(defined, previous)
    if "unreadable" in defined:
        own = folder / "unreadable"
        print(f"{folder.name}: if this run is interrupted, it cannot be resumed, because its "
              f"fingerprint cannot include everything: {words}")  # fmt: skip
    elif previous and not own.exists():
        print(f"{folder.name}: training from the start, because the run has changed: {words}")
    if devices.is_chief():
        own.mkdir(parents=True, exist_ok=True)
        # Written at every call, because the newest file marks the run that was used last. If the
        # disk is full, writing the first checkpoint will give a warning.
        with contextlib.suppress(OSError), atomic_write(own / "fingerprint.json") as file:
            file.write(json.dumps(defined, indent=1).encode())
    return own


class _Saver(keras.callbacks.Callback):
    """Writes and restores checkpoints; comes last, to see what early stopping has decided."""

    def __init__(self, batches, folder, epochs, callbacks, checkpoint_seconds):
        super().__init__()
        self.batches, self.folder, self.epochs = batches, folder, epochs
        self.checkpoint_seconds, self.state = checkpoint_seconds, {}
        self.watchers = [item for item in callbacks if getattr(item, "only_watches", False)]
        stopping = [item for item in callbacks if isinstance(item, keras.callbacks.EarlyStopping)]
        self.early_stopping = stopping[0] if stopping else None

    def find_checkpoint(self, name, resume):
        """Load the newest intact checkpoint and print its progress, or remove all checkpoints."""
        self.state = (resume and checkpoints.newest(self.folder)) or {}
        if self.state:
            finished, epoch = self.state["finished"], self.state["epoch"]
            seconds = f"{self.state['seconds']:.0f} s of training"
            if finished:
                print(f"{name}: this run has finished ({seconds}); its weights are loaded")
            else:
                print(f"{name}: this run continues after epoch {epoch} ({seconds} so far)")
        else:
            checkpoints.remove(self.folder, keep=0)
        for watcher in self.watchers:
            watcher.folder, watcher.history = self.folder, dict(self.state.get("history", {}))

    def save(self, epoch, finished=False):
        """Copy the whole training state to `self.state` and write it to disk."""
        stopping, now = self.early_stopping, time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        groups = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        to_numpy = keras.ops.convert_to_numpy
        arrays = {
            group: [to_numpy(variable).copy() for variable in variables]
            for group, variables in groups.items()
        }
        arrays["best"] = list(stopping.best_weights or []) if stopping else []
        self.state = {
            "epoch": epoch, "finished": finished, "stopped": self.model.stop_training,
            "seconds": self.seconds, "history": self.history, "arrays": arrays,
            "stopping": {key: getattr(stopping, key) for key in EARLY_STOPPING_STATE if stopping},
        }  # fmt: skip
        checkpoints.write(self.folder, self.state)

    def restore(self, model):
        groups = {"model": model.variables, "optimizer": model.optimizer.variables}
        for group, variables in groups.items():
            for variable, value in zip(variables, self.state["arrays"][group], strict=True):
                variable.assign(value)

    def on_train_begin(self, logs=None):
        self.clock = time.perf_counter()
        self.seconds, self.history = self.state.get("seconds", 0.0), self.state.get("history", {})
        if self.state:
            self.restore(self.model)
            for key, value in self.state["stopping"].items():
                setattr(self.early_stopping, key, value)
            if self.state["arrays"]["best"]:
                self.early_stopping.best_weights = self.state["arrays"]["best"]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.batches.epoch = epoch + 1  # Keras advances it once before the first epoch

    def on_train_batch_end(self, batch, logs=None):
        losses = {name: float(value) for name, value in (logs or {}).items()}
        if not all(math.isfinite(value) for value in losses.values()):
            place = f"step {batch + 1} of epoch {self.epoch + 1}"
            raise DivergedError(
                f"Training has diverged: a loss is not finite at {place}: {losses}. "
                "Lower the learning rate and train again."
            )

    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            self.history = self.history | {name: [*self.history.get(name, []), float(value)]}
        last = epoch + 1 == self.epochs or self.model.stop_training
        if last or time.perf_counter() - self.clock >= self.checkpoint_seconds:
            self.save(epoch + 1)

    def on_train_end(self, logs=None):  # early stopping has restored the best weights by now
        self.save(self.state["epoch"], finished=True)


class ReuseMemory(keras.callbacks.Callback):
    """Lets a step reuse memory that the previous step freed: up to 1.2 times as fast on Linux.

    To work around a memory leak in Python 3.11, TensorFlow makes glibc map every array of 128 KB or
    more afresh, which costs one page fault per page (`ApplyPython311MemoryPatch` in its source).
    This callback overrides that setting.
    """

    only_watches = True

    def on_train_batch_end(self, batch, logs=None):
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if batch == 0 and on_tensorflow and platform.libc_ver()[0] == "glibc":
            mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # malloc.h
            if not mallopt(mmap_threshold, 2**30):
                mallopt(mmap_threshold, 2**25)  # the most that older versions of glibc accept
            mallopt(trim_threshold, 2**31 - 1)
