"""The fingerprint of a training run: a description of everything that defines the run.

core/code_reader.py describes the model, the optimiser, the batches and the callbacks, and the code
of the notebook and this project that they use. Installed packages are described by their versions.
What cannot be described is listed under "unreadable", and such a fingerprint equals no other one.
"""

import importlib.metadata
import json
import platform
import re
import secrets
from collections.abc import Iterator
from typing import Any

import keras

from core.code_reader import CodeReader, array_digest_of, installed_distributions
from core.files import short_digest

# Runs with the same recipe may differ in their seed, training images and number of steps.
OF_ONE_RUN = ("first weights", "batches.state.images", "batches.state.labels",
              "batches.state.seed", "batches.state.steps_per_epoch")  # fmt: skip
STEPS = ("learning_rate.steps", "learning_rate.config.steps")  # steps of a schedule


def of_training_run(
    model: keras.Model, batches: Any, epochs: int, callbacks=(), replicas: int = 1, **fit_arguments
) -> dict:
    """Return the fingerprint of a training run as a dictionary that can be written as JSON.

    `model` is compiled, and its current weights are included. `replicas` is the number of devices,
    and `fit_arguments` are those of `model.fit`. Callbacks whose attribute `only_watches` is true
    are left out.
    """
    reader, backend = CodeReader(model.variables), keras.backend.backend()
    included = [item for item in callbacks if not getattr(item, "only_watches", False)]
    fingerprint = {
        "epochs": epochs,
        "model": reader.read(model, "model"),
        "optimizer": reader.read(model.optimizer, "optimizer"),
        "compile": reader.read(model._compile_config.config, "compile"),
        "batches": reader.read(batches, "batches"),
        "callbacks": reader.read(included, "callbacks"),
        "fit": reader.read(fit_arguments, "fit"),
        "precision": keras.config.dtype_policy().name,
        "replicas": replicas,
        "first weights": short_digest([array_digest_of(variable) for variable in model.variables]),
        "used": reader.used,
        "versions": _versions({"keras", "numpy", backend} | reader.packages),
    }
    if reader.unreadable:
        fingerprint |= {"unreadable": sorted(reader.unreadable), "chance": secrets.token_hex(8)}
    return json.loads(json.dumps(fingerprint))


def key(fingerprint: dict) -> str:
    """Return eight hexadecimal digits that identify a training run."""
    return short_digest(fingerprint)[:8]


def recipe(fingerprint: dict) -> str:
    """Return eight hexadecimal digits that runs share if only seed, images and steps differ.

    Not to be confused with the recipes in recipes.toml, whose settings this digest covers.
    """
    kept = {
        path: value for path, value in _leaves(fingerprint)
        if not path.startswith(OF_ONE_RUN) and not path.endswith(STEPS)
    }  # fmt: skip
    return short_digest(kept)[:8]


def difference(now: dict, before: dict, limit: int = 3) -> str:
    """Return what is unreadable or else what has changed since `before`, in `limit` phrases."""
    if "unreadable" in now:
        return "; ".join(now["unreadable"][:limit])
    new, old = dict(_leaves(now)), dict(_leaves(before))
    names = [name for name in new | old if name not in new or new[name] != old.get(name, new)]
    changes = [_change(name, new, old) for name in names[:limit]]
    return "; ".join(changes + ([f"and {len(names) - limit} more"] if len(names) > limit else []))


def _change(name: str, now: dict, before: dict) -> str:
    words = name.removeprefix("used.")
    if name not in before or name not in now:
        return f"{words} was {'added' if name in now else 'removed'}"
    if re.fullmatch(r"[0-9a-f]{16}", str(now[name])):  # a digest would tell a reader nothing
        return f"{words} changed"
    return f"{words} is {now[name]!r}, was {before[name]!r}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each leaf of nested dictionaries and lists."""
    if not isinstance(value, (dict, list)) or (path and not value):
        yield path, value
        return
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _versions(packages: set) -> dict:
    """Return the versions of Python and of those `packages` that are installed."""
    found = {"python": platform.python_version().rpartition(".")[0]}
    for package in sorted(packages):
        for distribution in installed_distributions().get(package, ())[:1]:
            found[package] = importlib.metadata.version(distribution)
    return found
