"""Records: one JSON file a run, a reader's in runs/, ours in results/; and the tables made of them."""

import contextlib
import csv
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import keras
import numpy as np

import core
from core import cifar100, devices, export, measures, parameters
from core.digests import file_sha256

KEYS = {
    "name", "notebook", "dataset", "dataset_md5", "model", "seed", "real_fraction", "synthetic_per_class", "parameters",
    "parameter_count", "epochs_run", "steps", "seconds", "history",
}  # fmt: skip
OF_ALL = {"name", "dataset", "seed", "parameters"}  # what the study's records have too

# ---------------------------------------------------------------------------------------------------- folders


def run_folder(part):
    """Return runs/<part>, made if need be; for a worker other than the chief a folder that goes with the process."""
    folder = Path(core.ROOT if devices.is_chief() else _scratch().name) / "runs" / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint_folder(part, run):
    """Return the folder of a run's checkpoints, which the workers share: the chief writes, all read."""
    return core.ROOT / "runs" / part / "checkpoints" / run


@functools.cache
def _scratch():
    return tempfile.TemporaryDirectory()  # kept by the cache; it removes itself when the process ends


# ---------------------------------------------------------------------------------------------------- write and read


def environment():
    """Return devices, versions, commit and peak resident memory (MB), as they stand in every record."""
    replicas = devices.strategy().num_replicas_in_sync  # first: a strategy of several machines comes before all else
    packages = ("tensorflow", "torch", "jax", "keras", "numpy")
    installed = {package: metadata.version(package) for package in packages if _installed(package)}
    return {
        "device": devices.device(),
        "replicas": replicas,
        "versions": {"python": platform.python_version(), **installed, "backend": keras.backend.backend()},
        "commit": _commit(),
        "peak_memory_mb": peak_memory_mb(),
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory_mb():
    """Return the peak resident memory of this process (MB), or None on Windows, which has no such count."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024**2 if sys.platform == "darwin" else 1024)


def _commit():
    """Return the commit, with "-dirty" and a digest of the difference if code differs from it; None outside git."""
    code = ("*.py", "notebooks", "requirements.txt", "recipes.toml")
    commands = ("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", *code), ("diff", "HEAD", "--", *code)
    try:
        head, changed, diff = (
            subprocess.run(
                ["git", "-C", str(core.ROOT), *command], capture_output=True, encoding="utf-8", check=False
            ).stdout.strip()
            for command in commands
        )
    except OSError:  # no git
        return None
    difference = "-dirty-" + hashlib.sha256((changed + diff).encode()).hexdigest()[:8] if changed else ""
    return f"{head}{difference}" if head else None


def _installed(package):
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def write(name, **record):
    """Write runs/<part>/<name>.json, whole or not at all, and return its path.

    Raises `ValueError` where something is missing, or where the training had other parameters than the record's.
    """
    parameters.refuse_others(record.pop("trained_with", {}), record.get("parameters", {}))
    record = {"name": name, **record, **environment()}
    if KEYS - record.keys():
        raise ValueError(f"record {name}: missing {sorted(KEYS - record.keys())}")
    return write_whole(_folder_of(record) / f"{name}.json", record)


def _folder_of(record):
    """Return the folder that a notebook's record and files are written to."""
    return run_folder(cifar100.folder(record["dataset"], record["parameters"] | {"REAL_FRACTION": record["real_fraction"]}))


def write_whole(path, record):
    """Write a record to `path`, whole or not at all, and return the path."""
    with whole(path) as file:
        file.write(json.dumps(record, indent=1, allow_nan=False).encode())
    return path


@contextlib.contextmanager
def whole(path):
    """Open a binary file that takes the place of `path` at the end of a `with` block; on an error nothing of it is left."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def evaluate_and_write(name, trained, run, data, train, validation, **record):
    """Save a finished classifier, measure the saved one, write its record, and return its test probabilities (10,000, 100).

    The file is runs/<part>/<name>.keras (core/export.py). `run` is what `checkpoints.fit` returned; `train` and `validation` are
    indices. It reads the test split.
    """
    parameters.refuse_others(run.get("trained_with", {}), record["parameters"])
    expected = len(train) + 100 * record["synthetic_per_class"]
    if run.get("trained_on", expected) != expected:
        print(f"{name}: trained on {run['trained_on']:,} images. The parameters say {expected:,}: did you change that by hand?")
    file = export.save(trained, _folder_of({"dataset": data.name} | record) / f"{name}.keras")
    saved = keras.saving.load_model(file)  # what others will use, so what is measured
    scores, probabilities = measures.evaluate(saved, data, train, validation)
    write(
        name, dataset=data.name, dataset_md5=data.md5, train_images=len(train), precision=keras.config.dtype_policy().name,
        optimizer=_name_of_optimizer(trained),
        parameter_count=trained.count_params(), epochs_run=len(run["history"]["loss"]), weights_sha256=file_sha256(file),
        **scores, **run, **record,
    )  # fmt: skip
    printed = (f"{key} {value:.4f} " for key, value in scores.items() if key != "test_by_class")
    print(f"{name:10}", *printed, f"{run['seconds'] / 60:.1f} min")
    return probabilities


def _name_of_optimizer(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # within what scales the loss, in float16
    return type(optimizer).__name__.lower()


def read(part, published=False):
    """Return all records of a part by name: this machine's or, on request, the published ones.

    Raises `DataError` for one that is not whole.
    """
    folder = core.ROOT / "results" / part if published else run_folder(part)
    folders = {folder} if published else {folder, core.ROOT / "runs" / part}  # a worker has a folder of its own beside it
    records = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise cifar100.DataError(f"{path}: expected a record in JSON, found {error}") from error
        if not isinstance(record, dict) or OF_ALL - record.keys():
            raise cifar100.DataError(f"{path}: expected a record, with {', '.join(sorted(OF_ALL))} and more")
        records[path.stem] = record
    return records


def read_both(part):
    """Return the records of a part in a list, this machine's ("yours") and the published, told apart by the key `whose`.

    A published record that is also this machine's is listed once, as published.
    """
    published = read(part, published=True)
    same = ("definition", "history", "test_accuracy")
    own = read(part)
    twice = [name for name in own.keys() & published.keys() if all(own[name].get(k) == published[name].get(k) for k in same)]
    own = {name: record for name, record in own.items() if name not in twice}
    named = ((published, "published"), (own, "yours"))
    return [record | {"whose": whose} for records, whose in named for record in records.values()]


def study_effects():
    """Return the published effects of the study, a dictionary a row: `use` and `against` are words, the rest numbers."""
    with open(core.ROOT / "results" / "study" / "effects.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    words = ("use", "against")
    return [{key: value if key in words else float(value) for key, value in row.items()} for row in rows]


def find(part, name):
    """Return the path of a file of this machine's runs or, where there is none, of the published ones."""
    folders = run_folder(part), *(core.ROOT / "results" / each for each in cifar100.published(part))
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise cifar100.DataError(f"no {name} in {' or '.join(map(str, folders))}: run the notebook with TRAIN = True first")


def classifier_files(folder):
    """Return the files of classifiers' weights in a folder."""
    return sorted(path for path in folder.glob("*.keras") if not path.stem.endswith("_generator"))


def manifest(part, run, **changes):
    """Return the manifest of a GAN's images: the main fields of its record, with the parameters of the drawing in `changes`."""
    record = json.loads(find(part, f"{run}.json").read_text(encoding="utf-8"))
    if file_sha256(find(part, f"{run}_generator.keras")) != record["generator_sha256"]:
        raise cifar100.DataError(
            f"{run}_generator.keras does not belong to the record {run}.json: run notebook 1 with TRAIN = True"
        )
    keys = ("dataset", "dataset_md5", "train_digest", "seed", "real_fraction", "generator_sha256", "steps")
    return {"run": run} | {key: record[key] for key in keys} | {"parameters": record["parameters"] | changes}


# ---------------------------------------------------------------------------------------------------- tables


def comparison_table(records):
    """Return a Markdown table of classifiers' records, best test accuracy first, with a column `run` where they say whose."""
    told = any("whose" in record for record in records)
    words = "model", *["run"] * told, "optimiser"
    counts = "seed", "GAN images a class", "parameters", "epochs", "minutes", "on"
    columns = (*words, *counts, "train", "validation", "test", "test top-5", "test with mirror images")
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(words) + "---:|" * (len(columns) - len(words))]
    for record in sorted(records, key=lambda record: -record["test_accuracy"]):
        keys = ("train_accuracy", "val_accuracy", "test_accuracy", "test_top5", "test_flip_accuracy")
        shares = " | ".join(f"{100 * record[key]:.2f} %" if key in record else "" for key in keys)
        counts = " | ".join(f"{record[key]:,}" for key in ("seed", "synthetic_per_class", "parameter_count", "epochs_run"))
        counts += f" | {record['seconds'] / 60:.1f} | {device_in_short(record)}"
        run = f"{whose(record)} | " if told else ""
        rows.append(f"| {record['model']} | {run}{optimizer(record)} | {counts} | {shares} |")
    return "\n".join(rows) + "\n"


