"""Folders of synthetic images, one PNG an image: written, found, read and checked."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import filelock
import numpy as np
from PIL import Image

import core
from core import cifar100, devices, pictures
from core.cifar100 import DataError
from core.digests import digest

LEFT_OUT = ("manifest.json", "Thumbs.db", "desktop.ini")  # the last two are Windows's own
ADVICE = (
    "Run notebook 1 first, with the same DATASET, REAL_FRACTION and VARIANT. Or set SYNTHETIC_PER_CLASS = 0 "
    '(of make: ARGS="-p SYNTHETIC_PER_CLASS 0")'
)


def folder_of_run(part):
    """Return the folder of the images that this machine's notebook 1 has drawn; git ignores it."""
    return core.ROOT / "synthetic_images" / "runs" / part


def choose(part, source="auto"):
    """Return a folder of images, and in words whose they are: "own" ones, "published" ones, or "auto": own ones if any.

    Raises `DataError` where there is none.
    """
    own = folder_of_run(part)
    with _lock(own):
        _take_up(own)
    folders = [core.ROOT / "synthetic_images" / each for each in cifar100.published(part)]
    published = next((folder for folder in folders if folder.is_dir()), folders[-1])
    if source == "own" or (source == "auto" and own.is_dir()):
        folder, whose = own, "your own, drawn by notebook 1 on this machine"
    else:
        folder, whose = published, "the published ones"
    if not folder.is_dir():
        advice = "Your own are taken by SYNTHETIC_IMAGES = 'auto'. " if source == "published" else ""
        raise DataError(f"no GAN images in {folder}. {advice}{ADVICE}")
    return folder, whose


def save(folder, images, labels, class_names, manifest):
    """Write `folder`/<class name>/<0000>.png and manifest.json, in place of what an earlier run left there."""
    if not devices.is_chief():
        return
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):  # one process at a time; the last one's images stay
        _take_up(folder)
        _save(folder, images, labels, class_names, manifest)


def _lock(folder):
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return filelock.FileLock(Path(tempfile.gettempdir()) / f"{name}.lock")


def _take_up(folder):
    """Give back its name to a folder that a run was killed while it replaced."""
    before = folder.with_name(f".{folder.name}.before")
    if before.is_dir() and not folder.exists():
        before.rename(folder)


def _save(folder, images, labels, class_names, manifest):
    partial, before = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "before"))
    for left_by_a_killed_run in (partial, before):
        shutil.rmtree(left_by_a_killed_run, ignore_errors=True)
    for label in np.unique(labels):
        (partial / class_names[label]).mkdir(parents=True)
        for i, image in enumerate(images[labels == label]):
            Image.fromarray(image).save(partial / class_names[label] / f"{i:04d}.png", optimize=True)
    manifest = manifest | {"images": len(images), "images_sha256": digest(*_by_class(images, labels))}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(before)
    partial.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def _by_class(images, labels):
    order = np.argsort(labels, kind="stable")
    return images[order], np.asarray(labels, int)[order]


def load(folder, class_names):
    """Return the images `uint8` (n, 32, 32, 3), labels (n,) and manifest in `folder`, class by class.

    Any image Pillow reads will do: other sizes are resized with Lanczos, other modes made RGB, of an animation the
    first frame is taken. Raises `DataError` with all unreadable files and unknown class folders at once, and where the
    manifest names other images.
    """
    folder, images, labels, wrong, resized = Path(folder), [], [], [], 0
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of synthetic images, found none. {ADVICE}")
    entries = sorted(path for path in folder.iterdir() if path.name not in LEFT_OUT and not path.name.startswith("."))
    wrong += [f"{path}: not a class folder" for path in entries if path.name not in class_names or not path.is_dir()]
    for label, name in enumerate(class_names):
        for path in sorted(path for path in (folder / name).glob("[!.]*") if path.name not in LEFT_OUT):
            try:
                image, size = read_image(path, folder)
            except DataError as error:
                wrong.append(str(error))
                continue
            resized += size != (32, 32)
            images.append(image)
            labels.append(label)
    if wrong or not images:
        advice = "" if images else f". {ADVICE}"
        raise DataError("\n  ".join([f"{folder}: {len(wrong)} unusable entries, {len(images)} images{advice}", *wrong[:50]]))
    images, labels, manifest = np.stack(images), np.array(labels), read_manifest(folder)
    if manifest.get("images_sha256", found := digest(images, labels)) != found:
        advice = "Run notebook 1 again. If the images are your own, remove manifest.json"
        raise DataError(f"{folder}: these are not the images that its manifest.json names. {advice}.")
    print(f"{len(images):,} synthetic images read, {resized} of them resized to 32x32")
    return images, labels, manifest


def read_image(path, folder):
    """Return one image as `uint8` (32, 32, 3) and the size it had. Raises `DataError`, also for links out of `folder`."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("a link out of the folder")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected an image, found {type(error).__name__}: {error}") from error
    image = pictures.open_rgb(path, most=2**24)
    small = image if image.size == (32, 32) else image.resize((32, 32), Image.Resampling.LANCZOS)
    return np.asarray(small, "uint8"), image.size


def read_manifest(folder):
    """Return manifest.json as a dictionary, empty where there is none. Raises `DataError`."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(manifest).__name__}")
    return manifest


def check_manifest(manifest, **expected):
    """Refuse synthetic images that were made for another dataset, seed or training split than `expected`."""
    differ = [
        f"{key}: {manifest[key]!r}, expected {value!r}" for key, value in expected.items() if manifest.get(key, value) != value
    ]
    if differ:
        raise DataError("the synthetic images belong to another run; draw them again. " + "; ".join(differ))
