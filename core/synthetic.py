"""Folders of synthetic images, one PNG per image: chosen, written, read and checked."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
from PIL import Image

import core
from core import devices, pictures
from core.cifar100 import DataError
from core.files import array_digest, replace, short_digest

# Written by Windows, macOS and network drives; letter case does not matter.
IGNORED = ("manifest.json", "thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")
ADVICE = "Run notebook 1 with the same DATASET and REAL_FRACTION, or set SYNTHETIC_PER_CLASS = 0"


def folder_of_run(folder_name: str) -> Path:
    """Return the folder of the images that notebook 1 draws on this machine; git ignores it."""
    return core.ROOT / "synthetic_images" / "runs" / folder_name


def choose(folder_name: str, source: str = "auto") -> tuple[Path, str]:
    """Return a folder of images and in words whose they are. Raises `DataError` without one.

    `source` is "own", "published", or "auto", which prefers your own.
    """
    own = folder_of_run(folder_name)
    with _locked(own):
        has_own = own.is_dir()
    if source == "own" or (source == "auto" and has_own):
        folder, whose = own, "your own, drawn by notebook 1 on this machine"
    else:
        folder, whose = core.ROOT / "synthetic_images" / folder_name, "the published ones"
    if not folder.is_dir():
        hint = "SYNTHETIC_IMAGES = 'auto' uses your own. " if source == "published" else ""
        raise DataError(f"no GAN images in {folder}. {hint}{ADVICE}")
    return folder, whose


def save(folder: Path, images: np.ndarray, labels: np.ndarray, class_names: list[str],
         manifest: dict) -> None:  # fmt: skip
    """Replace `folder` as a whole by manifest.json and one PNG per image, in a folder per class."""
    if not devices.is_chief():
        return
    order = np.argsort(labels, kind="stable")  # the order in which `load` reads them
    images, labels = images[order], np.asarray(labels, int)[order]
    manifest = manifest | {"images": len(images), "images_sha256": array_digest(images, labels)}
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    with _locked(folder) as previous:  # of simultaneous runs, the last one's images stay
        for leftover in (partial, previous):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        for label in np.unique(labels):
            (partial / class_names[label]).mkdir(parents=True)
            for i, image in enumerate(images[labels == label]):
                path = partial / class_names[label] / f"{i:04d}.png"
                Image.fromarray(image).save(path, optimize=True)
        (partial / "manifest.json").write_text(text, encoding="utf-8")
        if folder.exists():
            replace(folder, previous)
        replace(partial, folder)
        shutil.rmtree(previous, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Lock a folder, and undo the first rename of a `save` that was killed before its second."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    with filelock.FileLock(Path(tempfile.gettempdir()) / f"{name}.lock"):  # unseen by git
        previous = folder.with_name(f".{folder.name}.before")
        if previous.is_dir() and not folder.exists():
            replace(previous, folder)
        yield previous


def load(folder: Path, class_names: list[str]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return images `uint8` (n, 32, 32, 3), labels (n,) and the manifest, class by class.

    Any image that Pillow reads will do, of any size. Raises `DataError` that names all faults at
    once, or if the manifest belongs to other images.
    """
    images, labels, resized, faults = [], [], 0, _wrong_entries(folder, class_names)
    advice = f"Expected folders named {', '.join(class_names)}" if faults else ""
    for label, name in enumerate(class_names):
        for path in [] if (folder / name).is_symlink() else _entries(folder / name):
            try:
                if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                    raise DataError(f"{path}: expected an image, found a link out of the folder")
                image = pictures.open_rgb(path, max_pixels=2**24)
            except DataError as error:
                faults.append(str(error))
                continue
            resized += image.size != (32, 32)
            images.append(np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS), "uint8"))
            labels.append(label)
    if faults or not images:
        advice = advice if images or advice else ADVICE
        counts = f"{folder}: {len(faults)} unusable entries, {len(images)} images. {advice}"
        raise DataError("\n  ".join([counts, *faults[:50]]))
    images, labels, manifest = np.stack(images), np.array(labels), read_manifest(folder)
    digest = array_digest(images, labels)
    if manifest.get("images_sha256", digest) != digest:
        advice = "Run notebook 1 again or, if the images are your own, remove manifest.json."
        raise DataError(f"{folder}: its manifest.json describes other images. {advice}")
    print(f"{len(images):,} synthetic images read, {resized} of them resized to 32x32")
    return images, labels, manifest


def _wrong_entries(folder: Path, class_names: list[str]) -> list[str]:
    """Return a line for each entry that is no class folder."""
    faults = []
    for path in _entries(folder):
        if path.name not in class_names or not path.is_dir():
            faults.append(f"{path}: not a class folder")
        elif path.is_symlink():
            faults.append(f"{path}: a link. Put the folder itself here")
    return faults


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.name.lower() not in IGNORED)


def read_manifest(folder: Path) -> dict:
    """Return manifest.json as a dictionary, empty if there is none. Raises `DataError`."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(manifest).__name__}")
    return manifest


def kind(images: np.ndarray, manifest: dict) -> str:
    """Return a digest, equal for GANs that differ in their seed alone; without manifest, unique."""
    if "parameters" not in manifest:
        return array_digest(images)
    given = manifest["parameters"].items()
    return short_digest({name: value for name, value in given if name not in ("SEED", "RUN")})


def check_manifest(manifest: dict, **expected: object) -> None:
    """Raise `DataError` if images were made for another dataset, seed or split than `expected`."""
    wrong = [key for key in expected if manifest.get(key, expected[key]) != expected[key]]
    if wrong:
        words = [f"{key}: {manifest[key]!r}, expected {expected[key]!r}" for key in wrong]
        raise DataError("the synthetic images belong to another run: " + "; ".join(words))
