"""`fit` that survives interruptions, and reuses a training run only if it is the same run.

Keras's own callbacks do not suffice: `BackupAndRestore` restores neither seed generators nor the
order of the data, `EarlyStopping` forgets its best weights, and `ModelCheckpoint` is not atomic.
`Model.get_state_tree` names variables by layer, and Keras counts those names up within a process,
so a checkpoint holds the variables in their order instead.
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

    `folder` receives a subfolder for each training run, named after its fingerprint, with a
    checkpoint at the end of an epoch, unless the last one is less than `checkpoint_seconds` old.
    A run that changed is trained from the start; `resume=False` always does that. `callbacks` may
    hold one `EarlyStopping`, after those whose logs it watches. Callbacks with a true attribute
    `only_watches` do not count; they receive `folder`, and `history` of the earlier epochs.

    Returns `history` (a list per metric, one value per epoch), `seconds`, `steps`, `epochs_run`
    and what the run was given, for its record. Its `fingerprint` identifies it; its `recipe` is the
    same for other seeds and images. Raises `CheckpointError`, `DivergedError`, `WorkerLostError`.
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
        "steps": saver.epochs_done * len(batches), "epochs_run": saver.epochs_done,
        "epochs": epochs, "trained_on": len(batches.images), "batch_size": batches.batch_size,
        "seed": batches.seed, "optimizer": type(optimizer).__name__.lower(),
        "precision": defined["precision"], "replicas": replicas,
        "fingerprint": fingerprint.key(defined), "recipe": fingerprint.recipe(defined),
    }  # fmt: skip


def _train(model, batches, saver, callbacks, arguments):
    """Train until the last epoch is done, and give the model the weights that count."""
    if not saver.finished:
        watchers = [ReuseMemory()]
        if not keras.config.is_interactive_logging_enabled() and "verbose" not in arguments:
            arguments = arguments | {"verbose": 0}
            watchers.append(EpochLine(saver.epochs, saver.folder.parent.name))
        stopped_early = saver.state is not None and saver.state["stopped"]
        first = saver.epochs if stopped_early else saver.epochs_done
        everything = [*watchers, *callbacks, saver]
        model.fit(batches, initial_epoch=first, epochs=saver.epochs, callbacks=everything,
                  shuffle=False, **arguments)  # fmt: skip
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
        words = "The training run was stopped. Run it again, and it continues from the newest"
        raise KeyboardInterrupt(f"{words} checkpoint.") from None
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
        self.checkpoint_seconds, self.state = checkpoint_seconds, None
        self.watchers = [each for each in callbacks if getattr(each, "only_watches", False)]
        stopping = [each for each in callbacks if isinstance(each, keras.callbacks.EarlyStopping)]
        self.early_stopping = stopping[0] if stopping else None

    @property
    def epochs_done(self):
        return self.state["epoch"] if self.state else 0

    @property
    def finished(self):
        return bool(self.state and self.state["finished"])

    def find_checkpoint(self, name, resume):
        """Read the newest undamaged checkpoint and say how far it is, or clear the folder."""
        self.state = checkpoints.newest(self.folder) if resume else None
        if self.state is None:
            checkpoints.remove(self.folder, keep=0)
        else:
            done = "finished" if self.finished else f"{self.epochs_done} epochs are done"
            print(f"{name}: found {self.state['seconds']:.0f} s of this training run, {done}")
        for watcher in self.watchers:
            watcher.folder = self.folder
            watcher.history = dict(self.state["history"]) if self.state else {}

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
        self.seconds, self.history = 0.0, {}
        if self.state:
            self.seconds, self.history = self.state["seconds"], self.state["history"]
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

    TensorFlow feeds `fit` from a generator, and then has glibc map every array of 128 KB and more
    anew, against a leak of Python 3.11 (`ApplyPython311MemoryPatch` in its source). Each page then
    costs a page fault. This callback reverts that setting.
    """

    only_watches = True

    def on_train_batch_end(self, batch, logs=None):
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if batch == 0 and on_tensorflow and platform.libc_ver()[0] == "glibc":
            mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # malloc.h
            mallopt(mmap_threshold, 2**30)
            mallopt(trim_threshold, 2**31 - 1)
