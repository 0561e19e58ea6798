"""`make publish`: it alone writes what is published, shows no photograph, and can be repeated."""

import base64
import io
import json
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from core import synthetic
from tools import cells, publish

RESNET = cells.FOLDER / "resnet_baseline.ipynb"


def write(path, **record):
    path.write_text(json.dumps(record), encoding="utf-8")


def executed(path):
    """Return a notebook with the outputs and the metadata of a run."""
    notebook = nbformat.read(path, 4)
    notebook.metadata["papermill"] = {"environment_variables": {}}
    for count, cell in enumerate(cells.code_cells(notebook), 1):
        cell.execution_count = count
        cell.metadata["papermill"] = {"duration": 1}
        cell.outputs = [nbformat.v4.new_output("stream", text="as run")]
    return notebook


def clone_with_runs(clone):
    """Copy the project, with all notebooks run and a ResNet that became more accurate."""
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "runs", "tests"))
    runs = clone / "runs" / "cifar100"
    (runs / "notebooks").mkdir(parents=True)
    record = json.loads((ROOT / "results" / "cifar100" / "resnet.json").read_bytes())
    record |= {"test_accuracy": 0.4321, "parameters": cells.parameters("resnet_baseline")}
    write(runs / "resnet.json", **record)
    for name in cells.NOTEBOOKS:
        notebook = executed(cells.FOLDER / f"{name}.ipynb")
        notebook.cells[0].source = "# A title that was improved later"
        nbformat.write(notebook, runs / "notebooks" / f"{name}.ipynb")
    return record


@pytest.mark.slow
def test_publishing_copies_what_was_run_and_can_be_repeated(tmp_path):
    clone, once = tmp_path / "clone", tmp_path / "once"
    record = clone_with_runs(clone)
    script = "from tools import publish; publish.main(); "
    script += "import shutil; shutil.copytree('.', '../once'); publish.main()"
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is not published" not in done.stdout
    for path in once.rglob("*"):
        again = clone / path.relative_to(once)
        assert path.is_dir() or path.read_bytes() == again.read_bytes()
    assert json.loads((once / "results/cifar100/resnet.json").read_bytes()) == record
    assert "43.21%" in (once / "docs" / "results.md").read_text("utf-8")
    with Image.open(once / "results/cifar100/gallery.jpg") as image:
        assert image.width == 850
        assert np.asarray(image.convert("RGB")).std() > 30
    assert (once / "results/study/study.png").exists()
    for name in cells.NOTEBOOKS:
        notebook = nbformat.read(once / "notebooks" / f"{name}.ipynb", 4)
        assert "papermill" not in notebook.metadata
        assert "improved later" not in notebook.cells[0].source
        for count, cell in enumerate(cells.code_cells(notebook), 1):
            assert cell.execution_count == count
            assert bool(cell.outputs) != ("real-images" in cell.metadata.get("tags", []))
            assert set(cell.metadata) <= {"tags"}


def test_images_and_a_network_are_published_only_on_request(project, monkeypatch):
    """They stay in everybody's clone for good."""
    monkeypatch.setattr(publish.tables, "fill", lambda: None)
    monkeypatch.setattr(publish, "gallery", lambda path: None)
    monkeypatch.setattr(publish.figures, "draw", lambda found, folder: None)
    for folder in ("runs/cifar100", "results/cifar100", "runs/bench", "results/bench"):
        (project / folder).mkdir(parents=True)
    images, labels = np.zeros((3, 32, 32, 3), np.uint8), np.arange(3)
    synthetic.save(synthetic.folder_of_run("cifar100"), images, labels, ["a", "b", "c"], {})
    results = project / "results" / "cifar100"
    network = publish.classify.NETWORK.name
    for folder in ("runs", "results"):
        (project / folder / "cifar100" / network).write_text(folder, encoding="utf-8")

    def published(*arguments, commit="abc"):
        write(project / "runs" / "bench" / "bench.json", commit=commit)
        monkeypatch.setattr(sys, "argv", ["publish", *arguments])
        publish.main()
        kinds = "synthetic_images/cifar100/manifest.json", "results/bench/bench.json"
        source = (results / network).read_text(encoding="utf-8")
        return source, [(project / name).exists() for name in kinds]

    assert published(commit="abc-dirty-12345678") == ("results", [False, False])
    assert published() == ("results", [False, True])  # and the measurements of `make bench`
    assert published("--images", "--network") == ("runs", [True, True])


