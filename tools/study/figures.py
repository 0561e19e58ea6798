"""Figures of the study, drawn from its records: one per question, and one of the GANs' quality."""

from pathlib import Path

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core import metrics
from tools.study import report
from tools.study.arms import PLANNED, SIZES
from tools.study.trainer import GENERATORS

BLUE, ORANGE, GREEN = seaborn.color_palette("colorblind")[:3]
GREY = "0.25"
CENTRED = {"textcoords": "offset points", "fontsize": 9, "ha": "center"}
BESIDE = {"textcoords": "offset points", "fontsize": 9, "va": "center"}
TITLES = {
    "augment": "1. With a GAN trained on the\nsame photographs, accuracy falls",
    "stand_in": "2. With a GAN trained on 45,000\nothers, accuracy rises",
    "compress": "3. To imitate a large network, GAN\nimages beat 400 photographs",
}
AUGMENT = {  # by label: the arms with and without GAN images
    "45,000, Adam": PLANNED["A"],
    "45,000, Muon": ("vgg16_fast_gan", "vgg16_fast"),
    "4,500, Adam": PLANNED["B"],
}
COMPRESS = {
    "compress-real": "45,000 photographs",
    "compress-gan-400": "GAN images and\n400 photographs",
    "compress-gan": "GAN images",
    "compress-5000": "only 5,000\nGAN images",
    "compress-400": "400 photographs",
    "compress-noise": "noise",
}


def draw_augment(axis: Axes, found: dict) -> None:
    """Draw the paired differences in test accuracy, with GAN images minus without, in points."""
    axis.axvspan(-1, 1, color="0.92", label="under one point:\ntoo little to matter")
    axis.axvline(0, color="0.4", lw=1)
    labels = []
    for label, (with_gan, without) in AUGMENT.items():
        points, row = report.gains(found, with_gan, without), len(labels)
        if points:
            before, after = (_accuracies(found, name).mean() for name in (without, with_gan))
            labels.append(f"{label}\n{before:.1f} → {after:.1f}%")
            above = row - np.linspace(0.08, 0.2, len(points))  # so that equal ones stay visible
            label = "" if row else "one pair of runs"  # once in the legend
            axis.plot(points, above, "o", color=GREY, ms=4, alpha=0.7, label=label)
            _mark(axis, points, row + 0.12, GREY, label="" if row else "mean, 95% interval")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.1, -0.5)  # with room for the legend below the last row
    axis.set_xlabel("with GAN images minus without\n(percentage points of test accuracy)")
    axis.set_ylabel("photographs, optimiser")
    axis.legend(fontsize=8, loc="lower right")


def draw_stand_in(axis: Axes, found: dict) -> None:
    """Draw the test accuracy by the number of photographs, with GAN images and without."""
    for ending, colour, label, place in (
        ("-gan", ORANGE, "with GAN images", 8),
        ("", BLUE, "photographs alone", -16),
    ):
        sizes = [size for size in SIZES if f"few-{size}{ending}" in found]
        runs = [_accuracies(found, f"few-{size}{ending}") for size in sizes]
        means = [accuracies.mean() for accuracies in runs]
        axis.plot(sizes, means, "D-", ms=5, color=colour, label=label)
        for size, mean, accuracies in zip(sizes, means, runs, strict=True):
            _mark(axis, accuracies, size, colour, vertical=True)
            axis.annotate(f"{mean:.1f}%", (size, mean), (0, place), **CENTRED)
    if "few-0-gan" in found:
        alone = _accuracies(found, "few-0-gan").mean()
        axis.axhline(alone, ls="--", color=GREEN, label="GAN images alone")
    axis.set(xscale="log", xlabel="photographs for training", ylabel="test accuracy (%)")
    measured = [size for size in SIZES if f"few-{size}" in found]
    axis.set_xticks(measured, [f"{size:,}" for size in measured])
    axis.minorticks_off()
    axis.margins(x=0.15)
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])  # room for the legend
    axis.legend(fontsize=8, loc="upper left")


