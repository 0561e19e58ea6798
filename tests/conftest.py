"""Tiny data and a scratch copy of the project, so that no test reads or writes the real one."""

import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "Agg")
# Only tests that ask for the real data use it. The second name hands it on to pytest's workers.
CIFAR100_DIR = os.environ.pop("CIFAR100_DIR", os.environ.get("REAL_CIFAR100_DIR"))
if CIFAR100_DIR:
    os.environ["REAL_CIFAR100_DIR"] = CIFAR100_DIR

PROCESSOR = Path("/proc/cpuinfo").read_bytes() if Path("/proc/cpuinfo").exists() else b"avx512f"
HAS_AVX512 = b"avx512f" in PROCESSOR

import core  # before any test imports Keras, as in the notebooks: it prepares TensorFlow


@pytest.fixture(autouse=True)
def _closed_figures():
    """Close the figures that a test leaves open."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project root and an empty Keras cache, in which tests find and leave nothing."""
    monkeypatch.setattr(core, "ROOT", tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A copy of the project's files, in which notebooks can really be run."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("utils.py", "recipes.toml", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    for name in ("core", "tools", "notebooks", "results", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


@pytest.fixture
def policy():
    """Keras's dtype policy, which is restored after the test."""
    import keras

    before = keras.config.dtype_policy()
    yield before
    keras.config.set_dtype_policy(before)


def process_of(script, *arguments, folder=ROOT, **variables):
    """Return what `subprocess` needs to run a script that finds this project and its tests."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": places} | variables
    environment = {name: value for name, value in environment.items() if value is not None}
    return {"args": command, "cwd": folder, "env": environment, "text": True}


def run_script(script, *arguments, timeout=300, **choices):
    """Run a script to its end; return its status and what it printed."""
    options = process_of(script, *arguments, **choices)
    return subprocess.run(**options, capture_output=True, timeout=timeout)


def start_script(script, *arguments, **choices):
    options = process_of(script, *arguments, **choices)
    return subprocess.Popen(**options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def git(folder, *words):
    """Run git in a folder and return what it prints."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.check_output(["git", "-C", folder, *identity, *words], text=True).strip()


def split_content(n=200, seed=0):
    """Return the dictionary of a CIFAR-100 split with `n` images."""
    data = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    labels = [i % 100 for i in range(n)]
    superclasses = [label // 5 for label in labels]
    return {b"data": data, b"fine_labels": labels, b"coarse_labels": superclasses}


def pickled(content):
    return pickle.dumps(content, protocol=4)  # like the official files, it holds bytes as they are


def real_cifar100(monkeypatch):
    """Return CIFAR-100, or skip the rest of a test."""
    if not CIFAR100_DIR:
        pytest.skip("no CIFAR-100: CIFAR100_DIR is not set")
    monkeypatch.setenv("CIFAR100_DIR", CIFAR100_DIR)
    from core import datasets

    return datasets.load("cifar100")
