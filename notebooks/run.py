"""Run the three notebooks top to bottom, headless: `make run`, `make publish`. Executed copies go to results/."""

import argparse
import ast
import base64
import io
import json
import logging
import os
import sys
import time
from pathlib import Path

import nbformat
import papermill
from nbconvert.preprocessors import TagRemovePreprocessor
from PIL import Image

import cifar100
import measures

HERE = Path(__file__).resolve().parent
NOTEBOOKS = ("gan_synthetic_images", "vgg16_with_gan", "resnet_baseline")
EXPECTED = {"cifar100": (25, 38, 10), "shapes100": (4, 3, 1)}  # minutes of each notebook on 2 CPU cores
GREETING = "absl::InitializeLog"  # in TensorFlow's first words, which name the machine's missing drivers
STAND_IN = {"EPOCHS": 6}  # enough on its few simple images; the command line can say otherwise


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=cifar100.DATASETS, help="cifar100 where it can be had, else shapes100")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="override a parameter")
    parser.add_argument("--only", choices=NOTEBOOKS, help="run this notebook alone")
    parser.add_argument("--publish", action="store_true", help="copy the executed notebooks back, without real images")
    arguments = parser.parse_args()
    if arguments.publish:
        return publish(arguments.dataset or "cifar100")
    overrides = {name: literal(value) for name, value in arguments.p}
    parameters = parameters_of_each(overrides)
    dataset = arguments.dataset or overrides.get("DATASET") or choose_dataset()
    if dataset not in EXPECTED:
        sys.exit(f"unknown dataset {dataset!r}; known are {', '.join(EXPECTED)}")
    chosen = {name: minutes for name, minutes in zip(NOTEBOOKS, EXPECTED[dataset], strict=True) if arguments.only in (None, name)}
    part, title = cifar100.part(dataset, overrides.get("REAL_FRACTION", 1), overrides.get("VARIANT", ""))
    minutes = sum(chosen.values())
    print(f"{title}: expect about {minutes} minutes on 2 CPU cores with the default parameters", flush=True)
    for name in chosen:
        given = parameters[name]
        if dataset == "shapes100":
            given = STAND_IN | given | {"DATASET": dataset}
        if not execute(name, part, given):
            return 1
    print(f"Done: records, figures and executed notebooks are in results/{part}")
    return 0


def literal(value):
    """Return a command line's text as the Python value it spells, or else as text."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def parameters_of_each(overrides):
    """Share out the overrides among the notebooks that have them; one that none has ends the program."""
    known = {name: set(papermill.inspect_notebook(str(HERE / f"{name}.ipynb"))) for name in NOTEBOOKS}
    unknown = sorted(set(overrides) - set.union(*known.values()))
    if unknown:
        sys.exit(f"unknown parameter {', '.join(unknown)}; known are {', '.join(sorted(set.union(*known.values())))}")
    return {name: {key: value for key, value in overrides.items() if key in known[name]} for name in NOTEBOOKS}


def choose_dataset():
    """Return cifar100 if it is on disk or can be downloaded, else the stand-in, loudly. An altered copy is an error."""
    try:
        if not cifar100.find_cifar100():
            cifar100.download_cifar100()
    except cifar100.DownloadError as error:
        rule = "!" * 100
        print(error, rule, "No CIFAR-100: this run uses the stand-in shapes100.", rule, sep="\n")
        print("Its figures say NOTHING about CIFAR-100.")
        return "shapes100"
    except cifar100.DataError as error:
        sys.exit(str(error))
    return "cifar100"


def execute(name, part, parameters):
    """Execute one notebook into results/<part>/notebooks. Returns whether all cells passed."""
    worker = json.loads(os.environ.get("TF_CONFIG") or "{}").get("task", {}).get("index", 0)
    run = parameters.get("RUN", name) + f"-worker{worker}" * bool(worker)  # trainings of several names, workers: a copy each
    output = HERE.parent / "results" / part / "notebooks" / f"{run}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n== {name} ==", flush=True)
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(HERE / f"{name}.ipynb"), str(output), parameters, cwd=str(HERE), log_output=True, progress_bar=sys.stderr.isatty()
        )
    except papermill.PapermillExecutionError as error:
        print(f"\nFAILED {name}, {heading(output, error.cell_index)}\n{error.ename}: {error.evalue}\nExecuted so far: {output}")
        return False
    print(f"== {name}: {(time.perf_counter() - start) / 60:.1f} minutes ==", flush=True)
    return True


def heading(notebook, index):
    """Return the words a reader knows a cell by: its number and the last heading above it."""
    cells = nbformat.read(notebook, 4).cells[: index + 1]
    headings = [
        line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines() if line.startswith("#")
    ]
    return f"cell {index + 1}, under {headings[-1].lstrip('# ') if headings else 'no heading'!r}"


def read_records(results):
    """Return the records in a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}


