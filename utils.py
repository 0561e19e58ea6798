"""What the three notebooks share: load, split, merge, batch, record, plot. No model lives here."""

import functools
import hashlib
import json
import logging
import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

# Read when TensorFlow is loaded, so set before Keras is imported. oneDNN's convolutions make a training step on a
# CPU without AVX-512 1.9 times faster; TensorFlow switches them on by itself only where AVX-512 is found.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.cpu_count() == 2:  # one for each operation, two operations at a time: `Conv2D` makes two of one
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import matplotlib.pyplot as plt
import numpy as np
import seaborn
from PIL import Image

from cifar100 import DATASETS, ROOT, DataError, load, part  # noqa: F401
from devices import (  # noqa: F401
    PRECISIONS,
    Adam,
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    device,
    has_gpu,
    is_chief,
    set_precision,
    strategy,
)

logging.getLogger("tensorflow").setLevel("ERROR")  # it takes each model a notebook builds for a mistake

GAN_RUN = re.compile(r"gan\w*")  # names of GAN trainings, apart from those of classifiers
VGG_RUN = re.compile(r"vgg16(?!\w*_gan$)\w*")  # those of notebook 2, which adds "_gan" itself
VARIANT = re.compile(r"[a-z]*")  # words for a folder of results
SYNTHETIC = ROOT / "synthetic_images"

# ---------------------------------------------------------------------------------------------------- split


def split(labels, validation=0.1, real_fraction=1.0, seed=0):
    """Return disjoint, sorted train and validation indices, stratified by class; they depend on `seed` alone.

    `real_fraction` keeps that part of the training split; the validation split stays as it is.
    """
    rng = np.random.default_rng(seed)
    train, held_out = [], []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        n = round(len(indices) * validation)
        held_out.append(indices[:n])
        train.append(indices[n:][: max(1, round((len(indices) - n) * real_fraction))])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def digest(*arrays):
    """Return one sha256 over the arrays' shapes and bytes: equal digests mean equal content and order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(repr((array.shape, array.dtype.str)).encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


# ---------------------------------------------------------------------------------------------------- normalise


def to_unit(images):
    """`uint8` 0..255 to `float32` -1..1, the range of the generator's tanh."""
    return images.astype("float32") / 127.5 - 1.0


def to_bytes(images):
    """`float` -1..1 to `uint8` 0..255: the inverse of `to_unit`."""
    return np.clip(np.round((np.asarray(images, "float32") + 1.0) * 127.5), 0, 255).astype("uint8")


def channel_statistics(images):
    """Return mean and variance (3,) of each channel, on the 0..255 scale, without a float copy of the images."""
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    levels = np.arange(256)
    mean = np.array([np.average(levels, weights=count) for count in counts])
    return mean, np.array([np.average((levels - m) ** 2, weights=c) for m, c in zip(mean, counts, strict=True)])


# ---------------------------------------------------------------------------------------------------- merge


def save_synthetic(folder, images, labels, class_names, manifest):
    """Write `folder`/<class name>/<0000>.png and manifest.json, in place of what an earlier run left there."""
    if not is_chief():
        return
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for label in np.unique(labels):
        (partial / class_names[label]).mkdir(parents=True)
        for i, image in enumerate(images[labels == label]):
            Image.fromarray(image).save(partial / class_names[label] / f"{i:04d}.png", optimize=True)
    manifest = manifest | {"images": len(images), "images_sha256": digest(*_by_class(images, labels))}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def file_sha256(path):
    """Return the sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _by_class(images, labels):
    order = np.argsort(labels, kind="stable")
    return images[order], np.asarray(labels, int)[order]


def load_synthetic(folder, class_names):
    """Return the images `uint8` (n, 32, 32, 3), labels (n,) and manifest in `folder`, class by class.

    Any image Pillow reads will do: other sizes are resized with Lanczos, other modes made RGB, of an animation the
    first frame is taken. Raises `DataError` with all unreadable files and unknown class folders at once.
    """
    folder, images, labels, wrong, resized = Path(folder), [], [], [], 0
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of synthetic images, found none. Run gan_synthetic_images.ipynb first.")
    entries = sorted(path for path in folder.iterdir() if path.name != "manifest.json" and not path.name.startswith("."))
    wrong += [f"{path}: not a class folder" for path in entries if path.name not in class_names or not path.is_dir()]
    for label, name in enumerate(class_names):
        for path in sorted((folder / name).glob("[!.]*")):
            try:
                image, size = read_image(path, folder)
            except DataError as error:
                wrong.append(str(error))
                continue
            resized += size != (32, 32)
            images.append(image)
            labels.append(label)
    if wrong or not images:
        raise DataError(f"{folder}: {len(wrong)} unusable entries, {len(images)} images\n  " + "\n  ".join(wrong[:50]))
    print(f"{folder.name}: {len(images):,} synthetic images read, {resized} of them resized to 32x32")
    return np.stack(images), np.array(labels), read_manifest(folder)


def read_image(path, folder):
    """Return one image as `uint8` (32, 32, 3) and the size it had. Raises `DataError`, also for links out of `folder`."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("a link out of the folder")
        if not path.is_file():  # a folder, a broken link, or a pipe that would never end
            raise ValueError("not a file")
        with Image.open(path) as image:
            size = image.size
            if size[0] * size[1] > 2**24:
                raise ValueError(f"{size[0]}x{size[1]} pixels, at most 16 million are read")
            if image.mode[0] in "IF":  # 16 bits and more a pixel: Pillow would clip them to 8
                levels = np.nan_to_num(np.asarray(image, float))
                image = Image.fromarray((levels / max(levels.max(), 255, 65535 * (levels.max() > 255)) * 255).astype("uint8"))
            image = image.convert("RGB")
        image = image if size == (32, 32) else image.resize((32, 32), Image.Resampling.LANCZOS)
        return np.asarray(image, "uint8"), size
    except Exception as error:  # a broken image can raise anything
        raise DataError(f"{path}: expected an image, found {type(error).__name__}: {error}") from error


