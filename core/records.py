"""Records: one JSON file per run, in runs/ on this machine and, once published, in results/."""

import contextlib
import functools
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Set
from importlib import metadata
from pathlib import Path

import keras

import core
from core import devices
from core.cifar100 import DataError
from core.files import atomic_write, file_sha256

REQUIRED = {"name", "dataset", "model", "seed", "parameters", "steps", "seconds", "history"}


def run_folder(folder_name: str) -> Path:
    """Create and return runs/<folder name>; workers other than the first get a temporary folder."""
    root = core.ROOT if devices.is_chief() else Path(_temporary_folder().name)
    folder = root / "runs" / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_temporary_folder = functools.cache(tempfile.TemporaryDirectory)  # exists until the process ends


def checkpoint_folder(folder_name: str, run: str) -> Path:
    """Return the folder of a run's checkpoints, which all workers share."""
    return core.ROOT / "runs" / folder_name / "checkpoints" / run


def environment() -> dict:
    """Return the device, versions, commit and date, which every record includes."""
    versions = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for package in ("keras", "numpy", "tensorflow", "torch", "jax"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"device": devices.device(), "versions": versions, "commit": _commit(),
            "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def _commit() -> str | None:
    """Return the current commit, or None outside git; "-dirty-..." marks uncommitted changes."""
    code = ("--", "*.py", "notebooks", "requirements.txt", "recipes.toml")
    head = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", *code) + _git("diff", "HEAD", *code)
    if not head:
        return None
    return f"{head}-dirty-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(core.ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()
    except OSError:  # git is not installed
        return ""


def write(folder: Path, name: str, **record) -> Path:
    """Write the record of a run, with its environment, to `folder`/<name>.json; return that path.

    The file is written atomically. Raises `ValueError` if a key of `REQUIRED` is missing or if a
    number is not finite.
    """
    record = {"name": name} | record | environment()
    if missing := REQUIRED - record.keys():
        raise ValueError(f"The record {name} has no {', '.join(sorted(missing))}")
    path = folder / f"{name}.json"
    with atomic_write(path) as file:
        file.write(json.dumps(record, indent=1, allow_nan=False).encode())
    return path


def read(folder_name: str, published: bool = False) -> dict[str, dict]:
    """Return all records in a folder of runs/ or results/, by name.

    Raises `DataError` if a file is damaged or is not a record.
    """
    folders = {core.ROOT / ("results" if published else "runs") / folder_name}
    if not published:  # a worker other than the first also has a folder of its own
        folders.add(run_folder(folder_name))
    paths = sorted(path for folder in folders for path in folder.glob("*.json"))
    return {path.stem: read_json(path, REQUIRED) for path in paths}


def read_json(path: Path, keys: Set[str] = frozenset()) -> dict:
    """Return the JSON object in a file. Raises `DataError` unless it has all `keys`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}, not an object")
        if missing := keys - value.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except (ValueError, OSError, RecursionError) as error:
        message = f"{path} is not a usable JSON file: {error}. Restore or delete it."
        raise DataError(message) from error
    return value


def read_all(folder_name: str) -> list[dict]:
    """Return all published records and all of this machine's records.

    Their `source` is "published" or "yours". A record that is both is listed once, as published.
    """
    published, own = read(folder_name, published=True), read(folder_name)
    for name in own.keys() & published.keys():
        mine, other = own[name], published[name]
        if all(mine.get(key) == other.get(key) for key in ("history", "test_accuracy")):
            del own[name]
    sources = (("published", published), ("yours", own))
    return [record | {"source": source} for source, found in sources for record in found.values()]


def find(folder_name: str, file_name: str) -> Path:
    """Return the path of a file in runs/ or else in results/. Raises `DataError` if not found."""
    folders = run_folder(folder_name), core.ROOT / "results" / folder_name
    for folder in folders:
        if (folder / file_name).exists():
            return folder / file_name
    places = " or ".join(map(str, folders))
    raise DataError(f"There is no {file_name} in {places}. Run the notebook that trains it first.")


def image_manifest(folder_name: str, run: str, **changes) -> dict:
    """Return the part of a GAN's record that is copied into the manifest of its images.

    `changes` are the parameters that differ when the images are generated. Raises `DataError` if
    the checksum of the generator's file is not the one in the record.
    """
    keys = ("dataset", "dataset_md5", "train_digest", "seed", "generator_sha256", "steps")
    record = read_json(find(folder_name, f"{run}.json"), set(keys))
    generator = find(folder_name, f"{run}_generator.keras")
    if file_sha256(generator) != record["generator_sha256"]:
        advice = "Run notebook 1 with TRAIN = True."
        raise DataError(f"{generator} does not belong to the record {run}.json. {advice}")
    kept = {key: record[key] for key in keys}
    return {"run": run} | kept | {"parameters": record["parameters"] | changes}
