"""Training that can be interrupted: batches that depend on (seed, epoch, step) alone, and `fit` with checkpoints."""

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

import devices

KEPT = 2  # newest checkpoints, so that a torn one has a predecessor
EARLY_STOPPING = ("wait", "stopped_epoch", "best", "best_epoch")
_locks = {}


class CheckpointError(RuntimeError):
    """A checkpoint or a folder that must not be used; the message says which and why."""


class WorkerLostError(RuntimeError):
    """Another worker of a training on several machines is gone."""


class DivergedError(RuntimeError):
    """A loss that is not a finite number; the message names epoch, step and every loss."""


class Batches(keras.utils.PyDataset):
    """Shuffled batches of `uint8` images and one-hot labels, cropped and flipped at random.

    The order depends on (seed, epoch) alone and the augmentation on (seed, epoch, step) alone, so that a training
    taken up again at any step sees the same data. All batches are full: the order wraps round. `pad` is the largest
    shift of a crop in pixels, `cutmix` the probability (0 to 1) that a batch is mixed, `noise` the size of a normal vector
    that comes with each image (a GAN's), `steps` the number of batches an epoch, `start` the first one of the current
    epoch. Epochs count from 1: `fit` advances the number before the first one too.
    """

    def __init__(self, images, labels, batch_size, seed=0, pad=4, cutmix=0.0, noise=0, steps=None, classes=100):
        super().__init__()
        self.cutmix, self.noise = cutmix, noise
        self.images, self.labels, self.batch_size, self.seed, self.pad = images, labels, batch_size, seed, pad
        self.steps, self.classes = steps or -(-len(images) // batch_size), classes
        self.epoch, self.start, self._order = 0, 0, (None, None)

    def __len__(self):
        return self.steps - self.start

    def __getitem__(self, step):
        epoch, step, order = self.epoch, self.start + step, self._order
        if order[0] != epoch:  # a local name, as a thread that reads ahead may be in another epoch
            self._order = order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        chosen = np.take(order[1], range(step * self.batch_size, (step + 1) * self.batch_size), mode="wrap")
        rng = np.random.default_rng((self.seed, epoch, step))
        images = crop_and_flip(self.images[chosen], rng, self.pad)
        labels = np.eye(self.classes, dtype="float32")[self.labels[chosen]]
        if self.cutmix and rng.random() < self.cutmix:
            images, labels = cutmix(images, labels, rng)
        inputs = (images, rng.standard_normal((self.batch_size, self.noise), "float32")) if self.noise else images
        return inputs, labels

    def on_epoch_end(self):
        self.epoch, self.start = self.epoch + 1, 0


def crop_and_flip(images, rng, pad=4):
    """Shift each image by up to `pad` pixels (mirrored at the edge) and flip half of them, the whole batch at once."""
    n, height, width, channels = images.shape
    top, left = rng.integers(0, 2 * pad + 1, (2, n))[:, :, None]
    flipped = rng.random(n)[:, None] < 0.5
    rows, columns = (np.pad(np.arange(size), pad, mode="reflect") for size in (height, width))
    rows, columns = rows[top + np.arange(height)], columns[left + np.arange(width)]
    columns = np.where(flipped, columns[:, ::-1], columns)
    position = ((np.arange(n)[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
    pixels = images.reshape(-1, channels).view(f"V{channels * images.itemsize}")  # a pixel moves as one item: 4 times faster
    return pixels.take(position).view(images.dtype).reshape(images.shape)


def cutmix(images, labels, rng):
    """Paste a rectangle of another image of the batch into each; labels are shared by area (Yun et al., 2019, section 3.1).

    The rectangle is the same for the whole batch, its area uniform before the edges cut it, its middle anywhere.
    """
    height, width = images.shape[1:3]
    side = rng.random() ** 0.5
    corners = []
    for size in (height, width):
        middle, half = rng.integers(size), round(size * side) / 2
        corners.append(slice(max(0, round(middle - half)), min(size, round(middle + half))))
    mixed = images.copy()  # the batch's order is random, so the neighbour is a random partner
    mixed[:, *corners] = np.roll(images, 1, axis=0)[:, *corners]
    share = mixed[0, *corners, 0].size / (height * width)
    return mixed, (1 - share) * labels + np.float32(share) * np.roll(labels, 1, axis=0)


def fit(model, batches, *, epochs, folder, parameters, resume=True, minutes=5, early_stopping=None, callbacks=(), **arguments):
    """Train a compiled model like `model.fit`, taking up where an interrupted call left off.

    Every epoch, and every `minutes` within one, `folder` receives weights, optimiser, seed generators, metrics,
    history and the state of `early_stopping` (a Keras callback; it may watch what `callbacks` log); the last two
    checkpoints are kept. Where writing one takes longer than a twentieth of an epoch, some epochs go without. The next
    call with the same `parameters` goes on from the newest whole one, and on a CPU ends in the same bits as a call never
    interrupted. A finished training is not repeated; `resume=False`, or other parameters, start anew.

    On several machines, which share the folder, the chief writes checkpoints, and only at the end of an epoch.

    Returns a dictionary: `history` (a list an epoch for each metric), `seconds` and `steps` of the whole training.
    Raises `CheckpointError` where an unfinished checkpoint has other parameters or another run uses the folder,
    `DivergedError` at a loss that is not finite (the checkpoints before it stay), `WorkerLostError`.
    """
    claim(folder)
    given = {"epochs": epochs, "weights": sum(math.prod(weight.shape) for weight in model.weights)}
    given |= {"precision": keras.config.dtype_policy().name, "backend": keras.backend.backend()}
    replicas = devices.strategy().num_replicas_in_sync
    given |= {"replicas": replicas} if replicas > 1 else {}
    parameters = json.loads(json.dumps(parameters | given))
    saver = _Saver(batches, Path(folder), parameters, early_stopping, minutes)
    saver.state = _newest(saver.folder, parameters) if resume else None
    if saver.state is None:
        _remove(saver.folder, keep=0)
    else:
        print("{seconds:.0f} s of training found in {}, epoch {epoch}, step {step}".format(saver.folder.name, **saver.state))
    stopping = [early_stopping] if early_stopping else []  # it may watch what the callbacks log
    callbacks = [devices.KeepMemory(), *callbacks, *stopping, saver]
    while not (saver.state and saver.state["finished"]):
        epoch, start = saver.position
        epoch = epochs if saver.state and saver.state["stopped"] else epoch
        batches.start = start
        last = epoch + 1 if start else epochs  # what is left of an epoch is a call of its own: it has fewer steps
        if start:
            model.test_on_batch(*batches[0])  # makes the metrics' variables, so that they can be restored
        with _naming_lost_workers(folder):
            model.fit(batches, initial_epoch=epoch, epochs=last, callbacks=callbacks, shuffle=False, **arguments)
    saver.restore(model)
    return {key: saver.state[key] for key in ("history", "seconds", "steps")}


@contextlib.contextmanager
def _naming_lost_workers(folder):
    """Turn the error that the loss of a worker ends in (after some ten seconds) into one that says what to do."""
    try:
        yield
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


class _Saver(keras.callbacks.Callback):
    """Writes and restores checkpoints; last in the list, so that it sees what early stopping decided."""

    def __init__(self, batches, folder, parameters, early_stopping, minutes):
        super().__init__()
        self.batches, self.folder, self.parameters = batches, folder, parameters
        self.early_stopping, self.minutes, self.state = early_stopping, minutes, None

    @property
    def position(self):
        """Epochs done, and steps done in the one after them."""
        return (self.state["epoch"], self.state["step"]) if self.state else (0, 0)

    def capture(self, epoch, step, finished=False):
        """Keep the whole state in `self.state`, as numpy arrays and plain values, and write it."""
        early, now = self.early_stopping, time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        groups = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        groups["metrics"] = self.model.metrics_variables if step else []
        arrays = {group: [keras.ops.convert_to_numpy(value).copy() for value in values] for group, values in groups.items()}
        arrays["best"] = list(early.best_weights or []) if early else []
        self.state = {
            "parameters": self.parameters, "epoch": epoch, "step": step, "steps": epoch * self.batches.steps + step,
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
            self.model.optimizer.build(self.model.trainable_variables)  # else it would have no variables to restore
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
            raise DivergedError(f"epoch {self.epoch + 1}, step {step}: {losses}. The last checkpoint is from before it.")
        due = time.perf_counter() - self.saved > 60 * self.minutes and not devices.is_multi_worker()  # clocks differ
        if due and step < self.batches.steps:
            self.capture(self.epoch, step)

    def on_epoch_end(self, epoch, logs=None):
        self.history = {key: [*self.history.get(key, []), float(value)] for key, value in logs.items()}
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if last or self.cost < max(0.2, (time.perf_counter() - self.saved) / 20):
            self.capture(epoch + 1, 0)

    def on_train_end(self, logs=None):
        if self.model.stop_training or self.state["stopped"] or self.state["epoch"] == self.parameters["epochs"]:
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


def _newest(folder, parameters):
    """Return the newest whole checkpoint's state, or None. Raises `CheckpointError` if its parameters are others."""
    for path in sorted(folder.glob("*.npz"), reverse=True):
        try:
            state = _read(path)
        except Exception as error:  # a damaged archive can raise anything
            warnings.warn(f"{path} is damaged ({type(error).__name__}: {error}); the one before is used", stacklevel=3)
            continue
        differ = [key for key in parameters | state["parameters"] if parameters.get(key) != state["parameters"].get(key)]
        if differ and not state["finished"]:
            pairs = "; ".join(f"{key} is {parameters.get(key)!r}, was {state['parameters'].get(key)!r}" for key in differ)
            raise CheckpointError(
                f"an unfinished training in {folder} has other parameters: {pairs}. Set RESUME = False to start anew."
            )
        if differ:
            print(f"the finished training in {folder.name} had other parameters ({', '.join(differ)}): starting anew")
        return None if differ else state
    return None


def _remove(folder, keep):
    if not devices.is_chief():
        return
    for path in sorted(folder.glob("*.npz"), reverse=True)[keep:] + list(folder.glob("*.partial")):
        path.unlink(missing_ok=True)