def read_manifest(folder):
    """Return manifest.json as a dictionary, empty where there is none. Raises `DataError`."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text()) if path.exists() else {}
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


def merge(images, labels, synthetic_images, synthetic_labels, per_class, seed=0):
    """Add the first `per_class` synthetic images of each class to a training split and shuffle by `seed`.

    Raises `DataError` where a class of the training split has fewer.
    """
    chosen = [np.flatnonzero(synthetic_labels == label)[:per_class] for label in np.unique(labels)]
    short = min(len(indices) for indices in chosen)
    if short < per_class:
        raise DataError(f"synthetic_per_class = {per_class}: a class has only {short} synthetic images")
    chosen = np.concatenate(chosen).astype(int)
    order = np.random.default_rng(seed).permutation(len(images) + len(chosen))
    merged = np.concatenate([images, synthetic_images[chosen]])
    return merged[order], np.concatenate([labels, synthetic_labels[chosen]])[order]


# ---------------------------------------------------------------------------------------------------- train


def warmup_cosine(peak, steps, warmup):
    """Return a learning rate that rises linearly to `peak` in `warmup` steps and falls to zero at step `steps`."""
    warmup = min(warmup, steps - 1)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(peak, steps)
    return keras.optimizers.schedules.CosineDecay(peak / 10, steps - warmup, warmup_target=peak, warmup_steps=warmup)


def check_parameters(values, **limits):
    """Return the parameters named in `limits` as a dictionary, or raise `ValueError` naming all that are wrong.

    A limit is a pair of ints, a pair of floats (an int is welcome too), a tuple of choices, the type `str`, or a regular
    expression that text has to match.
    """
    wrong = []
    for name, limit in limits.items():
        value = values[name]
        if limit is str:
            right = isinstance(value, str)
        elif isinstance(limit, re.Pattern):
            right = isinstance(value, str) and bool(limit.fullmatch(value))
        elif _is_choice(limit):
            right = any(type(value) is type(choice) and value == choice for choice in limit)
        else:
            kinds = int if isinstance(limit[0], int) else (int, float)
            right = isinstance(value, kinds) and not isinstance(value, bool) and limit[0] <= value <= limit[1]
        if not right:
            wrong.append(f"{name} = {value!r}: expected {_in_words(limit)}")
    if wrong:
        raise ValueError("wrong parameters:\n  " + "\n  ".join(wrong))
    return {name: values[name] for name in limits}


def _is_choice(limit):
    return len(limit) != 2 or isinstance(limit[0], (bool, str))


def _in_words(limit):
    if limit is str:
        return "text"
    if isinstance(limit, re.Pattern):
        return f"text like {limit.pattern}"
    return f"one of {limit[:10]}" if _is_choice(limit) else f"{type(limit[0]).__name__} {limit[0]} to {limit[1]}"


# ---------------------------------------------------------------------------------------------------- record

RECORD_KEYS = {
    "name", "notebook", "dataset", "dataset_md5", "model", "seed", "real_fraction", "synthetic_per_class", "parameters",
    "parameter_count", "epochs_run", "steps", "seconds", "history",
}  # fmt: skip


def environment():
    """Return devices, versions, commit and peak resident memory (MB), as they stand in every record."""
    replicas = strategy().num_replicas_in_sync  # first: a strategy of several machines comes before all else
    packages = ("tensorflow", "torch", "jax", "keras", "numpy")
    installed = {package: metadata.version(package) for package in packages if _installed(package)}
    return {
        "device": device(),
        "replicas": replicas,
        "versions": {"python": platform.python_version(), **installed, "backend": keras.backend.backend()},
        "commit": _commit(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit():
    """Return the commit, "-dirty" if code differs from it (what runs write does not count); None outside git."""
    head, changed = (
        subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False).stdout.strip()
        for command in (
            ("rev-parse", "--short", "HEAD"),
            ("status", "--porcelain", "--", "*.py", "notebooks", "requirements.txt"),
        )
    )
    return head + "-dirty" * bool(changed) if head else None


def _installed(package):
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def write_record(name, **record):
    """Write results/<part>/<name>.json, whole or not at all, and return its path."""
    record = {"name": name, **record, **environment()}
    if RECORD_KEYS - record.keys():
        raise ValueError(f"record {name}: missing {sorted(RECORD_KEYS - record.keys())}")
    folder, _ = part(record["dataset"], record["real_fraction"], record["parameters"].get("VARIANT", ""))
    path = results_folder(folder) / f"{name}.json"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("w") as file:
            json.dump(record, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def results_folder(part):
    """Return results/<part>, made if need be; for a worker other than the chief a folder that goes with the process."""
    folder = Path(ROOT if is_chief() else _scratch().name) / "results" / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint_folder(part, run):
    """Return the folder of a run's checkpoints, which the workers share: the chief writes, all read."""
    return ROOT / "results" / part / "checkpoints" / run