def test_a_notebook_of_other_or_unfinished_code_is_not_published(tmp_path, capsys):
    other = "the notebook now has different code"
    unfinished, uncommitted = "the run failed or did not finish", "its code was not committed"
    dirty = [nbformat.v4.new_output("stream", text="'commit': 'abc-dirty-12345678'")]
    parameters = nbformat.v4.new_code_cell("EPOCHS = 3", execution_count=4)
    for change, words in (
        (lambda made: made.cells.insert(5, parameters), other),
        (lambda made: cells.code_cells(made)[-1].update(source="edited"), other),
        (lambda made: cells.code_cells(made)[2].update(outputs=dirty), uncommitted),
        (lambda made: made.metadata.papermill.update(exception=True), unfinished),
        (lambda made: cells.code_cells(made)[-1].update(execution_count=None), unfinished),
    ):
        notebook, path = executed(RESNET), tmp_path / "executed.ipynb"
        change(notebook)
        nbformat.write(notebook, path)
        shutil.copy(RESNET, tmp_path)
        publish.publish_notebook(path, tmp_path / RESNET.name)
        assert capsys.readouterr().out == f"executed.ipynb is not published, because {words}\n"
        assert (tmp_path / RESNET.name).read_bytes() == RESNET.read_bytes()


@pytest.mark.parametrize(("size", "kind"), [(10, "image/png"), (500, "image/jpeg")])
def test_only_large_pictures_become_jpeg(size, kind):
    buffer, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (size, size, 3))
    Image.fromarray(noise.astype(np.uint8)).save(buffer, "PNG")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    publish.as_jpeg(data)
    assert list(data) == [kind]
    assert Image.open(io.BytesIO(base64.b64decode(data[kind]))).size == (size, size)


@pytest.mark.parametrize(
    ("parameters", "commit", "published"),
    [
        ({}, "abc", True), ({}, "abc-dirty-12345678", False), ({}, None, False),
        ({"RESUME": False}, "abc", True), ({"EPOCHS": 1}, "abc", False),
        ({"SEED": 1, "RUN": "vgg16_seed1"}, "abc", True), ({"SEED": 1}, "abc", False),
        ({"PICTURE": "/home/me/me.jpg"}, "abc", False),
        (publish.run.recipes()["best"]["parameters"], "abc", True),
    ],
)  # fmt: skip
def test_only_runs_of_defaults_or_a_recipe_and_of_committed_code_are_published(
    tmp_path, capsys, parameters, commit, published
):
    """A trial of one epoch, or of code that nobody else has, must not become a published number."""
    used = cells.parameters("vgg16_with_gan") | parameters
    write(tmp_path / "vgg16.json", notebook="vgg16_with_gan", commit=commit, parameters=used)
    assert publish.is_publishable(tmp_path / "vgg16.json") == published
    assert ("vgg16.json is not published, because " in capsys.readouterr().out) != published


def test_figures_of_seed_0_alone_and_all_generators_are_published(tmp_path, monkeypatch):
    """Other seeds are numbers and generators, even if their names begin with that of seed 0."""
    monkeypatch.setattr(publish, "is_publishable", lambda path: path.stem != "vgg16_trial")
    runs, results = tmp_path / "runs", tmp_path / "results"
    runs.mkdir()
    kept = ["vgg16", "vgg16_gan", "vgg16_seed1", "vgg16_seed1_gan", "gan_long", "gan_long_seed1"]
    for name in (*kept, "vgg16_trial"):
        write(runs / f"{name}.json", seed=int("seed1" in name))
        (runs / f"{name.removesuffix('_gan')}_curves.png").touch()
    files = {"gan_long_generator.keras", "gan_long_seed1_generator.keras"}
    for name in (*files, "comparison.png", "vgg16.keras", "vgg16_trial_generator.keras"):
        (runs / name).touch()
    publish.copy_results(runs, results)
    files |= {"vgg16_curves.png", "gan_long_curves.png", *(f"{name}.json" for name in kept)}
    assert {path.name for path in results.iterdir()} == files
