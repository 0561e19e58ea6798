"""Publish: `make publish`. Copies this machine's runs on CIFAR-100 to where the repository shows them.

Records and figures go from runs/ to results/; the three executed notebooks to notebooks/, without real images; the README and
the docs receive the tables. `--images` copies the drawn images too: they weigh most in everybody's clone.
Nothing else writes there, and with nothing new to copy this changes nothing.
"""

import argparse
import base64
import io
import shutil
import sys

import nbformat
from nbconvert.preprocessors import TagRemovePreprocessor
from PIL import Image

import core
from core import records
from tools import cells, pages


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
    for made in (core.ROOT / "runs" / "bench").glob("*.json"):
        shutil.copy(made, core.ROOT / "results" / "bench")
    pages.fill()


def copy_results(runs, results):
    """Copy records, figures and generators, and make the table of all classifiers' records."""
    results.mkdir(parents=True, exist_ok=True)
    for path in runs.iterdir():
        if path.suffix in (".json", ".png") or path.name.endswith("_generator.keras"):
            shutil.copy(path, results)
    (results / "comparison.md").write_text(records.comparison_table(pages.classifiers(results.name)), encoding="utf-8")


def publish_notebook(executed, target):
    """Copy an executed notebook, without outputs that show real images and without what papermill adds."""
    notebook = nbformat.read(executed, 4)
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        return print(f"{executed.name} was run with parameters of its own: not published")
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


def as_jpeg(data, largest=200_000):
    """Replace a large PNG in a cell's output by a JPEG: photographs fill most of it, and notebooks stay small."""
    if len(data.get("image/png", "")) > largest:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
