"""`fit` that survives interruptions, and takes up a training again only if all that defines it is the same."""

import contextlib
import json
import math
import os
import time
import warnings
from pathlib import Path

import filelock
import keras
import numpy as np
from tqdm.keras import TqdmCallback

from core import definition, devices, fast, parameters

KEPT = 2  # newest checkpoints, so that a torn one has a predecessor
EARLY_STOPPING = ("wait", "stopped_epoch", "best", "best_epoch")
_locks = {}


class CheckpointError(RuntimeError):
    """A checkpoint or a folder that must not be used; the message says which and why."""


class WorkerLostError(RuntimeError):
    """Another worker of a training on several machines is gone."""


class DivergedError(RuntimeError):
    """A loss that is not a finite number; the message names epoch, step and every loss."""


def fit(model, batches, *, epochs, folder, resume=True, minutes=5, early_stopping=None, callbacks=(), **arguments):
    """Train a compiled model like `model.fit`, taking up where an interrupted call left off.

    Every epoch, and every `minutes` within one, a folder receives weights, optimiser, seed generators, metrics, history and
    the state of `early_stopping` (a Keras callback; it may watch what `callbacks` log); the last two checkpoints are kept.
    If writing one takes more than a twentieth of an epoch, some epochs have none. The next call goes on from the newest undamaged
    one. On a CPU the result has the same bits as that of an uninterrupted call. A finished training is not repeated.

    Each training has a folder of its own within `folder`, named after all that defines it (core/definition.py): model,
    optimiser, loss, batches, data, seed, epochs, callbacks and their code. If any of it is changed, the call says what, and
    trains anew; if it is changed back, the old training is found again. `resume=False` trains anew whatever is there.
    Each callback gets that folder as its attribute `folder`, and the history of the epochs before as `history`. One with
    `only_watches = True` is no part of the definition.

    On several machines, which share the folder, the chief writes checkpoints, and only at the end of an epoch.

    Returns a dictionary: `history` (a list an epoch for each metric), `seconds` and `steps` of the whole training, its
    `definition`, its `recipe`, which is the same for another seed and other images (eight hexadecimal digits each), how many
    images it was `trained_on`, and the notebook's parameters that it was `trained_with`.

    Raises `CheckpointError` where another run uses the folder, `DivergedError` at a loss that is not finite (the checkpoints
    before it stay), and `WorkerLostError`.
    """
    trained_with = parameters.now()
    claim(folder)
    defined = _define(model, batches, epochs, early_stopping, callbacks, arguments)
    saver = _Saver(batches, _own_folder(Path(folder), defined), epochs, early_stopping, minutes)
    _take_up(saver, Path(folder).name, resume)
    for callback in callbacks:
        callback.folder, callback.history = saver.folder, dict(saver.state["history"]) if saver.state else {}
    stopping = [early_stopping] if early_stopping else []  # it may watch what the callbacks log
    watchers = [] if "verbose" in arguments or saver.finished else [_progress(epochs, Path(folder).name)]
    with _saying_what_to_do(folder):
        _train(model, batches, saver, [fast.KeepMemory(), *callbacks, *stopping, *watchers, saver], arguments)
    what = {"definition": definition.key(defined), "recipe": definition.recipe(defined)}
    what |= {"trained_on": len(batches.images)} if hasattr(batches, "images") else {}
    what |= {"trained_with": trained_with} if trained_with else {}
    return {key: saver.state[key] for key in ("history", "seconds", "steps")} | what


def _take_up(saver, name, resume):
    """Give the saver the state of the newest undamaged checkpoint, and say where it stands; without one, clear its folder."""
    saver.state = _newest(saver.folder) if resume else None
    if saver.state is None:
        return _remove(saver.folder, keep=0)
    epoch, step = saver.position
    done = "finished" if saver.finished else f"{epoch} epochs{f' and {step} steps' * bool(step)} are done"
    print(f"{saver.state['seconds']:.0f} s of training found in {name}: {done}")


def _train(model, batches, saver, callbacks, arguments):
    """Call `model.fit` until the saver has seen the last epoch, and give the model the weights that count."""
    arguments = {"verbose": 0} | arguments
    while not saver.finished:
        epoch, start = saver.position
        epoch = saver.epochs if saver.state and saver.state["stopped"] else epoch
        batches.start = start
        last = epoch + 1 if start else saver.epochs  # what is left of an epoch is a call of its own: it has fewer steps
        if start:
            model.test_on_batch(*batches[0])  # makes the metrics' variables, so that they can be restored
        model.fit(batches, initial_epoch=epoch, epochs=last, callbacks=callbacks, shuffle=False, **arguments)
    saver.restore(model)