@functools.cache
def _scratch():
    return tempfile.TemporaryDirectory()  # kept by the cache; it removes itself when the process ends


def read_records(part):
    """Return all records of a part, by name. Raises `DataError` for one that is not whole."""
    records = {}
    folders = dict.fromkeys((ROOT / "results" / part, results_folder(part)))
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        try:
            records[path.stem] = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: expected a record in JSON, found {error}") from error
    return records


def comparison_table(records):
    """Return a Markdown table of classifiers' records, best test accuracy first."""
    columns = ("GAN images a class", "parameters", "epochs", "minutes", "train", "validation", "test", "test top-5")
    rows = [f"| model | {' | '.join(columns)} |", "|---|" + "---:|" * 8]
    for record in sorted(records, key=lambda record: -record["test_accuracy"]):
        shares = " | ".join(
            f"{100 * record[key]:.2f} %" for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_top5")
        )
        counts = " | ".join(f"{record[key]:,}" for key in ("synthetic_per_class", "parameter_count", "epochs_run"))
        counts += f" | {record['seconds'] / 60:.1f}"
        rows.append(f"| {record['model']} | {counts} | {shares} |")
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------------------------------------------- plot


def plot_curves(histories, title, path):
    """Plot loss and accuracy by epoch, training dashed and validation solid, a colour a run; save to `path`."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for colour, (name, history) in zip(seaborn.color_palette("colorblind"), histories.items(), strict=False):
        for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
            epochs = range(1, len(history[metric]) + 1)
            axis.plot(epochs, history[metric], "--", color=colour, label=f"{name}, training")
            axis.plot(epochs, history[f"val_{metric}"], "o-", ms=3, color=colour, label=f"{name}, validation")
    axes[0].set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    axes[1].set(title="Accuracy", xlabel="epoch", ylabel="accuracy (fraction of 1)")
    axes[1].legend(fontsize=9)
    save_figure(figure, title, path)


def plot_images(images, titles, title, path=None, columns=10):
    """Draw images `uint8` (n, 32, 32, 3) in rows of `columns`, each under its title if `titles`; save to `path`."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns, rows * (1.25 if titles else 1)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image)
        if titles:
            axis.set_title(titles[i], fontsize=7)
    save_figure(figure, title, path)


def show_classes(images, class_names, title, path):
    """Draw ten images of each of 100 classes, `uint8` (1000, 32, 32, 3) in class order, ten classes a column block."""
    mosaic = images.reshape(5, 20, 10, 32, 32, 3).transpose(1, 3, 0, 2, 4, 5).reshape(20 * 32, 5 * 320, 3)
    figure, axis = plt.subplots(figsize=(15, 4.8), layout="constrained")
    blank = np.full((20 * 32, 5, 140, 3), 255, np.uint8)
    mosaic = np.concatenate([blank, mosaic.reshape(20 * 32, 5, 320, 3)], axis=2).reshape(20 * 32, 5 * 460, 3)
    axis.imshow(mosaic)
    axis.axis("off")
    for i, name in enumerate(class_names):
        axis.text(i // 20 * 460 + 132, i % 20 * 32 + 16, name.replace("_", " "), ha="right", va="center", fontsize=8)
    save_figure(figure, title, path)


def save_figure(figure, title, path=None):
    """Give a figure its title, save it where `path` is given, and show it."""
    figure.suptitle(title)
    if path:
        figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.show()
