"""The notebooks' own code, for programs and tests: what they measure is what a reader runs."""

import contextlib
import os

import nbformat

import core

NOTEBOOKS = ("gan_synthetic_images", "vgg16_with_gan", "resnet_baseline")
FOLDER = core.ROOT / "notebooks"


def read(notebook: str) -> list:
    """Return the code cells of the notebook of that name."""
    made = nbformat.read(FOLDER / f"{notebook}.ipynb", 4).cells
    return [cell for cell in made if cell.cell_type == "code"]


def tagged(notebook: str, tag: str) -> list[str]:
    """Return the sources of a notebook's cells with that tag."""
    return [cell.source for cell in read(notebook) if tag in cell.metadata.get("tags", [])]


def parameters(notebook: str) -> dict:
    """Return a notebook's parameters and their defaults."""
    space = {}
    for source in tagged(notebook, "parameters"):
        exec(source, space)
    return {name: value for name, value in space.items() if name.isupper()}


def define(notebook: str, **names) -> dict:
    """Return all that a notebook imports and defines in cells tagged imports, parameters, define.

    `names` override its parameters, and stand for what its functions take from other cells.
    """
    space, before = {"__name__": "__main__"}, os.getcwd()
    os.chdir(FOLDER)  # as in Jupyter
    try:
        with contextlib.redirect_stdout(None):
            for source in tagged(notebook, "imports") + tagged(notebook, "parameters"):
                exec(source, space)
            space |= names
            for source in tagged(notebook, "define"):
                exec(source, space)
    finally:
        os.chdir(before)
    return space
