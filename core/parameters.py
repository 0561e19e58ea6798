"""The notebooks' parameters: which values each may have, and the check that every notebook begins with."""

import difflib
import re
from pathlib import Path

from core.cifar100 import DATASETS

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
SOURCES = ("auto", "own", "published")  # of GAN images
GAN_RUN = re.compile(r"gan\w*")  # names of GAN trainings, apart from those of classifiers
VGG_RUN = re.compile(r"vgg16(?!\w*_gan$)\w*")  # those of notebook 2, which adds "_gan" itself
RESNET_RUN = re.compile(r"resnet(?!\w*_imagenet$)\w*")  # those of notebook 3, which adds "_imagenet" itself

RUNS = {"gan_synthetic_images": GAN_RUN, "vgg16_with_gan": VGG_RUN, "resnet_baseline": RESNET_RUN}

ONE_A_CLASS = 0.0025  # of CIFAR-100's training images

# a pair of ints or of floats (an int is welcome too), a tuple of choices, `str`, a regular expression, or words in a set: one of
# these or the path of a file
LIMITS = {
    "DATASET": DATASETS, "REAL_FRACTION": (ONE_A_CLASS, 1.0), "IMBALANCE": (1.0, 10_000.0), "SEED": (0, 2**31),
    "VARIANT": re.compile(r"[a-z]*"),
    "PRECISION": PRECISIONS, "RESUME": (True, False), "LOGS": str, "PICTURE": {""}, "EPOCHS": (1, 10_000),
    "BATCH_SIZE": (2, 4096), "LEARNING_RATE": (1e-8, 10.0), "PATIENCE": (1, 10_000),
    # GAN
    "LATENT_DIM": (1, 1024), "CHANNELS": (1, 512), "GUIDANCE": (0.0, 100.0), "MATCHING": (0.0, 100.0), "SPREAD": (0.0, 100.0),
    "CONSISTENCY": (0.0, 1000.0), "FINAL_RATE": (0.0, 1.0), "EMA_MOMENTUM": (0.0, 1.0), "AUGMENT": (True, False),
    "JUDGE_EPOCHS": (1, 1000), "CANDIDATES": (1, 1000), "INCEPTION": {"", "imagenet"}, "IMAGES_PER_CLASS": (10, 5000),
    "TRAIN": (True, False),
    # classifiers
    "SYNTHETIC_PER_CLASS": (0, 5000), "SYNTHETIC_IMAGES": SOURCES, "WIDTH": (1 / 64, 4.0), "DEPTH": tuple(range(8, 1204, 6)),
    "OPTIMIZER": ("muon", "adam"), "WARMUP": (0.0, 1.0), "WEIGHT_DECAY": (0.0, 1.0), "LABEL_SMOOTHING": (0.0, 0.9),
    "CUTMIX": (0.0, 1.0), "TRIVIAL_AUGMENT": (True, False),
    # ImageNet
    "IMAGENET": (True, False), "IMAGENET_MODEL": ("MobileNetV2", "ResNet50V2", "EfficientNetV2B0"),
    "IMAGENET_WEIGHTS": {"imagenet"}, "IMAGENET_SIZE": (32, 512), "IMAGENET_EPOCHS": (1, 1000), "IMAGENET_RATE": (1e-8, 1.0),
}  # fmt: skip
NAME = "letters, digits and _"
IN_WORDS = {  # the regular expressions
    GAN_RUN: f"{NAME}, beginning with gan",
    VGG_RUN: f"{NAME}, beginning with vgg16 and not ending in _gan",
    RESNET_RUN: f"{NAME}, beginning with resnet and not ending in _imagenet",
    LIMITS["VARIANT"]: "small letters, or none",
}


NO_PART_OF_TRAINING = ("RUN", "RESUME", "LOGS", "PICTURE", "SYNTHETIC_IMAGES", "TRAIN", "INCEPTION")
OF_DRAWING = ("CANDIDATES", "IMAGES_PER_CLASS")  # of images, with a finished generator
ADVICE = "Run the cell below the parameters again, and all that follow"
# of this process: its globals, its parameters when they were checked, and those that its data were made with
_notebook = {"values": {}, "checked": {}, "made_with": {}}


def check_parameters(values, **limits):
    """Return the parameters among `values` (a notebook's globals), those in capitals, as a dictionary.

    Each has to be within LIMITS, or within `limits` where they name it; one that neither names is free. Raises `ValueError`
    naming all that are wrong.
    """
    limits = LIMITS | limits
    parameters = {name: value for name, value in values.items() if name.isupper() and _is_plain(value)}
    if found := wrong(parameters, limits):
        raise ValueError("wrong parameters:\n  " + "\n  ".join(found))
    for name, other in _misspelt(parameters, limits):
        print(f"{name} is no parameter of this notebook. Did you mean {other}?")
    left_out = NO_PART_OF_TRAINING + OF_DRAWING
    checked = {name: value for name, value in parameters.items() if name in limits and name not in left_out}
    _notebook.update(values=values, checked=checked)
    return parameters


def wrong(parameters, limits):
    """Return a line of words for each parameter that is not within the limit of its name."""
    pairs = [(name, value, limits[name]) for name, value in parameters.items() if name in limits]
    return [f"{name} = {value!r}: expected {_in_words(limit)}" for name, value, limit in pairs if not _is_within(value, limit)]


def made_with(**values):
    """Note the parameters that the notebook's data are made with."""
    _notebook["made_with"] |= values


def now():
    """Return the parameters of the notebook in this process that decide a training; empty where there is none.

    Says so where one has been changed since they were checked: what was made of it is out of date. Raises `ValueError` where the
    data were made with another.
    """
    values = {name: _notebook["values"].get(name) for name in _notebook["checked"]}
    made = {name: value for name, value in _notebook["made_with"].items() if name in values}
    if stale := differences(made, values):
        raise ValueError(f"the data are not those that the parameters name: {stale}. Run the cells under 'Data' again.")
    if changed := differences(_notebook["checked"], values):
        print(f"Changed since the parameters were checked: {changed}. {ADVICE}.")
    return values


def refuse_others(trained_with, recorded):
    """Refuse to record a training under other parameters than it had. Raises `ValueError` naming all that differ."""
    if changed := differences({name: recorded.get(name, value) for name, value in trained_with.items()}, trained_with):
        raise ValueError(f"the record would not say what was trained: {changed}. {ADVICE}")


def differences(checked, values):
    return ", ".join(f"{name} was {was!r} and is {values[name]!r}" for name, was in checked.items() if values[name] != was)


def _misspelt(parameters, limits):
    """Return pairs of a name and the parameter that it nearly is. A name far from all, or of a list, is the reader's own."""
    others = [name for name, value in parameters.items() if name not in limits and not isinstance(value, (list, tuple))]
    near = {name: difflib.get_close_matches(name, limits, 1, cutoff=0.85) for name in others}
    return [(name, matches[0]) for name, matches in near.items() if matches]


def _is_plain(value):
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))


def _is_within(value, limit):
    if limit is str:
        return isinstance(value, str)
    if isinstance(limit, set):
        return isinstance(value, str) and (value in limit or Path(value).expanduser().is_file())
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
    if isinstance(limit, set):
        return f"{' or '.join(map(repr, sorted(limit)))}, or the path of a file that is there, as seen from {Path.cwd()}"
    if isinstance(limit, re.Pattern):
        return IN_WORDS[limit]
    if _is_choice(limit):
        return f"one of {limit[:10]}"
    return f"{'a whole number' if isinstance(limit[0], int) else 'a number'} from {limit[0]} to {limit[1]}"
