"""Copy this machine's runs on CIFAR-100 into the published part of the repository: `make publish`.

Records, figures and generators go from runs/ to results/, and executed notebooks, without real
images, to notebooks/. The tables of the README and the docs are updated. GAN images and classifiers
are copied only on request, because they enlarge every clone permanently. No other program changes
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
from tools.study import figures, report

LARGEST_PNG = 200_000  # base64 characters; a larger PNG is mostly photographs
GALLERY = (  # classes in the README's figure
    "apple", "sunflower", "orange", "mushroom", "bus", "tiger", "bicycle", "dolphin", "bear",
    "rocket",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true", help="also publish notebook 1's images")
    parser.add_argument("--network", action="store_true", help="also publish make best's network")
    arguments = parser.parse_args()
    runs, results = core.ROOT / "runs" / "cifar100", core.ROOT / "results" / "cifar100"
    for folder_name in ("cifar100", "cifar100-0.1"):  # the latter has GANs for the study
        copy_results(core.ROOT / "runs" / folder_name, core.ROOT / "results" / folder_name)
    for path in sorted((core.ROOT / "runs" / "study").glob("*.json")):
        if is_committed(read_json(path)):
            shutil.copy(path, core.ROOT / "results" / "study" / path.name)
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
        shutil.copy(measured, core.ROOT / "results" / "bench" / measured.name)
    gallery(results / "gallery.jpg")
    figures.draw(report.by_seed(), core.ROOT / "results" / "study")
    tables.fill()


def copy_results(runs: Path, results: Path):
    """Copy the publishable records, their generators, and the figures of those with seed 0."""
    published = [path for path in sorted(runs.glob("*.json")) if is_publishable(path)]
    if published:
        results.mkdir(parents=True, exist_ok=True)
    files = list(published)
    for path in published:
        files.append(runs / f"{path.stem}_generator.keras")
        if read_json(path)["seed"] == 0:  # its figures are named <record>_<word>.png
            figures = runs.glob(f"{path.stem}_*.png")
            ends = [figure.stem.removeprefix(path.stem) for figure in figures]
            files += [runs / f"{path.stem}{end}.png" for end in ends if end.count("_") == 1]
    for path in files:
        if path.exists():
            shutil.copy(path, results)


def is_publishable(path: Path) -> bool:
    """Return whether a record may be published; if not, print a message.

    A record may be published if its code was committed and if its parameters are the defaults or
    those of a recipe, but not if a user's own picture was classified, which would be published too.
    """
    record = read_json(path)
    own, defaults = record["parameters"], cells.parameters(record["notebook"])
    settings = [{}]  # changes to the defaults: first none, then those of each recipe
    for recipe in run.recipes().values():
        if record["notebook"] in recipe.get("notebooks", ()):
            settings.append(run.changes(recipe, record["notebook"]))
    reason = ""
    if not any(matches_settings(own, defaults | changes) for changes in settings):
        reason = "its parameters are neither the defaults nor those of a recipe"
    elif not is_committed(record):
        reason = "its code was not committed: commit it and run it again"
    elif own.get("PICTURE"):
        reason = "it shows your own picture: run it again without PICTURE"
    if reason:
        print(f"{path.name} is not published, because {reason}")
    return not reason


def matches_settings(own: dict, settings: dict) -> bool:
    """Return whether a run's `own` parameters are these settings, apart from the seed."""
    compared = settings.keys() - {*NOT_IN_TRAINING, "SEED"}
    same = all(own.get(name) == settings[name] for name in compared)
    return same and own["RUN"] == run.run_name_of_seed(settings["RUN"], own["SEED"])


def is_committed(record: dict) -> bool:
    """Return whether a record was made by committed code, without uncommitted changes."""
    return "dirty" not in (record["commit"] or "dirty")


def publish_notebook(executed: Path, target: Path):
    """Copy the outputs of an executed notebook to the published one, `target`, or print why not.

    Text and comments may have been edited since the notebook was executed, but not code. Outputs
    that show real images are left out, as is standard error, where TensorFlow prints messages when
    it starts.
    """
    done, notebook = (nbformat.read(path, 4) for path in (executed, target))
    new, old = map(cells.code_cells, (done, notebook))
    failed = done.metadata.get("papermill", {}).get("exception")
    if failed or not all(cell.execution_count for cell in new):
        return print(f"{executed.name} is not published, because the run failed or did not finish")
    outputs = str([cell.outputs for cell in new])
    if "-dirty-" in outputs or "'commit': None" in outputs:
        return print(f"{executed.name} is not published, because its code was not committed")
    if [code(cell) for cell in new] != [code(cell) for cell in old]:
        return print(
            f"{executed.name} is not published, because the notebook now has different code"
        )
    for cell, executed_cell in zip(old, new, strict=True):
        shown = [] if "real-images" in cell.metadata.get("tags", []) else executed_cell.outputs
        cell.outputs = [output for output in shown if output.get("name") != "stderr"]
        cell.execution_count = executed_cell.execution_count
        for output in cell.outputs:
            as_jpeg(output.get("data", {}))
    return nbformat.write(notebook, target)


def code(cell) -> str:
    """Return a cell's syntax tree as text, which does not depend on comments or line breaks."""
    try:
        return ast.dump(ast.parse(cell.source))
    except SyntaxError:  # the cell has IPython magics
        return cell.source


def as_jpeg(data: dict):
    """Replace a large PNG in the data of an output with a JPEG, so that notebooks stay small."""
    if len(data.get("image/png", "")) > LARGEST_PNG:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


def gallery(path: Path) -> None:
    """Save a figure with the first four published images of each of ten classes to `path`."""
    names = datasets.class_names("cifar100")
    images, labels, _ = synthetic.load(synthetic.choose("cifar100", "published")[0], names)
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    for column, name in zip(figure.subplots(4, len(GALLERY)).T, GALLERY, strict=True):
        column[0].set_title(name, fontsize=13)
        for axis, image in zip(column, images[labels == names.index(name)], strict=False):
            axis.imshow(image, interpolation="bicubic")
            axis.set_axis_off()
    figure.savefig(path, dpi=85, facecolor="white", pil_kwargs={"quality": 90})


if __name__ == "__main__":
    sys.exit(main())
