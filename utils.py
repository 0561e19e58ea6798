"""Functions that all three notebooks use to load, split, normalise, merge and plot images."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn
from matplotlib.figure import Figure

from core.cifar100 import DataError
from core.datasets import load as load  # so that notebooks can call utils.load
from core.streams import random_stream


def split(labels: np.ndarray, validation: float = 0.1, real_fraction: float = 1.0,
          seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return sorted, disjoint indices of training and validation images, stratified by class.

    `labels` (n,) are those of the official training images. Of each class, the fraction
    `validation` is held out. Then only the fraction `real_fraction` (0 to 1) of both parts is kept,
    but at least one training image and, if as many are held out, two validation images of each
    class. A larger `real_fraction` keeps every image that a smaller one keeps.
    """
    rng = np.random.default_rng(seed)  # the published generators were trained on this split
    train, held_out = [], []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        n = round(len(indices) * validation)
        held_out.append(indices[:n][: max(2, round(n * real_fraction))])
        train.append(indices[n:][: max(1, round((len(indices) - n) * real_fraction))])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each channel's mean and variance, (3,), of `uint8` images (n, 32, 32, 3)."""
    levels, mean, variance = np.arange(256), np.zeros(3), np.zeros(3)
    for channel in range(3):  # counting values avoids a float copy of the images
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean[channel] = np.average(levels, weights=counts)
        variance[channel] = np.average((levels - mean[channel]) ** 2, weights=counts)
    return mean, variance


def merge(images: np.ndarray, labels: np.ndarray, synthetic_images: np.ndarray,
          synthetic_labels: np.ndarray, per_class: int,
          seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return training images and labels with `per_class` synthetic images of each class, shuffled.

    Images are `uint8` (n, 32, 32, 3), labels `int` (n,). With `per_class = 0` the real images are
    returned as they are. Raises `DataError` if a class has fewer than `per_class` synthetic images.
    """
    if per_class == 0:
        return images, labels
    chosen = [np.flatnonzero(synthetic_labels == label)[:per_class] for label in np.unique(labels)]
    fewest = min(len(indices) for indices in chosen)
    if fewest < per_class:
        advice = "Lower it, or run notebook 1 with a larger IMAGES_PER_CLASS."
        fault = f"SYNTHETIC_PER_CLASS is {per_class}, but a class has only {fewest} GAN images."
        raise DataError(f"{fault} {advice}")
    chosen = np.concatenate(chosen)
    images = np.concatenate([images, synthetic_images[chosen]])
    labels = np.concatenate([labels, synthetic_labels[chosen]])
    order = random_stream("merge", seed).permutation(len(images))
    return images[order], labels[order]


def plot_curves(histories: dict[str, dict], title: str, path: Path | None = None) -> None:
    """Plot loss and accuracy by epoch, one colour per run; save the figure if there is a `path`."""
    save_figure(draw_curves(histories), title, path)


def draw_curves(histories: dict[str, dict]) -> Figure:
    """Return a figure of loss and accuracy by epoch: training dashed, validation solid.

    `histories` maps the name of a run to its history, a dictionary with a list per metric.
    """
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    colours = seaborn.color_palette("colorblind", len(histories))
    for colour, (name, history) in zip(colours, histories.items(), strict=True):
        epochs = range(1, len(history["loss"]) + 1)
        for axis, metric, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            training = scale * np.array(history[metric])
            validation = scale * np.array(history[f"val_{metric}"])
            axis.plot(epochs, training, "--", color=colour, label=f"{name}, training")
            axis.plot(epochs, validation, "o-", ms=3, color=colour, label=f"{name}, validation")
    for axis in (loss, accuracy):
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    accuracy.legend(fontsize=9)
    return figure


def plot_images(images: np.ndarray, captions: Sequence[str], title: str, path: Path | None = None,
                columns: int = 10, row_labels: Sequence[str] = ()) -> None:  # fmt: skip
    """Show `uint8` images (n, 32, 32, 3) in rows of `columns`.

    The captions are placed above the images, beginning with the first one, and the row labels to
    the left of the rows. There may be fewer captions than images. If there is a `path`, the figure
    is saved.
    """
    rows, captioned = -(-len(images) // columns), -(-len(captions) // columns)
    size = columns + (0.6 if row_labels else 0), rows + 0.25 * captioned + 0.4
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image)
    for axis, text in zip(axes.flat, captions, strict=False):
        lines = [textwrap.fill(line, 14) for line in text.split("\n")]
        axis.set_title("\n".join(lines), fontsize=8)
    for axis, text in zip(axes[:, 0], row_labels, strict=False):
        axis.set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
    save_figure(figure, title, path)


def plot_classes(images: np.ndarray, class_names: Sequence[str], title: str,
                 path: Path | None = None) -> None:  # fmt: skip
    """Show ten images of each of 100 classes: `uint8` (1000, 32, 32, 3), ordered by class."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 7), layout="constrained")
    blocks = images.reshape(4, 25, 10, 32, 32, 3).transpose(0, 1, 3, 2, 4, 5)
    for i, (axis, block) in enumerate(zip(axes, blocks, strict=True)):
        axis.imshow(block.reshape(25 * 32, 10 * 32, 3))
        names = [name.replace("_", " ") for name in class_names[25 * i : 25 * (i + 1)]]
        axis.set_yticks(16 + 32 * np.arange(25), names, fontsize=9)
        axis.set(xticks=[], frame_on=False)
        axis.tick_params(length=0)
    save_figure(figure, title, path)


def save_figure(figure: Figure, title: str, path: Path | None = None) -> None:
    """Give a figure its title, save it if there is a `path`, and show it."""
    figure.suptitle(title)
    if path:
        figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.show()