def parameters_but(record, *names):
    """Return a record's parameters without those named, those that change no training, and a reader's own constants."""
    left_out = *parameters.NO_PART_OF_TRAINING, *names
    return {key: value for key, value in record["parameters"].items() if key in parameters.LIMITS and key not in left_out}


def groups(runs):
    """Return lists of classifiers' records that differ in their seed alone: same model, parameters, images, code, precision.

    A seed counts once, whatever its runs are called.
    """
    found = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        keys = ("model", "synthetic_per_class", "synthetic_digest", "precision", "replicas", "trained_on", "whose")
        kind = [recipe_of(run), [run.get(key) for key in keys], parameters_but(run, "SEED"), device_in_short(run) == "GPU"]
        found.setdefault(json.dumps(kind, sort_keys=True), {}).setdefault(run["seed"], run)
    return [list(by_seed.values()) for by_seed in found.values()]


def recipe_of(run):
    """Return what names a run's network, code and all else but its seed and images: a digest or, before these, the commit."""
    return run.get("recipe") or run.get("commit")


def label(run):
    """Return in a few words which network a record is of, and how it was trained."""
    named = f" ({whose(run)})" if "whose" in run else ""
    return f"{run['model']}, {how(run)}{named}"


def whose(run):
    """Return whose a record is: "published", or "yours" with the run's name, its seed left out, which tells experiments apart."""
    return f"yours: {re.sub('_seed[0-9]+', '', run['name'])}" if run["whose"] == "yours" else run["whose"]


