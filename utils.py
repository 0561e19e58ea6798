"""What the three notebooks share: load, split, normalise, merge, plot. What lies below is in core/, a subject a file."""

import core  # first: it prepares TensorFlow, which Keras loads

import importlib.util
import textwrap

import ipywidgets
import keras
import matplotlib.pyplot as plt
import numpy as np
import seaborn
from IPython import get_ipython
from IPython.display import display

from core import cifar100
from core.cifar100 import DataError
from core.parameters import made_with

# ---------------------------------------------------------------------------------------------------- load, split


def load(name):
    """Return the `Dataset` called `name`: "cifar100", which is downloaded where it is not on disk, or "shapes100", the stand-in.

    Raises `DataError` where a file was altered, or where there is neither a copy nor a network.
    """
    made_with(DATASET=name)
    return cifar100.load(name)


def split(labels, validation=0.1, real_fraction=1.0, seed=0):
    """Return disjoint, sorted train and validation indices, stratified by class; they depend on `seed` alone.

    `real_fraction` keeps that part of the training split; the validation split stays as it is.
    """
    made_with(REAL_FRACTION=real_fraction)
    rng = np.random.default_rng(seed)
    train, held_out = [], []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        n = round(len(indices) * validation)
        held_out.append(indices[:n])
        train.append(indices[n:][: max(1, round((len(indices) - n) * real_fraction))])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def long_tail(labels, imbalance, seed=0):
    """Return sorted indices of a long-tailed part of a training split: exponentially fewer images from class to class.

    Of the first class there are `imbalance` times as many as of the last (Cui et al., 2019); 1 keeps all. `seed` decides which
    class comes where, and which images stay.
    """
    made_with(IMBALANCE=imbalance)
    rng = np.random.default_rng((seed, 21))
    chosen = []
    for place, label in enumerate(rng.permutation(100)):
        indices = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(indices[: max(1, round(len(indices) * imbalance ** (-place / 99)))])
    return np.sort(np.concatenate(chosen))


# ---------------------------------------------------------------------------------------------------- normalise


def to_bytes(images):
    """`float` -1..1 to `uint8` 0..255, as a PNG holds them."""
    return np.clip(np.round((np.asarray(images, "float32") + 1.0) * 127.5), 0, 255).astype("uint8")


def channel_statistics(images):
    """Return mean and variance (3,) of each channel, on the 0..255 scale, without a float copy of the images."""
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    levels = np.arange(256)
    mean = np.array([np.average(levels, weights=count) for count in counts])
    return mean, np.array([np.average((levels - m) ** 2, weights=c) for m, c in zip(mean, counts, strict=True)])


# ---------------------------------------------------------------------------------------------------- merge


def merge(images, labels, synthetic_images, synthetic_labels, per_class, seed=0):
    """Add the first `per_class` synthetic images of each class to a training split and shuffle by `seed`; 0 leaves it as it is.

    Raises `DataError` where a class of the training split has fewer.
    """
    made_with(SYNTHETIC_PER_CLASS=per_class)
    if not per_class:
        return images, labels
    chosen = [np.flatnonzero(synthetic_labels == label)[:per_class] for label in np.unique(labels)]
    short = min(len(indices) for indices in chosen)
    if short < per_class:
        raise DataError(f"SYNTHETIC_PER_CLASS = {per_class}: a class has only {short} (notebook 1 draws IMAGES_PER_CLASS)")
    chosen = np.concatenate(chosen).astype(int)
    order = np.random.default_rng(seed).permutation(len(images) + len(chosen))
    merged = np.concatenate([images, synthetic_images[chosen]])
    return merged[order], np.concatenate([labels, synthetic_labels[chosen]])[order]


# ---------------------------------------------------------------------------------------------------- plot


def plot_curves(histories, title, path):
    """Plot loss and accuracy by epoch, a colour a run; save to `path`."""
    save_figure(draw_curves(histories), title, path)


