"""The figure of published images in the README."""

from pathlib import Path

from matplotlib.figure import Figure

from core import datasets, synthetic

CLASSES = (
    "apple", "sunflower", "orange", "mushroom", "bus", "tiger", "bicycle", "dolphin", "bear",
    "rocket",
)  # fmt: skip


def gallery(path: Path) -> None:
    """Draw the first eight published images of ten classes each, and save the figure to `path`."""
    names = datasets.class_names("cifar100")
    images, labels, _ = synthetic.load(synthetic.choose("cifar100", "published")[0], names)
    figure = Figure(figsize=(10, 8.3), layout="constrained")
    for column, name in zip(figure.subplots(8, len(CLASSES)).T, CLASSES, strict=True):
        column[0].set_title(name, fontsize=13)
        for axis, image in zip(column, images[labels == names.index(name)], strict=False):
            axis.imshow(image, interpolation="bicubic")
            axis.set_axis_off()
    figure.savefig(path, dpi=85, facecolor="white", pil_kwargs={"quality": 90})
