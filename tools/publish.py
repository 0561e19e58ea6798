"""Publish: `make publish`. Copies this machine's runs on CIFAR-100 to where the repository shows them.

Records, figures and tables go from runs/ to results/; the three executed notebooks to notebooks/, without real images; the
README receives the tables. `--images` copies the drawn images and their generators too: they weigh most in everybody's clone.
Nothing else writes there, and with nothing new to copy this changes nothing.
"""

import argparse
import base64
import io
import json
import shutil
import sys

import nbformat
from nbconvert.preprocessors import TagRemovePreprocessor
from PIL import Image

import core
from core import records
from tools import bench, cells, parity


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="store_true", help="the images and generators too")
    arguments = parser.parse_args()
    for runs in sorted((core.ROOT / "runs").glob("cifar100*")):
        copy_results(runs, core.ROOT / "results" / runs.name, arguments.images)
        images = core.ROOT / "synthetic_images" / "runs" / runs.name
        if arguments.images and images.is_dir():
            published = core.ROOT / "synthetic_images" / runs.name
            shutil.rmtree(published, ignore_errors=True)
            shutil.copytree(images, published)
    for name in cells.NOTEBOOKS:
        executed = core.ROOT / "runs" / "cifar100" / "notebooks" / f"{name}.ipynb"
        if executed.exists():
            publish_notebook(executed, cells.FOLDER / f"{name}.ipynb")
    for program in (bench, parity):
        if (made := core.ROOT / "runs" / "bench" / program.OUTPUT.name).exists():
            shutil.copy(made, core.ROOT / "results" / "bench")
    fill_pages()


def copy_results(runs, results, generators):
    """Copy records and figures, generators on request, and make the table of all classifiers' records."""
    results.mkdir(parents=True, exist_ok=True)
    for path in runs.iterdir():
        if path.suffix in (".json", ".png") or (generators and path.name.endswith("_generator.keras")):
            shutil.copy(path, results)
    (results / "comparison.md").write_text(records.comparison_table(classifiers(results.name)), encoding="utf-8")


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


def readme_texts():
    """Return what the README says of the published records, by the name of its marks."""
    results = core.ROOT / "results"
    return {
        "results": results_text("cifar100"),
        "pairs": pairs_text("cifar100"),
        "scarce": tables("cifar100-0.1"),
        "bench": bench.report(json.loads((results / "bench" / "bench.json").read_text(encoding="utf-8"))),
        "parity": parity.report(json.loads((results / "bench" / "parity.json").read_text(encoding="utf-8"))),
    }


def filled(page, name, text):
    """Return a page with a text between its marks of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}{text}{end}{rest.partition(end)[2]}"


def fill_pages():
    """Put what the records say into the README and into the notebooks' first cells."""
    readme = core.ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    for name, text in readme_texts().items():
        page = filled(page, name, text)
    readme.write_text(page, encoding="utf-8")
    for name in cells.NOTEBOOKS:
        notebook = nbformat.read(cells.FOLDER / f"{name}.ipynb", 4)
        notebook.cells[0].source = filled(notebook.cells[0].source, "expected", expected(name))
        nbformat.write(notebook, cells.FOLDER / f"{name}.ipynb")


def expected(notebook):
    """Return what a notebook's first cell says: how long it takes, and what comes out, by the published records."""
    published = records.read("cifar100", published=True)
    if notebook == "gan_synthetic_images":
        rows = [("`make run`", published["gan"], "gan_train"), ("`make long`", published["gan_long"], "gan_train")]
        says = "a classifier trained on the images alone scores"
    elif notebook == "vgg16_with_gan":
        rows = [("`make run`, without GAN images", published["vgg16"], "test_accuracy")]
        rows += [("`make run`, with GAN images", published["vgg16_gan"], "test_accuracy")]
        says = "test accuracy"
    else:
        rows, says = [("`make run`", published["resnet"], "test_accuracy")], "test accuracy"
    lines = [f"| | minutes of training | {says} |", "|---|---:|---:|"]
    lines += [f"| {run} | {record['seconds'] / 60:.0f} | {100 * record[key]:.1f} % |" for run, record, key in rows]
    return "\n".join(lines) + f"\n\nOn {rows[0][1]['device']}; slower processors take twice as long or more.\n"


def classifiers(part):
    """Return the published classifiers' records of a part, those of seed 0."""
    found = records.read(part, published=True).values()
    return [record for record in found if "test_accuracy" in record and record["seed"] == 0]


def gans(part):
    """Return the published GANs' records of a part, shortest training first."""
    found = records.read(part, published=True).values()
    return sorted((record for record in found if "gan_train" in record), key=lambda record: record["seconds"])


def tables(part):
    """Return the tables of the published classifiers and GANs of a part."""
    return f"{records.comparison_table(classifiers(part))}\n{gan_table(gans(part))}"


def pairs_text(part):
    """Return the table of all pairs of trainings like that of notebook 2's defaults."""
    published = records.read(part, published=True)
    table = records.pairs_table(*records.gan_pairs(published, "vgg16_gan"))
    return f"Test accuracy of {published['vgg16']['model']}:\n\n{table}"


def results_text(part):
    """Return what the README says of the records: the classifiers, the GANs, and where they were measured."""
    first = gans(part)[0]
    return f"""{tables(part)}
Seed {first["seed"]}, on {first["device"]}. Consistency: weight of the consistency regularisation.
Candidates: images drawn for each one that is kept, the one whose class is plainest to a small classifier, the teacher.
GAN-test: share of them that another small classifier of real images names rightly. GAN-train: accuracy on real images of that
classifier trained on GAN images alone, as many as there are real ones. Fréchet distance in its features. Diversity within a
class, over that of real images. Memorised: share nearer to a training image than 99 % of unseen photographs are. The last row
takes real images for the GAN's.
"""


def gan_table(made):
    """Return a Markdown table of GANs' records, in their order, with what real images would score."""
    columns = ("channels", "consistency", "epochs", "minutes", "candidates", "GAN-train", "of real", "GAN-test", "Fréchet")
    rows = [f"| GAN | {' | '.join(columns)} | diversity | memorised |", "|---|" + "---:|" * 11]
    for record in made:
        chosen = record["parameters"]
        size = f"{chosen['CHANNELS']} | {chosen.get('CONSISTENCY', 0):g}"  # records from before it was a parameter had none
        counts = f"{size} | {record['epochs_run']} | {record['seconds'] / 60:.1f} | {chosen['CANDIDATES']}"
        train, test, memorised = (f"{100 * record[key]:.1f} %" for key in ("gan_train", "gan_test", "memorised_pixels"))
        scores = f"{train} | {record['gan_train_ratio']:.2f} | {test} | {record['fid']:.1f} | {record['diversity']:.2f}"
        rows.append(f"| `{record['name']}` | {counts} | {scores} | {memorised} |")
    real = f"{100 * made[0]['gan_test_real']:.1f} %"
    rows.append(f"| real images | | | | | | {real} | 1 | {real} | {made[0]['fid_real']:.1f} | 1 | 1 % |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