def how(run):
    """Return in a few words how the network of a record was trained; "GPU" too, as its minutes do not compare with a CPU's."""
    return f"{run['epochs_run']} epochs, {optimizer(run).capitalize()}" + ", GPU" * (device_in_short(run) == "GPU")


def device_in_short(run):
    """Return what a record's network was trained on, such as "2 cores" or "GPU"; "" in records that do not say it."""
    first = run.get("device", "").partition(",")[0]
    return first if first.endswith(" cores") or not first else "GPU"


def optimizer(run):
    """Return the optimiser's name: the compiled network's or, in records from before that was written, the parameter's."""
    return run.get("optimizer") or run["parameters"].get("OPTIMIZER", "adam")


def minutes_to(level, record):
    """Return the minutes of training until a run's validation accuracy first was `level` (0 to 1), or None if it never was."""
    values = record["history"]["val_accuracy"]
    reached = next((epoch for epoch, value in enumerate(values, 1) if value >= level), None)
    return record["seconds"] / 60 * reached / len(values) if reached else None


def paired_groups(runs):
    """Return what `gan_pairs` finds among a list of records, for each network that has pairs, by its label."""
    found = {}
    for whose in dict.fromkeys(run.get("whose") for run in runs):
        own = {run["name"]: run for run in runs if run.get("whose") == whose}
        for name in [name for name in own if name.endswith("_gan") and name.removesuffix("_gan") in own]:
            pairs, named = gan_pairs(own, name), label(own[name.removesuffix("_gan")])
            if pairs and pairs not in found.values():
                found[f"{named}, {name}" if named in found else named] = pairs
    return found


