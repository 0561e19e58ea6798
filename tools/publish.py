"""Copy this machine's runs on CIFAR-100 into the published part of the repository: `make publish`.

Records, figures and generators go from runs/ to results/, and executed notebooks, without real
images, to notebooks/. The tables of the README and the docs are updated. GAN images and classifiers
are copied only on request, because they stay in every clone permanently. No other program changes
published files.
"""

import argparse
import ast
import base64
import io
import shutil
import sys
from pathlib import Path

import nbformat
from matplotlib.figure import Figure
from PIL import Image

import core
from core import datasets, synthetic
from core.parameters import NOT_IN_TRAINING
from core.records import read_json
from tools import cells, classify, run, tables

LARGEST_PNG = 200_000  # base64 characters; a larger PNG is mostly photographs
GALLERY = (  # classes in the README's figure
    "apple", "sunflower", "orange", "mushroom", "bus", "tiger", "bicycle", "dolphin", "bear",
    "rocket",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true", help="also publish notebook 1's images")
    parser.add_argument("--network", action="store_true", help="also publish that of make best")
    arguments = parser.parse_args()
    runs, results = core.ROOT / "runs" / "cifar100", core.ROOT / "results" / "cifar100"
    for folder_name in ("cifar100", "cifar100-0.1"):  # the study has GANs trained on a tenth
        copy_results(core.ROOT / "runs" / folder_name, core.ROOT / "results" / folder_name)
    for path in sorted((core.ROOT / "runs" / "study").glob("*.json")):
        if is_committed(read_json(path)):
            shutil.copy(path, core.ROOT / "results" / "study")
    if arguments.network:
        shutil.copy(runs / classify.NETWORK.name, results)
    images = core.ROOT / "synthetic_images"
    if arguments.images and (images / "runs" / "cifar100").is_dir():
        shutil.rmtree(images / "cifar100", ignore_errors=True)
        shutil.copytree(images / "runs" / "cifar100", images / "cifar100")
    for name in cells.NOTEBOOKS:
        executed = runs / "notebooks" / f"{name}.ipynb"
        if executed.exists():
            publish_notebook(executed, cells.FOLDER / f"{name}.ipynb")
    measured = core.ROOT / "runs" / "bench" / "bench.json"
    if measured.exists() and is_committed(read_json(measured)):
        shutil.copy(measured, core.ROOT / "results" / "bench")
    gallery(results / "gallery.jpg")
    tables.fill()


def copy_results(runs: Path, results: Path):
    """Copy the publishable records, their generators, and the figures of those with seed 0."""
    published = [path for path in sorted(runs.glob("*.json")) if is_publishable(path)]
    if not published:
        return  # the figures that compare runs would only show unpublished ones
    results.mkdir(parents=True, exist_ok=True)
    files = [*published, runs / "comparison.png", runs / "pairs.png"]
    for path in published:
        files.append(runs / f"{path.stem}_generator.keras")
        if read_json(path)["seed"] == 0:  # its figures are named after it and one more word
            ends = [each.stem.removeprefix(path.stem) for each in runs.glob(f"{path.stem}_*.png")]
            files += [runs / f"{path.stem}{end}.png" for end in ends if end.count("_") == 1]
    for path in files:
        if path.exists():
            shutil.copy(path, results)


def is_publishable(path: Path) -> bool:
    """Return whether a record may be published; if not, print a message.

    It may if its code was committed and if its parameters are the defaults or those of a recipe. It
    may not if a user's own picture was classified: the path and the picture would be published.
    """
    record = read_json(path)
    own, defaults = record["parameters"], cells.parameters(record["notebook"])
    scales = [{}]  # changes of the defaults: first none, then those of each recipe
    for recipe in run.recipes().values():
        if record["notebook"] in recipe.get("notebooks", ()):
            scales.append(run.changes(recipe, record["notebook"]))
    named = any(is_same_scale(own, defaults | changes) for changes in scales)
    if named and is_committed(record) and not own.get("PICTURE"):
        return True
    print(f"{path.name}: not published: its parameters are neither the defaults nor a recipe's, "
          "its code was not committed, or it shows your picture")  # fmt: skip
    return False


def is_same_scale(own: dict, scale: dict) -> bool:
    """Return whether a run's `own` parameters are those of a scale, apart from the seed."""
    compared = scale.keys() - {*NOT_IN_TRAINING, "SEED"}
    same = all(own.get(name) == scale[name] for name in compared)
    return same and own["RUN"] == run.run_name_of_seed(scale["RUN"], own["SEED"])


def is_committed(record: dict) -> bool:
    """Return whether a record was made by committed code, without uncommitted changes."""
    return "dirty" not in (record["commit"] or "dirty")


def publish_notebook(executed: Path, target: Path):
    """Copy the outputs of an executed notebook to the published one, `target`, or print why not.

    Text and comments may have been edited since it was executed, but not code. Outputs that show
    real images, and standard error, where TensorFlow prints messages at its start, are left out.
    """
    made, notebook = (nbformat.read(path, 4) for path in (executed, target))
    new, old = map(cells.code_cells, (made, notebook))
    failed = made.metadata.get("papermill", {}).get("exception")
    if failed or not all(cell.execution_count for cell in new):
        return print(f"{executed.name}: not published: the run failed or did not finish")
    if "-dirty-" in str([cell.outputs for cell in new]):
        return print(f"{executed.name}: not published: its code was not committed")
    if [code(cell) for cell in new] != [code(cell) for cell in old]:
        return print(f"{executed.name}: not published: the current notebook has different code")
    for cell, executed_cell in zip(old, new, strict=True):
        shown = [] if "real-images" in cell.metadata.get("tags", []) else executed_cell.outputs
        cell.outputs = [each for each in shown if each.get("name") != "stderr"]
        cell.execution_count = executed_cell.execution_count
        for output in cell.outputs:
            as_jpeg(output.get("data", {}))
    return nbformat.write(notebook, target)


def code(cell) -> str:
    """Return a cell's syntax tree as text, which does not depend on comments and line breaks."""
    try:
        return ast.dump(ast.parse(cell.source))
    except SyntaxError:  # it has IPython commands
        return cell.source


def as_jpeg(data: dict):
    """Replace a large PNG in the data of an output by a JPEG, so that notebooks stay small."""
    if len(data.get("image/png", "")) > LARGEST_PNG:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


def gallery(path: Path) -> None:
    """Draw the first eight published images of ten classes each, and save the figure to `path`."""
    names = datasets.class_names("cifar100")
    images, labels, _ = synthetic.load(synthetic.choose("cifar100", "published")[0], names)
    figure = Figure(figsize=(10, 8.3), layout="constrained")
    for column, name in zip(figure.subplots(8, len(GALLERY)).T, GALLERY, strict=True):
        column[0].set_title(name, fontsize=13)
        for axis, image in zip(column, images[labels == names.index(name)], strict=False):
            axis.imshow(image, interpolation="bicubic")
            axis.set_axis_off()
    figure.savefig(path, dpi=85, facecolor="white", pil_kwargs={"quality": 90})


if __name__ == "__main__":
    sys.exit(main())