def draw_curves(histories):
    """Return a figure of loss and accuracy by epoch, training dashed and validation solid, a colour a run."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for colour, (name, history) in zip(seaborn.color_palette("colorblind"), histories.items(), strict=False):
        for axis, metric, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
            training, held_out = (scale * np.array(history[key]) for key in (metric, f"val_{metric}"))
            epochs = range(1, len(training) + 1)
            axis.plot(epochs, training, "--", color=colour, label=f"{name}, training")
            axis.plot(epochs, held_out, "o-", ms=3, color=colour, label=f"{name}, validation")
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes[0].set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    axes[1].set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    axes[1].legend(fontsize=9)
    return figure


def plot_images(images, titles, title, path=None, columns=10, rows=()):
    """Draw images `uint8` (n, 32, 32, 3) in rows of `columns`; save to `path`.

    The first images stand under `titles`, as many as there are, and beside the rows stands what `rows` says.
    """
    height = -(-len(images) // columns)
    under_titles = -(-len(titles) // columns)
    size = columns + 0.6 * bool(rows), height + 0.25 * under_titles + 0.4
    figure, axes = plt.subplots(height, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image)
    for axis, text in zip(axes.flat, titles, strict=False):
        axis.set_title("\n".join(textwrap.fill(line, 14) for line in text.split("\n")), fontsize=8)
    for axis, text in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
    save_figure(figure, title, path)


def show_classes(images, class_names, title, path):
    """Draw ten images of each of 100 classes, `uint8` (1000, 32, 32, 3) in class order, in four blocks of 25 classes."""
    mosaic = images.reshape(4, 25, 10, 32, 32, 3).transpose(1, 3, 0, 2, 4, 5).reshape(25 * 32, 4, 320, 3)
    figure, axis = plt.subplots(figsize=(15, 7), layout="constrained")
    names = np.full((25 * 32, 4, 140, 3), 255, np.uint8)  # room for them
    mosaic = np.concatenate([names, mosaic], axis=2).reshape(25 * 32, 4 * 460, 3)
    axis.imshow(mosaic)
    axis.axis("off")
    for i, name in enumerate(class_names):
        axis.text(i // 25 * 460 + 132, i % 25 * 32 + 16, name.replace("_", " "), ha="right", va="center", fontsize=9)
    save_figure(figure, title, path)


def save_figure(figure, title, path=None):
    """Give a figure its title, save it where `path` is given, and show it."""
    figure.suptitle(title)
    if path:
        figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.show()


# ---------------------------------------------------------------------------------------------------- watch and play


def watch(draw, logs=""):
    """Return callbacks that watch a training and do not change it.

    The first draws its history anew after each epoch: `draw` takes a history (a list with a value an epoch for each metric) and
    returns a figure. Where `logs` names a folder, TensorBoard's log goes there; raises `ModuleNotFoundError` without TensorBoard.
    """
    if not logs:
        return [LiveFigure(draw)]
    if not importlib.util.find_spec("tensorboard"):  # else it would fail after the first epoch
        raise ModuleNotFoundError('LOGS needs TensorBoard: pip install tensorboard, or set LOGS = ""')
    board = keras.callbacks.TensorBoard(logs, write_graph=False)
    board.only_watches = True
    return [LiveFigure(draw), board]


class LiveFigure(keras.callbacks.Callback):
    """One figure under the progress bar, drawn anew after each epoch. In a headless run nobody sees it, so there is none."""

    only_watches = True

    def __init__(self, draw):
        super().__init__()
        self.draw, self.history, self.shown = draw, {}, None

    def on_epoch_end(self, epoch, logs=None):
        self.history = {name: [*self.history.get(name, []), value] for name, value in (logs or {}).items()}
        if core.HEADLESS or get_ipython() is None:
            return
        figure = self.draw(self.history)
        if self.shown:
            self.shown.update(figure)
        else:
            self.shown = display(figure, display_id=True)
        plt.close(figure)


def play(show, **choices):
    """Call `show` with the values that a reader chooses: a slider for a range, a menu for a list; headless, with the first."""
    if core.HEADLESS:
        show(**{name: values[0] for name, values in choices.items()})
        return
    sliders = {name: ipywidgets.SelectionSlider(options=values) for name, values in choices.items() if isinstance(values, range)}
    ipywidgets.interact(show, **choices | sliders)
