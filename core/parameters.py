"""The notebooks' parameters: which values each may have, and the check that every notebook begins with."""

import copy
import re
from pathlib import Path

from core.cifar100 import DATASETS
from core.devices import PRECISIONS
from core.synthetic import SOURCES

GAN_RUN = re.compile(r"gan\w*")  # names of GAN trainings, apart from those of classifiers
VGG_RUN = re.compile(r"vgg16(?!\w*_gan$)\w*")  # those of notebook 2, which adds "_gan" itself
RESNET_RUN = re.compile(r"resnet(?!\w*_imagenet$)\w*")  # those of notebook 3, which adds "_imagenet" itself

LIMITS = {  # a pair of ints or of floats (an int is welcome too), a tuple of choices, `str`, `Path` or a regular expression
    "DATASET": DATASETS, "REAL_FRACTION": (1e-6, 1.0), "SEED": (0, 2**31), "VARIANT": re.compile(r"[a-z]*"),
    "PRECISION": PRECISIONS, "RESUME": (True, False), "LOGS": str, "PICTURE": Path, "EPOCHS": (1, 10_000),
    "BATCH_SIZE": (2, 4096), "LEARNING_RATE": (1e-8, 10.0), "PATIENCE": (1, 10_000),
    # GAN
    "LATENT_DIM": (1, 1024), "CHANNELS": (1, 512), "GUIDANCE": (0.0, 100.0), "MATCHING": (0.0, 100.0), "SPREAD": (0.0, 100.0),
    "CONSISTENCY": (0.0, 1000.0), "FINAL_RATE": (0.0, 1.0), "EMA_MOMENTUM": (0.0, 1.0), "AUGMENT": (True, False),
    "JUDGE_EPOCHS": (1, 1000), "CANDIDATES": (1, 1000), "INCEPTION": Path, "IMAGES_PER_CLASS": (10, 5000), "TRAIN": (True, False),
    # classifiers
    "SYNTHETIC_PER_CLASS": (0, 5000), "SYNTHETIC_IMAGES": SOURCES, "WIDTH": (1 / 64, 4.0), "DEPTH": tuple(range(8, 1204, 6)),
    "OPTIMIZER": ("muon", "adam"), "WARMUP": (0.0, 1.0), "WEIGHT_DECAY": (0.0, 1.0), "LABEL_SMOOTHING": (0.0, 0.9),
    "CUTMIX": (0.0, 1.0),
    # ImageNet
    "IMAGENET": (True, False), "IMAGENET_MODEL": ("MobileNetV2", "ResNet50V2", "EfficientNetV2B0"), "IMAGENET_WEIGHTS": Path,
    "IMAGENET_SIZE": (32, 512), "IMAGENET_EPOCHS": (1, 1000), "IMAGENET_RATE": (1e-8, 1.0),
}  # fmt: skip


_checked = {"values": {}, "parameters": {}}  # of the notebook in this process: its globals, and its parameters when checked


def check_parameters(values, **limits):
    """Return the parameters among `values` (a notebook's globals), those in capitals, as a dictionary.

    Each has to be within LIMITS, or within `limits` where they name it; one that neither names is free. Raises `ValueError`
    naming all that are wrong.
    """
    limits = LIMITS | limits
    parameters = {name: value for name, value in values.items() if name.isupper() and _is_plain(value)}
    pairs = [(name, value, limits[name]) for name, value in parameters.items() if name in limits]
    wrong = [f"{name} = {value!r}: expected {_in_words(limit)}" for name, value, limit in pairs if not _is_within(value, limit)]
    if wrong:
        raise ValueError("wrong parameters:\n  " + "\n  ".join(wrong))
    _checked.update(values=values, parameters=copy.deepcopy(parameters))
    return parameters


def check_unchanged():
    """Refuse to go on where a notebook's parameter has been changed since it was checked: what was made of it is out of date.

    Raises `ValueError` naming all that have changed.
    """
    values, checked = _checked["values"], _checked["parameters"]
    changed = [f"{name}: {was!r} then, {values.get(name)!r} now" for name, was in checked.items() if values.get(name) != was]
    if changed:
        advice = "Run the cell below the parameters again, and all that follow"
        raise ValueError(f"parameters have changed since they were checked. {advice}.\n  " + "\n  ".join(changed))


def _is_plain(value):
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))


def _is_within(value, limit):
    if limit is str:
        return isinstance(value, str)
    if limit is Path:
        return isinstance(value, str) and (value in ("", "imagenet") or Path(value).is_file())
    if isinstance(limit, re.Pattern):
        return isinstance(value, str) and bool(limit.fullmatch(value))
    if _is_choice(limit):
        return any(type(value) is type(choice) and value == choice for choice in limit)
    kinds = int if isinstance(limit[0], int) else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and limit[0] <= value <= limit[1]


def _is_choice(limit):
    return len(limit) != 2 or isinstance(limit[0], (bool, str))


def _in_words(limit):
    if limit is str:
        return "text"
    if limit is Path:
        return f"the path of a file that is there, from {Path.cwd()}"
    if isinstance(limit, re.Pattern):
        return f"text like {limit.pattern}"
    return f"one of {limit[:10]}" if _is_choice(limit) else f"{type(limit[0]).__name__} {limit[0]} to {limit[1]}"