def draw_compress(axis: Axes, found: dict) -> None:
    """Draw the small network's test accuracy by the images on which it imitates the large one."""
    names = [name for name in COMPRESS if name in found]
    for row, name in enumerate(names):
        accuracies = _accuracies(found, name)
        colour = ORANGE if "GAN" in COMPRESS[name] else BLUE
        axis.barh(row, accuracies.mean(), color=colour, alpha=0.5)
        axis.annotate(f"{accuracies.mean():.1f}%", (accuracies.max(), row), (8, 0), **BESIDE)
        _mark(axis, accuracies, row, colour)
    axis.set_yticks(range(len(names)), [COMPRESS[name] for name in names])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * axis.get_xlim()[1])  # room for the numbers
    axis.set_xlabel("test accuracy (%)")


PANELS = {  # by question: how its figure is drawn, and an arm without which it would be empty
    "augment": (draw_augment, "vgg16"),
    "stand_in": (draw_stand_in, "few-400"),
    "compress": (draw_compress, "compress-gan"),
}


def draw(found: dict, folder: Path) -> None:
    """Save one figure per question that has runs, and all together as study.png, in `folder`."""
    panels = {name: panel for name, (panel, arm) in PANELS.items() if arm in found}
    if not panels:
        return
    together = Figure(figsize=(3.7 * len(panels), 3.7), layout="constrained")
    columns = together.subplots(1, len(panels), squeeze=False)[0]
    for shared, (name, panel) in zip(columns, panels.items(), strict=True):
        alone = Figure(figsize=(6.4, 4.2), layout="constrained")
        for axis in (shared, alone.subplots()):
            panel(axis, found)
            axis.set_title(TITLES[name], fontsize=11, loc="left")
        _save(alone, folder / f"study_{name}.png")
    _save(together, folder / "study.png")


def draw_quality(gans: dict[str, dict], found: dict, path: Path) -> None:
    """Save a figure of how much the images of each GAN teach, by the minutes the GAN trained.

    `gans` are notebook 1's records by name, and `found` the study's by arm. The accuracy after
    training on GAN images alone is divided by that after training on photographs, for notebook 1's
    student and, if it was trained on images of all these GANs, for the VGG-16 of notebook 2.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    names = {size: name for size, (_, name) in GENERATORS.items() if size != "tenth"}
    trained = {size: gans[name] for size, name in names.items() if name in gans}
    minutes = [gan["seconds"] / 60 for gan in trained.values()]
    shares = [gan["gan_train_ratio"] for gan in trained.values()]
    axis.plot(minutes, shares, "o-", color=BLUE, label="notebook 1's student")
    for size, place, share in zip(trained, minutes, shares, strict=True):
        axis.annotate(names[size], (place, share + 0.03), ha="center")
    if "dose-0" in found and all(f"alone-{size}" in found for size in trained):
        alone = [_accuracies(found, f"alone-{size}").mean() for size in trained]
        shares = np.array(alone) / _accuracies(found, "dose-0").mean()
        axis.plot(minutes, shares, "D-", color=ORANGE, label="VGG-16 x0.25")
    axis.set(xscale="log", ylim=(0, 1), xlabel="minutes of training on two cores")
    axis.set_ylabel("accuracy after training on GAN images,\nas a share of that on photographs")
    axis.set_xticks(minutes, [f"{place:.0f}" for place in minutes])
    axis.minorticks_off()
    axis.margins(x=0.15)
    axis.set_title("How much a GAN's images teach, by its training time", fontsize=11, loc="left")
    axis.legend(fontsize=9, loc="lower right", title="classifier")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})  # no version, so that bytes agree


def _accuracies(found, name):
    return np.array([100 * run["test_accuracy"] for run in found[name].values()])


def _mark(axis, values, place, colour, vertical=False, label=""):
    """Mark the mean of values with its 95% confidence interval, if there are two or more."""
    mean, half = metrics.mean_and_interval(values) if len(values) > 1 else (np.mean(values), 0)
    x, y = (place, mean) if vertical else (mean, place)
    error = {"yerr" if vertical else "xerr": half}
    axis.errorbar(x, y, **error, fmt="D", ms=5, color=colour, capsize=3, label=label)