def _define(model, batches, epochs, early_stopping, callbacks, arguments):
    strategy = devices.strategy()
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)  # one of several optimisers knows its parts only then
    replicas = strategy.num_replicas_in_sync
    return definition.of_training(model, batches, epochs, early_stopping, callbacks, replicas, **arguments)


def _own_folder(folder, defined):
    """Return the folder of the training so defined; where it is new but others were here, say what differs from the last."""
    own = folder / definition.key(defined)
    path = own / "definition.json"
    if not path.exists() and (before := _last_definition(folder)):
        print(f"{folder.name}: trained anew, because its definition changed: {definition.difference(defined, before)}")
    if devices.is_chief():
        own.mkdir(parents=True, exist_ok=True)
        try:
            path.write_text(json.dumps(defined, indent=1), encoding="utf-8")  # each time: the newest is the last one used
        except OSError as error:
            warnings.warn(f"{path} not written: {error}", stacklevel=3)
    return own


def _last_definition(folder):
    for path in sorted(folder.glob("*/definition.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(ValueError):  # torn by a full disk or a kill
            return json.loads(path.read_text(encoding="utf-8"))
    return None


@contextlib.contextmanager
def _saying_what_to_do(folder):
    """Turn what the stop button ends in, and the loss of a worker (after some ten seconds), into errors that say what to do."""
    try:
        yield
    except KeyboardInterrupt:  # without the pages of Keras's own lines in which it struck
        raise KeyboardInterrupt("training stopped. Run it again, and it goes on from the newest checkpoint.") from None
    except Exception as error:
        lost = type(error).__name__ in ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
        if not (lost and devices.is_multi_worker()):
            raise
        advice = "Start all workers again: the training goes on from the newest checkpoint"
        raise WorkerLostError(f"another worker was lost during the training in {folder}. {advice}.") from error


def claim(folder):
    """Take `folder` for this process until it ends or calls `release`. Raises `CheckpointError` if another has it.

    Of several workers the chief takes it for all.
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
        raise CheckpointError(
            f"{folder} is in use by another run of this notebook: wait for it, or shut its kernel down"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def release(folder):
    """Give back a folder taken by `claim`, and those within it."""
    for path in [path for path in _locks if path.is_relative_to(Path(folder).resolve())]:
        _locks.pop(path).release()


def _progress(epochs, name):
    """Two bars that move, with the time left, where somebody watches; else a line an epoch, with the training's name."""
    if keras.config.is_interactive_logging_enabled():
        return _Bars(epochs)
    return _EpochLine(epochs, name)


class _Bars(TqdmCallback):
    """A bar for all epochs, those of earlier calls included, and one for the batches of an epoch."""

    def __init__(self, epochs):
        super().__init__(epochs, mininterval=0.5, dynamic_ncols=True)
        for bar in (self.epoch_bar, self.batch_bar):
            if hasattr(bar, "container"):  # in a notebook, where many metrics would leave the bar itself no room
                bar.container.children[1].layout.min_width = "8em"

    def on_train_begin(self, logs=None):
        """Where only the rest of an epoch is trained, Keras takes that for all there is: the bar does not."""

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.batch_bar.unit_scale = False  # 14/15 batches, not 14.0/15.0
        for bar in (self.epoch_bar, self.batch_bar):
            bar.refresh()

    def on_train_end(self, logs=None):
        bar = self.epoch_bar
        if self.model.stop_training:  # no error, but tqdm turns a bar red that has less than its total
            done, start = bar.n, bar.start_t
            bar.reset(done)
            bar.n, bar.start_t = done, start
            bar.set_description("stopped early", refresh=False)
        if bar.n >= bar.total:
            super().on_train_end(logs)


class _EpochLine(keras.callbacks.Callback):
    """Prints one line an epoch, with the minutes that are left at its speed."""

    def __init__(self, epochs, name):
        super().__init__()
        self.epochs, self.name = epochs, name

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        scores = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        seconds = time.perf_counter() - self.start
        left = f"{(self.epochs - epoch - 1) * seconds / 60:4.1f} min left"
        print(f"{self.name}: epoch {epoch + 1:3}/{self.epochs}  {seconds:4.0f} s  {left}  {scores}", flush=True)


class _Saver(keras.callbacks.Callback):
    """Writes and restores checkpoints; last in the list, so that it sees what early stopping decided."""

    def __init__(self, batches, folder, epochs, early_stopping, minutes):
        super().__init__()
        self.batches, self.folder, self.epochs = batches, folder, epochs
        self.early_stopping, self.minutes, self.state = early_stopping, minutes, None

    @property
    def position(self):
        """Epochs done, and steps done in the one after them."""
        return (self.state["epoch"], self.state["step"]) if self.state else (0, 0)

    @property
    def finished(self):
        return bool(self.state and self.state["finished"])

    def capture(self, epoch, step, finished=False):
        """Keep the whole state in `self.state`, as numpy arrays and plain values, and write it."""
        early, now = self.early_stopping, time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        groups = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        groups["metrics"] = self.model.metrics_variables if step else []
        arrays = {group: [keras.ops.convert_to_numpy(value).copy() for value in values] for group, values in groups.items()}
        arrays["best"] = list(early.best_weights or []) if early else []
        self.state = {
            "epoch": epoch, "step": step, "steps": epoch * self.batches.steps + step,
            "finished": finished, "stopped": self.model.stop_training and not step, "seconds": self.seconds,
            "history": self.history, "arrays": arrays,
            "early": {key: getattr(early, key) for key in EARLY_STOPPING} if early else {},
        }  # fmt: skip
        _write(self.folder, self.state)
        self.saved = time.perf_counter()
        self.cost = self.saved - now

    def restore(self, model):
        groups = {"model": model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}
        for group, variables in groups.items():
            for variable, value in zip(variables, self.state["arrays"][group], strict=False):
                variable.assign(value)

    def on_train_begin(self, logs=None):
        self.clock = self.saved = time.perf_counter()
        self.cost = 0.0
        self.seconds, self.history = (self.state["seconds"], self.state["history"]) if self.state else (0.0, {})
        if self.state:
            self.restore(self.model)
            for key, value in self.state["early"].items():
                setattr(self.early_stopping, key, value)
            if self.state["arrays"]["best"]:
                self.early_stopping.best_weights = self.state["arrays"]["best"]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.start = epoch, self.position[1] if epoch == self.position[0] else 0
        self.batches.epoch, self.batches.start = epoch + 1, self.start  # fit's own reset has advanced them
        if self.start:
            self.restore(self.model)  # again, as fit has just set the metrics to zero

    def on_train_batch_end(self, batch, logs=None):
        step = self.start + batch + 1
        losses = {name: float(value) for name, value in (logs or {}).items()}
        if not all(math.isfinite(value) for value in losses.values()):
            raise DivergedError(f"epoch {self.epoch + 1}, step {step}: {losses}. The newest checkpoint is from before this step.")
        due = time.perf_counter() - self.saved > 60 * self.minutes and not devices.is_multi_worker()  # clocks differ
        if due and step < self.batches.steps:
            self.capture(self.epoch, step)

    def on_epoch_end(self, epoch, logs=None):
        self.history = {key: [*self.history.get(key, []), float(value)] for key, value in logs.items()}
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if last or self.cost < max(0.2, (time.perf_counter() - self.saved) / 20):
            self.capture(epoch + 1, 0)

    def on_train_end(self, logs=None):
        if self.model.stop_training or self.state["stopped"] or self.state["epoch"] == self.epochs:
            self.capture(self.state["epoch"], 0, finished=True)  # by now early stopping has put the best weights back


def _write(folder, state):
    """Write a checkpoint under a temporary name and rename it. A full disk costs the checkpoint, not the training."""
    if not devices.is_chief():
        return
    path = folder / "{epoch:05d}-{step:07d}.npz".format(**state)
    partial = path.with_suffix(".partial")
    arrays = {f"{group}/{i}": value for group, values in state["arrays"].items() for i, value in enumerate(values)}
    rest = json.dumps({key: value for key, value in state.items() if key != "arrays"})
    try:
        with partial.open("wb") as file:
            np.savez(file, state=np.frombuffer(rest.encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _remove(folder, KEPT)
    except OSError as error:
        partial.unlink(missing_ok=True)
        warnings.warn(f"no checkpoint written to {path}: {error}. Training goes on.", stacklevel=2)


def _read(path):
    """Return the state in a checkpoint. Any damage raises: each array in the file has its own checksum."""
    with np.load(path, allow_pickle=False) as file:
        state = json.loads(file["state"].tobytes()) | {
            "arrays": {group: [] for group in ("model", "optimizer", "metrics", "best")}
        }
        for key in file.files:
            if key != "state":
                state["arrays"][key.split("/")[0]].append(file[key])
    return state


def _newest(folder):
    """Return the newest whole checkpoint's state, or None."""
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            return _read(path)
        except Exception as error:  # a damaged archive can raise anything
            warnings.warn(f"{path} is damaged ({type(error).__name__}: {error}); the one before is used", stacklevel=4)
    return None


def _remove(folder, keep):
    if not devices.is_chief():
        return
    for path in sorted(folder.glob("*.npz"), reverse=True)[keep:] + list(folder.glob("*.partial")):
        path.unlink(missing_ok=True)
