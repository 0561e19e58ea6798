"""The two datasets by name: "cifar100", and its stand-in "shapes100"."""

from core import cifar100, shapes100
from core.cifar100 import TITLES, DataError, Dataset

DATASETS = tuple(TITLES)


def load(name: str) -> Dataset:
    """Return "cifar100", downloaded if necessary, or "shapes100". Raises `DataError`."""
    if name not in DATASETS:
        raise DataError(f"dataset {name!r}: expected one of {', '.join(DATASETS)}")
    return cifar100.load_cifar100() if name == "cifar100" else shapes100.draw_shapes100()


def class_names(name: str) -> list[str]:
    """Return a dataset's 100 class names in the order of its labels, without loading it."""
    return cifar100.CLASS_NAMES if name == "cifar100" else shapes100.CLASS_NAMES


def run_folder_name(dataset: str, real_fraction: float = 1.0) -> str:
    """Return the folder name of runs that train on `real_fraction` (0 to 1) of a dataset."""
    return dataset if real_fraction == 1 else f"{dataset}-{real_fraction}"


def title(dataset: str, real_fraction: float = 1.0) -> str:
    """Return the title of runs that train on `real_fraction` (0 to 1) of a dataset, for figures."""
    share = "" if real_fraction == 1 else f", {100 * real_fraction:g}% of its training images"
    return TITLES[dataset] + share
