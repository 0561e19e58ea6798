"""The notebooks' own code, for programs and tests: what they measure is what a reader runs."""

import contextlib
import os

import nbformat

import core

NOTEBOOKS = ("gan_synthetic_images", "vgg16_with_gan", "resnet_baseline")
FOLDER = core.ROOT / "notebooks"


def read(notebook):
    """Return the code cells of the notebook of that name."""
    return [cell for cell in nbformat.read(FOLDER / f"{notebook}.ipynb", 4).cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    """Return the sources of the notebook's cells with that tag."""
    return [cell.source for cell in read(notebook) if tag in cell.metadata.get("tags", [])]


def parameters(notebook):
    """Return a notebook's parameters and their defaults."""
    space = {}
    for source in tagged(notebook, "parameters"):
        exec(source, space)
    return {name: value for name, value in space.items() if name.isupper()}


def define(notebook, **names):
    """Return a dictionary of all that a notebook imports and defines, in its cells tagged `imports`, `parameters` and `define`.

    `names` override its parameters, and give what its functions take from cells that are not executed.
    """
    space, before = {"__name__": "__main__"}, os.getcwd()
    os.chdir(FOLDER)  # as in Jupyter
    try:
        with contextlib.redirect_stdout(None):
            for tag in ("imports", "parameters"):
                for source in tagged(notebook, tag):
                    exec(source, space)
            space |= names
            for source in tagged(notebook, "define"):
                exec(source, space)
    finally:
        os.chdir(before)
    return space
