"""Reads the notebooks' code, so that programs and tests use exactly what a reader runs."""

import contextlib

import nbformat

import core

NOTEBOOKS = ("gan_synthetic_images", "vgg16_with_gan", "resnet_baseline")
FOLDER = core.ROOT / "notebooks"


def read(notebook: str) -> list:
    """Return the code cells of the notebook of that name."""
    return code_cells(nbformat.read(FOLDER / f"{notebook}.ipynb", 4))


def code_cells(notebook: nbformat.NotebookNode) -> list:
    """Return the code cells of a notebook that has been read."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: str, tag: str) -> list[str]:
    """Return the sources of a notebook's code cells with that tag."""
    return [cell.source for cell in read(notebook) if tag in cell.metadata.get("tags", [])]


def parameters(notebook: str) -> dict:
    """Return a notebook's parameters and their default values."""
    space = {}
    for source in tagged(notebook, "parameters"):
        exec(source, space)
    return {name: value for name, value in space.items() if name.isupper()}


def define(notebook: str, **names) -> dict:
    """Execute a notebook's cells tagged imports, parameters and define, and return their globals.

    `names` override its parameters, and provide globals that its functions take from other cells.
    """
    space = {"__name__": "__main__"}
    with contextlib.chdir(FOLDER), contextlib.redirect_stdout(None):  # same folder as in Jupyter
        for source in tagged(notebook, "imports") + tagged(notebook, "parameters"):
            exec(source, space)
        space |= names
        for source in tagged(notebook, "define"):
            exec(source, space)
    return space
