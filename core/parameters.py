"""The notebooks' parameters: their allowed values, and a check of all of them at once."""

import difflib
import re
from pathlib import Path
from typing import Any

from core.datasets import DATASETS

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
SOURCES = ("auto", "own", "published")  # sources of GAN images
SWITCH = (True, False)
FILE = "file"  # the path of an existing file, or an empty string
PLAIN = (bool, int, float, str, list, tuple, type(None))  # types of parameters


class Name:
    """A limit that allows names of runs matching a regular expression, which `words` describe."""

    def __init__(self, pattern: str, words: str):
        self.pattern, self.words = re.compile(pattern), words


# Notebook 2 adds "_gan" to the name of its second run, so no other name may end in it.
RUNS = {
    "gan_synthetic_images": Name(r"gan\w*", "beginning with gan"),
    "vgg16_with_gan": Name(r"vgg16(?!\w*_gan$)\w*", "beginning with vgg16, not ending in _gan"),
    "resnet_baseline": Name(r"resnet\w*", "beginning with resnet"),
}  # fmt: skip

# A pair of integers or floats is a range. Any other tuple lists the allowed values.
LIMITS = {
    "DATASET": DATASETS, "REAL_FRACTION": (0.0025, 1.0), "SEED": (0, 2**31), "RESUME": SWITCH,
    "PRECISION": PRECISIONS, "PICTURE": FILE, "EPOCHS": (1, 10_000),
    "BATCH_SIZE": (2, 4096), "LEARNING_RATE": (1e-8, 10.0), "PATIENCE": (1, 10_000),
    # notebook 1
    "CHANNELS": (1, 512), "GUIDANCE": (0.0, 100.0), "MATCHING": (0.0, 100.0),
    "CONSISTENCY": (0.0, 1000.0), "JUDGE_EPOCHS": (1, 1000), "CANDIDATES": (1, 1000),
    "IMAGES_PER_CLASS": (10, 5000), "TRAIN": SWITCH,
    # notebooks 2 and 3
    "SYNTHETIC_PER_CLASS": (0, 5000), "SYNTHETIC_IMAGES": SOURCES, "WIDTH": (1 / 64, 4.0),
    "STEPS": ("equal", "added"), "DEPTH": tuple(range(8, 1204, 6)), "OPTIMIZER": ("adam", "muon"),
    "WEIGHT_DECAY": (0.0, 1.0), "LABEL_SMOOTHING": (0.0, 0.9), "CUTMIX": (0.0, 1.0),
    "SHIFT": (0, 16), "TRIVIAL_AUGMENT": SWITCH, "MODELS": ("both", "resnet", "imagenet"),
    "IMAGENET_MODEL": ("EfficientNetLite0", "MobileNetV2", "ResNet50V2", "EfficientNetV2B0"),
    "IMAGENET_SIZE": (32, 512), "IMAGENET_EPOCHS": (1, 1000), "IMAGENET_RATE": (1e-8, 1.0),
}  # fmt: skip
# These name a run or choose what is done and shown, but do not change how a network is trained.
NOT_IN_TRAINING = ("RUN", "RESUME", "PICTURE", "SYNTHETIC_IMAGES", "TRAIN", "MODELS")


def check_parameters(values: dict, notebook: str) -> dict:
    """Return the parameters among `values`, a notebook's globals: plain values named in capitals.

    Prints a hint for misspelt names. Raises a `ValueError` that lists all wrong values.
    """
    parameters = {k: v for k, v in values.items() if k.isupper() and isinstance(v, PLAIN)}
    if wrong := wrong_values(parameters, notebook):
        raise ValueError("Invalid parameters:\n  " + "\n  ".join(wrong))
    known = [*LIMITS, "RUN"]
    for name, value in parameters.items():
        near = difflib.get_close_matches(name, known, 1, cutoff=0.85)
        if name not in known and near and not isinstance(value, (list, tuple)):
            print(f"{name} is not a parameter of this notebook. Did you mean {near[0]}?")
    return parameters


def wrong_values(parameters: dict, notebook: str) -> list[str]:
    """Return one line for each parameter of a notebook whose value is not allowed."""
    limits = LIMITS | {"RUN": RUNS[notebook]}
    return [
        f"{name} = {value!r}: expected {_in_words(limits[name])}"
        for name, value in parameters.items()
        if name in limits and not _is_allowed(value, limits[name])
    ]


def _is_range(limit: Any) -> bool:
    return isinstance(limit, tuple) and len(limit) == 2 and type(limit[0]) in (int, float)


def _is_allowed(value: Any, limit: Any) -> bool:
    if limit is FILE:
        return isinstance(value, str) and (not value or Path(value).expanduser().is_file())
    if isinstance(limit, Name):
        return isinstance(value, str) and bool(limit.pattern.fullmatch(value))
    if _is_range(limit):
        kinds = int if isinstance(limit[0], int) else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        return is_number and limit[0] <= value <= limit[1]
    return any(type(value) is type(choice) and value == choice for choice in limit)


def _in_words(limit: Any) -> str:
    if limit is FILE:
        return f"the path of an existing file, absolute or relative to {Path.cwd()}, or ''"
    if isinstance(limit, Name):
        return f"letters, digits and _, {limit.words}"
    if _is_range(limit):
        kind = "a whole number" if isinstance(limit[0], int) else "a number"
        return f"{kind} from {limit[0]} to {limit[1]}"
    choices = ", ".join(map(repr, limit[:10]))
    return f"one of {choices}" + (f", ... up to {limit[-1]!r}" if len(limit) > 10 else "")
