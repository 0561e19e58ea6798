"""Records: one JSON file per run, a reader's in runs/ and the published ones in results/."""

import functools
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

import keras

import core
from core import devices
from core.cifar100 import DataError
from core.files import atomic_write, file_sha256

REQUIRED = {"name", "dataset", "model", "seed", "parameters", "steps", "seconds", "history"}
READABLE = {"name", "dataset", "seed", "parameters"}  # in every record that was ever published


def run_folder(folder_name: str) -> Path:
    """Return runs/<folder name>, and create it.

    Workers other than the first get a temporary folder, which is removed when the process ends.
    """
    root = core.ROOT if devices.is_chief() else Path(_scratch().name)
    folder = root / "runs" / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # the cache keeps it


def checkpoint_folder(folder_name: str, run: str) -> Path:
    """Return the folder of a run's checkpoints, which all workers share."""
    return core.ROOT / "runs" / folder_name / "checkpoints" / run


def environment() -> dict:
    """Return device, versions, commit and date, as every record holds them."""
    versions = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for package in ("keras", "numpy", "tensorflow", "torch", "jax"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": devices.device(),
        "versions": versions,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    """Return the commit, or None outside git.

    If code differs from the commit, "-dirty-" and a digest of the difference follow.
    """
    code = ("--", "*.py", "notebooks", "requirements.txt", "recipes.toml")
    head = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", *code) + _git("diff", "HEAD", *code)
    if not head:
        return None
    return f"{head}-dirty-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else head


def _git(*words: str) -> str:
    command = ["git", "-C", str(core.ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip()


def write(folder: Path, name: str, **record) -> Path:
    """Write a run's record to `folder`/<name>.json, whole or not at all, and return the path.

    `record` holds what the run really used: what `training.fit` returned, and what was measured.
    Raises `ValueError` if something required is missing.
    """
    record = {"name": name} | record | environment()
    if missing := REQUIRED - record.keys():
        raise ValueError(f"the record {name} lacks {', '.join(sorted(missing))}")
    path = folder / f"{name}.json"
    with atomic_write(path) as file:
        file.write(json.dumps(record, indent=1, allow_nan=False).encode())
    return path


def read(folder_name: str, published: bool = False) -> dict[str, dict]:
    """Return all records in runs/<folder name> or results/<folder name>, by name.

    Raises `DataError` naming a file that is not a record.
    """
    if published:
        folders = {core.ROOT / "results" / folder_name}
    else:  # a worker other than the first also has a folder of its own
        folders = {run_folder(folder_name), core.ROOT / "runs" / folder_name}
    paths = sorted(path for folder in folders for path in folder.glob("*.json"))
    return {path.stem: _read_one(path) for path in paths}


def _read_one(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a record in JSON, found {error}") from error
    if not isinstance(record, dict) or READABLE - record.keys():
        raise DataError(f"{path}: expected a record with {', '.join(sorted(READABLE))}")
    return record


def read_all(folder_name: str) -> list[dict]:
    """Return the published records and this machine's, told apart by the key `source`.

    It is "published" or "yours". A published record that is also this machine's is listed once.
    """
    published, own = read(folder_name, published=True), read(folder_name)
    for name in own.keys() & published.keys():
        same = ("history", "test_accuracy")
        if all(own[name].get(key) == published[name].get(key) for key in same):
            del own[name]
    sources = (("published", published), ("yours", own))
    return [each | {"source": source} for source, made in sources for each in made.values()]


def find(folder_name: str, file_name: str) -> Path:
    """Return the path of a file of this machine's runs or, if there is none, a published one.

    Raises `DataError` if there is neither.
    """
    folders = run_folder(folder_name), core.ROOT / "results" / folder_name
    for folder in folders:
        if (folder / file_name).exists():
            return folder / file_name
    places = " or ".join(map(str, folders))
    raise DataError(f"no {file_name} in {places}: run the notebook with TRAIN = True first")


def classifier_files(folder: Path) -> list[Path]:
    """Return the files of classifiers in a folder."""
    return sorted(path for path in folder.glob("*.keras") if "_generator" not in path.stem)


def image_manifest(folder_name: str, run: str, **changes) -> dict:
    """Return what the manifest of a GAN's images takes from its record.

    `changes` are parameters of drawing that differ from those of training. Raises `DataError` if
    the generator is not that of the record.
    """
    record = _read_one(find(folder_name, f"{run}.json"))
    generator = find(folder_name, f"{run}_generator.keras")
    if file_sha256(generator) != record["generator_sha256"]:
        advice = "Run notebook 1 with TRAIN = True"
        raise DataError(f"{generator} does not belong to the record {run}.json. {advice}.")
    keys = ("dataset", "dataset_md5", "train_digest", "seed", "generator_sha256", "steps")
    kept = {key: record[key] for key in keys}
    return {"run": run} | kept | {"parameters": record["parameters"] | changes}
