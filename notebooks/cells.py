"""The notebooks' own cells, for `make bench` and the tests: what they measure is what a reader runs."""

import contextlib
from pathlib import Path

import utils  # first: it sets TensorFlow's CPU switches

import checkpoints
import keras
import nbformat
import numpy as np

HERE = Path(__file__).resolve().parent
GAN = ("def conditional_normalization", "def build_discriminator", "def augment", "def discriminator_loss")
GAN += ("def generator_loss", "class ClassMoments", "class GAN", "def two_rates")  # all that its training step takes
NAMES = {"keras": keras, "layers": keras.layers, "ops": keras.ops, "np": np, "utils": utils, "checkpoints": checkpoints}


def read(notebook):
    """Return the code cells of the notebook of that name."""
    return [cell for cell in nbformat.read(HERE / f"{notebook}.ipynb", 4).cells if cell.cell_type == "code"]


def define(notebook, *starts, **names):
    """Execute the code cells that contain one of `starts`, and return a dictionary of all names then defined.

    `names` are those that the cells take from earlier ones. Raises `ValueError` where no cell contains a start.
    """
    space = NAMES | {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0), "SEED": 0} | names
    sources = [cell.source for cell in read(notebook)]
    for start in starts:
        if not any(start in source for source in sources):
            raise ValueError(f"no cell of {notebook} contains {start!r}")
    for source in sources:
        if any(start in source for start in starts):
            with contextlib.redirect_stdout(None):  # a cell may print a summary
                exec(source, space)
    return space
