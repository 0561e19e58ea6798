"""What the notebooks stand on. Imported before Keras, it prepares the process: every program and notebook passes here."""

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADLESS = "HEADLESS" in os.environ  # set by tools/run.py: nobody watches, so an epoch is one line and not a moving bar

# Read when TensorFlow is loaded. oneDNN's convolutions make a training step on a CPU without AVX-512 1.9 times faster;
# TensorFlow switches them on by itself only where AVX-512 is found.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.cpu_count() == 2:  # one core for each operation, two operations at a time: `fast.Conv2D` makes two of one
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


@contextlib.contextmanager
def no_stderr():
    """Close the process's standard error, C++ code included, for the length of a `with` block."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without one, as some are on Windows
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


class _WithoutGreeting(importlib.abc.MetaPathFinder):
    """Loads TensorFlow without what it prints then: which drivers the machine lacks. No setting of TensorFlow's stops it."""

    def find_spec(self, name, path, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module if spec else None

        def quietly(module):
            with no_stderr():
                load(module)
            logging.getLogger("tensorflow").setLevel("ERROR")  # it takes each model a notebook builds for a mistake

        if spec:
            spec.loader.exec_module = quietly
        return spec


sys.meta_path.insert(0, _WithoutGreeting())