def gan_records(results):
    """Return the GANs' records in a folder, shortest training first."""
    records = [record for record in read_records(results).values() if "gan_train" in record]
    return sorted(records, key=lambda record: record["seconds"])


def pairs_text(results):
    """Return the table of all pairs of trainings of notebook 2, with its own seed and with those of `make pairs`."""
    records = read_records(results)
    return f"Test accuracy of {records['vgg16']['model']}:\n\n{measures.pairs_table(*measures.gan_pairs(records, 'vgg16_gan'))}"


def tables(results):
    """Return the tables of classifiers and of GANs recorded in a folder."""
    return f"{(results / 'comparison.md').read_text()}\n{gan_table(gan_records(results))}"


def results_text(results):
    """Return what the README says of the records: the classifiers, the GANs, and where they were measured."""
    gans = gan_records(results)
    return f"""{tables(results)}
Seed {gans[0]["seed"]}, on {gans[0]["device"]}. Consistency: weight of the discriminator's agreement with itself on shifted
and flipped copies. Candidates: images drawn for each one that is kept, the one whose class is plainest to a small
classifier, the teacher. GAN-test: share of them that another small classifier of real images names rightly. GAN-train:
accuracy on real images of that classifier trained on GAN images alone, as many as there are real ones. Fréchet distance in
its features. Diversity within a class, over that of real images. Memorised: share nearer to a training image than 99 % of
unseen photographs are. The last row takes real images for the GAN's.
"""


def gan_table(records):
    """Return a Markdown table of GANs' records, in their order, with what real images would score."""
    rows = [
        "| GAN | channels | consistency | epochs | minutes | candidates | GAN-train | of real | GAN-test | Fréchet | diversity"
        " | memorised |",
        "|---|" + "---:|" * 11,
    ]
    for record in records:
        chosen = record["parameters"]
        size = f"{chosen['CHANNELS']} | {chosen.get('CONSISTENCY', 0):g}"  # records from before it was a parameter had none
        counts = f"{size} | {record['epochs_run']} | {record['seconds'] / 60:.1f} | {chosen['CANDIDATES']}"
        train, test, memorised = (f"{100 * record[key]:.1f} %" for key in ("gan_train", "gan_test", "memorised_pixels"))
        scores = (
            f"{train} | {record['gan_train_ratio']:.2f} | {test} | {record['fid']:.1f} | {record['diversity']:.2f} | {memorised}"
        )
        rows.append(f"| `{record['name']}` | {counts} | {scores} |")
    real = f"{100 * records[0]['gan_test_real']:.1f} %"
    rows.append(f"| real images | | | | | | {real} | 1 | {real} | {records[0]['fid_real']:.1f} | 1 | 1 % |")
    return "\n".join(rows) + "\n"


def as_jpeg(data, largest=200_000):
    """Replace a large PNG in a cell's output by a JPEG: photographs fill most of it, and notebooks stay small."""
    if len(data.get("image/png", "")) > largest:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


def fill_readme(name, text):
    """Put a text between the README's marks of that name."""
    readme = HERE.parent / "README.md"
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = readme.read_text().partition(start)
    readme.write_text(f"{before}{start}{text}{end}{rest.partition(end)[2]}")


def publish(dataset):
    """Copy the executed notebooks back to notebooks/: outputs kept but for real images and TensorFlow's greeting.

    The README receives the tables of records, those of `make scarce` too.
    """
    remove = TagRemovePreprocessor(remove_all_outputs_tags={"real-images"})
    for name in NOTEBOOKS:
        notebook = nbformat.read(HERE.parent / "results" / dataset / "notebooks" / f"{name}.ipynb", 4)
        counts = [cell.get("execution_count") for cell in notebook.cells]
        notebook, _ = remove.preprocess(notebook, {})  # forgets the counts of the cells it empties
        notebook.metadata.pop("papermill", None)
        for cell, count in zip(notebook.cells, counts, strict=True):
            if cell.cell_type == "code":
                cell.execution_count = count
                cell.outputs = [output for output in cell.outputs if GREETING not in output.get("text", "")]
            for output in cell.get("outputs", []):
                as_jpeg(output.get("data", {}))
            tags = cell.metadata.get("tags")
            cell.metadata = {"tags": tags} if tags else {}
        nbformat.write(notebook, HERE / f"{name}.ipynb")
    results = HERE.parent / "results"
    fill_readme("results", results_text(results / dataset))
    fill_readme("pairs", pairs_text(results / dataset))
    fill_readme("scarce", tables(results / f"{dataset}-0.1"))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    papermill_log = logging.getLogger("papermill")  # the cells' output; the progress bar counts the cells
    papermill_log.addFilter(lambda record: not record.getMessage().startswith(("Executing", "Ending", "Input", "Output")))
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    sys.exit(main())
