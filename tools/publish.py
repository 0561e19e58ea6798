"""Publish: `make publish`. Copies this machine's runs on CIFAR-100 to where the repository shows them.

Records, figures, generators and the best classifier go from runs/ to results/; the three executed notebooks to notebooks/,
without real images; the README and the docs receive the tables. `--images` also copies the generated images, the largest part
of everybody's clone. Only this program writes there. If there is nothing new, it changes nothing.
"""

import argparse
import base64
import io
import json
import re
import shutil
import sys

import nbformat
from nbconvert.preprocessors import TagRemovePreprocessor
from PIL import Image

import core
from core import records
from tools import cells, figures, pages, run
from tools.study import plan, report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="store_true", help="the images of the last run of notebook 1 too")
    arguments = parser.parse_args()
    for runs in sorted((core.ROOT / "runs").glob("cifar100*")):
        copy_results(runs, core.ROOT / "results" / runs.name)
        images = core.ROOT / "synthetic_images" / "runs" / runs.name
        if arguments.images and images.is_dir():
            published = core.ROOT / "synthetic_images" / runs.name
            shutil.rmtree(published, ignore_errors=True)
            shutil.copytree(images, published)
    for name in cells.NOTEBOOKS:
        executed = core.ROOT / "runs" / "cifar100" / "notebooks" / f"{name}.ipynb"
        if executed.exists():
            publish_notebook(executed, cells.FOLDER / f"{name}.ipynb")
    copy_measurements(core.ROOT / "runs" / "bench", core.ROOT / "results" / "bench")
    figures.gallery(core.ROOT / "results" / "cifar100" / "gallery.jpg")
    copy_study()
    pages.fill()


def copy_results(runs, results):
    """Copy the records of named scales with their figures and generators."""
    kept = [path for path in runs.glob("*.json") if is_of_a_named_scale(path)]
    if not kept:
        return
    results.mkdir(parents=True, exist_ok=True)
    first = [path for path in kept if json.loads(path.read_text(encoding="utf-8"))["seed"] == 0]  # other seeds are but numbers
    shown = {path.stem.removesuffix("_gan") for path in first} | {"comparison", "pairs", "changes"}
    known = shown | {path.stem.removesuffix("_gan") for path in kept}
    for path in (*runs.glob("*.png"), *runs.glob("*_generator.keras")):
        owners = [stem for stem in known if f"{path.stem}_".startswith(f"{stem}_")]
        if max(owners, key=len, default="") in shown:
            shutil.copy(path, results)
    for path in kept:
        shutil.copy(path, results)
    copy_best_classifier([path for path in first if path.with_suffix(".keras").exists()], results)


def copy_best_classifier(found, results, largest=20e6):
    """Copy the weights of one classifier, the best on validation images of those that are small enough.

    `found` are records beside their networks. It replaces the published one if it is better, or of the same name.
    """
    published = [path.with_suffix(".json") for path in records.classifier_files(results)]
    rivals = [path for path in published if path.exists() and path.name not in {own.name for own in found}]
    scores = {path: json.loads(path.read_text(encoding="utf-8")).get("val_accuracy", 0) for path in (*found, *rivals)}
    scores = {path.with_suffix(".keras"): score for path, score in scores.items() if score}
    small = [path for path in scores if path.stat().st_size <= largest]
    best = max(small, key=scores.get, default=None)
    if best and best.parent != results:
        for path in records.classifier_files(results):
            path.unlink()
        shutil.copy(best, results)


def is_of_a_named_scale(path):
    """Whether a record is of committed code, with the notebook's defaults or a recipe's parameters; says so if not.

    One with a picture of somebody's own is not: its path stands in the record, and its content in a figure.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    defaults = cells.parameters(record["notebook"])
    scales = [defaults | recipe.get("parameters", {}) | recipe.get(record["notebook"], {})
              for name, recipe in {"": {}, **run.recipes()}.items() if name != "stand-in"]  # fmt: skip
    own, seed = records.parameters_but(record, "SEED"), record["parameters"].get("SEED", 0)
    names = [scale for scale in scales if record["parameters"].get("RUN") in (None, run.name_of_run(scale["RUN"], seed))]
    named = any(all(scale.get(name) == value for name, value in own.items()) for scale in names)
    if named and is_committed(record) and not record["parameters"].get("PICTURE"):
        return True
    words = "its parameters match no recipe, its code was not committed, or it shows a picture of yours"
    return print(f"{path.name}: not published: {words}")


def is_committed(record):
    """Whether a record is of code that others have: a commit, and nothing besides."""
    return "dirty" not in (record["commit"] or "dirty")


def copy_measurements(runs, results):
    """Copy the records of `make bench` and `make parity`, those of committed code and of all of CIFAR-100's training images."""
    for path in runs.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = record.get("title", "CIFAR-100") == "CIFAR-100" and record.get("images", 45_000) == 45_000
        if whole and is_committed(record):
            results.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, results)
        else:
            print(f"{path.name}: not published: it is not of all images, or its code was not committed")


def copy_study():
    """Copy the study's records, those of committed code and of the list as it is, and its teachers; draw its figure anew."""
    kept = {}
    for path in sorted((core.ROOT / "runs" / "study").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if is_committed(record) and plan.listed([record]):
            kept[path] = record
        else:
            print(f"{path.name}: not in the list, or of code that is not committed: not published")
    results = core.ROOT / "results" / "study"
    for path, record in kept.items():
        results.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, results)
        teacher = path.with_name(f"{record['arm']}.keras")  # no other arm has a network
        if teacher.exists():
            shutil.copy(teacher, results)
    made = plan.listed(records.read("study", published=True).values())
    if not made:
        return
    if kept:
        report.draw_figures(made, results)
    report.write_effects(made, results / "effects.csv")


def publish_notebook(executed, target):
    """Copy an executed notebook, without outputs that show real images and without what papermill adds."""
    notebook = nbformat.read(executed, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if notebook.metadata.get("papermill", {}).get("exception") or not all(cell.execution_count for cell in code):
        return print(f"{executed.name}: not published: the run failed or did not finish")
    if "-dirty-" in str([cell.outputs for cell in code]):
        return print(f"{executed.name}: not published: its code was not committed")
    if sources(notebook) != sources(nbformat.read(target, 4)):
        return print(f"{executed.name}: not published: it differs from the present notebook, or was run with other parameters")
    counts = [cell.get("execution_count") for cell in notebook.cells]
    remove = TagRemovePreprocessor(remove_all_outputs_tags={"real-images"})
    notebook, _ = remove.preprocess(notebook, {})  # forgets the counts of the cells it empties
    notebook.metadata.pop("papermill", None)
    for cell, count in zip(notebook.cells, counts, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = count
        for output in cell.get("outputs", []):
            as_jpeg(output.get("data", {}))
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    return nbformat.write(notebook, target)


def sources(notebook):
    """The cells' texts, but for the table that pages.py fills in."""
    return [re.sub(r"(?s)<!-- expected -->.*<!-- /expected -->", "", cell.source) for cell in notebook.cells]


def as_jpeg(data, largest=200_000):
    """Replace a large PNG in a cell's output by a JPEG: photographs fill most of it, and notebooks stay small."""
    if len(data.get("image/png", "")) > largest:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
