"""Figures that show more than one run: the README's pictures, made of what is published."""

from matplotlib.figure import Figure

import core
from core import cifar100, synthetic

WELL_KNOWN = "apple", "sunflower", "orange", "mushroom", "bus", "tiger", "bicycle", "dolphin", "bear", "rocket"
EACH = 8


def gallery(path):
    """Draw the first eight published GAN images of ten classes, whatever they look like, a class a column."""
    names = cifar100.class_names("cifar100")
    images, labels, _ = synthetic.load(core.ROOT / "synthetic_images" / "cifar100", names)
    figure = Figure(figsize=(10, 8.3), layout="constrained")
    axes = figure.subplots(EACH, len(WELL_KNOWN))
    for column, name in zip(axes.T, WELL_KNOWN, strict=True):
        column[0].set_title(name, fontsize=13)
        for axis, image in zip(column, images[labels == names.index(name)], strict=False):
            axis.imshow(image, interpolation="bicubic")
            axis.set_axis_off()
    figure.savefig(path, dpi=85, facecolor="white", pil_kwargs={"quality": 90})