def gan_pairs(records, mixed):
    """Return all pairs of trainings like `mixed`, by seed: the record with GAN images and that without.

    `records` is a dictionary by name; the record named `mixed` is of a training with GAN images. Alike are trainings of the same
    code, precision and number of devices, with the same parameters but for seed and name, and with the same GAN images. A seed
    counts once, whatever its runs are called: `mixed` itself, or the first name.
    """

    def kind(record, *besides):
        same = [record.get(key) for key in ("precision", "replicas", "train_images")]
        return recipe_of(record), same, parameters_but(record, "SEED", *besides)

    def alike(name):
        pair = records[name], records[name.removesuffix("_gan")]
        return pair[0]["seed"] == pair[1]["seed"] and len({str(kind(one, "SYNTHETIC_PER_CLASS")) for one in pair}) == 1

    def like_mixed(name):
        digests = [records[each].get("synthetic_digest") for each in (name, mixed)]
        return digests[0] == digests[1] and kind(records[name]) == kind(records[mixed])

    names = [name for name in records if name.endswith("_gan") and name.removesuffix("_gan") in records]
    names = sorted((name for name in names if like_mixed(name) and alike(name)), key=lambda name: (name != mixed, name))
    by_seed = {records[name]["seed"]: name for name in reversed(names)}
    return [(records[by_seed[seed]], records[by_seed[seed].removesuffix("_gan")]) for seed in sorted(by_seed)]


def accuracies(pairs):
    """Return the seeds of pairs of records, and their test accuracies with and without GAN images."""
    sides = "with GAN images", "without"
    accuracy = {side: [pair[i]["test_accuracy"] for pair in pairs] for i, side in enumerate(sides)}
    return [pair[0]["seed"] for pair in pairs], accuracy


def pairs_table(seeds, accuracy):
    """Return a Markdown table of two accuracies a seed, lists of fractions by name, with the first less the second below."""
    lines = [f"| seed | {' | '.join(accuracy)} | difference |", "|---|---:|---:|---:|"]
    for seed, *pair, difference in zip(seeds, *accuracy.values(), differences(accuracy), strict=True):
        lines.append(f"| {seed} | {' | '.join(f'{100 * value:.2f} %' for value in pair)} | {difference:+.2f} |")
    return "\n".join(lines) + f"\n\n{mean_in_words(differences(accuracy))}\n"


def differences(accuracy):
    """Return the first less the second of two lists of paired accuracies (fractions of 1), in percentage points."""
    return [100 * (one - other) for one, other in zip(*accuracy.values(), strict=True)]


def class_changes(pairs):
    """Return what GAN images change in each class, a mean (classes,) over pairs of records, and what seeds alone do to it.

    Both are test accuracies in percentage points. The second is half the width of the band that holds 95 % of the means if GAN
    images change nothing: the spread over seeds, pooled over classes. One pair has no such spread, so there it is None.
    """
    changes = 100 * np.array([np.subtract(*(run["test_by_class"] for run in pair)) for pair in pairs])
    chance = 1.96 * float(np.sqrt(changes.var(axis=0, ddof=1).mean() / len(pairs))) if len(pairs) > 1 else None
    return changes.mean(axis=0), chance


def low_to_high(mean, half):
    """Return an interval's ends in words; `half` is half of its width."""
    return f"{mean - half:+.2f} to {mean + half:+.2f}"


def mean_in_percent(values):
    """Return the mean of accuracies (fractions of 1) in per cent and, of two or more, half its 95 % interval, in words."""
    percents = [100 * value for value in values]
    margin = f" ± {measures.mean_and_interval(percents)[1]:.1f}" if len(percents) > 1 else ""
    return f"{np.mean(percents):.1f}{margin} %"


def mean_in_words(differences):
    """Return a sentence on paired differences (percentage points): their mean and its 95 % interval over seeds."""
    if len(differences) < 2:
        return (
            f"Difference {differences[0]:+.2f} percentage points. One seed gives no interval." if differences else "No pair yet."
        )
    mean, half = measures.mean_and_interval(differences)
    interval = f"95 % interval {low_to_high(mean, half)} (Student's t, {len(differences)} seeds)"
    return f"Mean difference {mean:+.2f} percentage points, {interval}."
