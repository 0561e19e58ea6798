"""Publish: `make publish` copies this machine's runs on CIFAR-100 into the repository.

Records, figures and generators go from runs/ to results/, executed notebooks without real images
to notebooks/, and the tables of the README and the docs are filled. Images and networks stay in
everybody's clone for good, so they are copied on request only. No other program writes there.
"""

import argparse
import base64
import io
import json
import re
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
            scales.append(recipe["parameters"])
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
    """Copy an executed notebook without outputs that show real images, or say why not."""
    notebook = nbformat.read(executed, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failed = notebook.metadata.get("papermill", {}).get("exception")
    if failed or not all(cell.execution_count for cell in code):
        return print(f"{executed.name}: not published: the run failed or did not finish")
    if "-dirty-" in str([cell.outputs for cell in code]):
        return print(f"{executed.name}: not published: its code was not committed")
    if sources(notebook) != sources(nbformat.read(target, 4)):
        return print(f"{executed.name}: not published: it differs from the present notebook")
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            shown = [] if "real-images" in tags else cell.outputs
            cell.outputs = [
                each for each in shown if each.get("name") != "stderr"
            ]  # start-up lines
            for output in cell.outputs:
                as_jpeg(output.get("data", {}))
    return nbformat.write(notebook, target)


def sources(notebook) -> list[str]:
    """Return the texts of the cells without the table that tools/tables.py fills in."""
    marked = r"(?s)<!-- expected -->.*<!-- /expected -->"
    return [re.sub(marked, "", cell.source) for cell in notebook.cells]


def as_jpeg(data: dict):
    """Replace a large PNG in a cell's output by a JPEG, so that notebooks stay small."""
    if len(data.get("image/png", "")) > LARGEST_PNG:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
