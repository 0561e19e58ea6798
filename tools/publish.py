"""Publish: `make publish` copies this machine's runs on CIFAR-100 into the repository.

Records, figures and generators go from runs/ to results/, executed notebooks without real images
to notebooks/, and the tables of the README and the docs are filled. Images and networks stay in
everybody's clone for good, so they are copied on request only. No other program writes there.
"""

import argparse
import ast
import base64
import io
import json
import shutil
import sys
from pathlib import Path

import nbformat
from PIL import Image

import core
from core import records
from core.parameters import NOT_IN_TRAINING
from tools import cells, figures, run, tables

LARGEST_PNG = 200_000  # characters in base64; photographs fill most of a larger one


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true", help="publish notebook 1's images, too")
    parser.add_argument("--network", help="publish this classifier in place of the present one")
    arguments = parser.parse_args()
    runs, results = core.ROOT / "runs" / "cifar100", core.ROOT / "results" / "cifar100"
    copy_results(runs, results)
    if arguments.network:
        previous = records.classifier_files(results)
        copied = Path(shutil.copy(runs / f"{arguments.network}.keras", results))
        for path in {*previous} - {copied}:
            path.unlink()
    images = core.ROOT / "synthetic_images"
    if arguments.images and (images / "runs" / "cifar100").is_dir():
        shutil.rmtree(images / "cifar100", ignore_errors=True)
        shutil.copytree(images / "runs" / "cifar100", images / "cifar100")
    for name in cells.NOTEBOOKS:
        executed = runs / "notebooks" / f"{name}.ipynb"
        if executed.exists():
            publish_notebook(executed, cells.FOLDER / f"{name}.ipynb")
    measured = core.ROOT / "runs" / "bench" / "bench.json"
    if measured.exists() and is_committed(read(measured)):
        shutil.copy(measured, core.ROOT / "results" / "bench")
    figures.gallery(results / "gallery.jpg")
    tables.fill()


def read(path: Path) -> dict:
    return json.loads(path.read_bytes())


def copy_results(runs: Path, results: Path):
    """Copy the records of named scales, and the figures and generators of those with seed 0."""
    kept = [path for path in sorted(runs.glob("*.json")) if is_publishable(path)]
    if not kept:
        return  # the figure that compares runs would show unpublished ones
    results.mkdir(parents=True, exist_ok=True)
    first = [path for path in kept if read(path)["seed"] == 0]
    shown = {path.stem.removesuffix("_gan") for path in first} | {"comparison", "pairs"}
    known = shown | {path.stem.removesuffix("_gan") for path in runs.glob("*.json")}
    for path in (*runs.glob("*.png"), *runs.glob("*_generator.keras")):
        owners = [name for name in known if f"{path.stem}_".startswith(f"{name}_")]
        if max(owners, key=len, default="") in shown:
            kept.append(path)
    for path in kept:
        shutil.copy(path, results)


def is_publishable(path: Path) -> bool:
    """Whether a record is of committed code, at the defaults or a named scale; says so if not.

    A record with a picture of somebody's own is not: its path and its content would be published.
    """
    record = read(path)
    own, defaults = record["parameters"], cells.parameters(record["notebook"])
    scales = [{}]  # what recipes for its notebook change in the defaults; first: nothing
    for recipe in run.recipes().values():
        if record["notebook"] in recipe.get("notebooks", ()):
            scales.append(recipe["parameters"] | recipe.get(record["notebook"], {}))
    named = any(is_same_scale(own, defaults | changes) for changes in scales)
    if named and is_committed(record) and not own.get("PICTURE"):
        return True
    print(f"{path.name}: not published: no recipe has its parameters, its code was not committed, "
          "or it shows your picture")  # fmt: skip
    return False


def is_same_scale(own: dict, scale: dict) -> bool:
    """Whether a run's own parameters are those of a scale, apart from its seed."""
    compared = scale.keys() - {*NOT_IN_TRAINING, "SEED"}
    same = all(own.get(name) == scale[name] for name in compared)
    return same and own["RUN"] == run.run_name_of_seed(scale["RUN"], own["SEED"])


def is_committed(record: dict) -> bool:
    """Whether a record is of code that others have: a commit, and nothing besides."""
    return "dirty" not in (record["commit"] or "dirty")


def publish_notebook(executed: Path, target: Path):
    """Give a notebook the outputs of its executed copy, or say why not.

    The text around the code and its comments may have been edited since. Outputs that show real
    images and TensorFlow's start-up lines (standard error) are left out.
    """
    made, notebook = (nbformat.read(path, 4) for path in (executed, target))
    new, old = map(cells.code_cells, (made, notebook))
    failed = made.metadata.get("papermill", {}).get("exception")
    if failed or not all(cell.execution_count for cell in new):
        return print(f"{executed.name}: not published: the run failed or did not finish")
    if "-dirty-" in str([cell.outputs for cell in new]):
        return print(f"{executed.name}: not published: its code was not committed")
    if [code(cell) for cell in new] != [code(cell) for cell in old]:
        return print(f"{executed.name}: not published: the present notebook has other code")
    for cell, executed_cell in zip(old, new, strict=True):
        shown = [] if "real-images" in cell.metadata.get("tags", []) else executed_cell.outputs
        cell.outputs = [each for each in shown if each.get("name") != "stderr"]
        cell.execution_count = executed_cell.execution_count
        for output in cell.outputs:
            as_jpeg(output.get("data", {}))
    return nbformat.write(notebook, target)


def code(cell) -> str:
    """Return what a cell does, whatever its comments and line breaks."""
    return ast.dump(cells.syntax(cell))


def as_jpeg(data: dict):
    """Replace a large PNG in a cell's output by a JPEG, so that notebooks stay small."""
    if len(data.get("image/png", "")) > LARGEST_PNG:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
