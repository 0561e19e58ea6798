"""`make publish`: it alone writes where the published results lie, shows no real image, and twice is once."""

import json
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from core import synthetic
from tools import cells, publish


def clone(folder):
    """A clone of the project with runs of its own on CIFAR-100: the published records, one of them with another accuracy."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    for name in ("core", "tools", "notebooks", "docs", "README.md", "results", "utils.py"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(folder)], check=True)
    runs = folder / "runs" / "cifar100"
    (runs / "notebooks").mkdir(parents=True)
    record = json.loads((folder / "results" / "cifar100" / "resnet.json").read_text(encoding="utf-8"))
    (runs / "resnet.json").write_text(json.dumps(record | {"test_accuracy": 0.4321}), encoding="utf-8")
    for name in cells.NOTEBOOKS:
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", 4)
        notebook.metadata["papermill"] = {"environment_variables": {}}
        for cell in notebook.cells:
            cell.metadata["papermill"] = {"duration": 1}
            if cell.cell_type == "code":
                cell.outputs = [nbformat.v4.new_output("stream", text="as run")]
        for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
            cell.execution_count = count
        nbformat.write(notebook, runs / "notebooks" / f"{name}.ipynb")
    return folder


def published(folder, *arguments):
    done = subprocess.run([sys.executable, "-m", "tools.publish", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = ("results", "notebooks", "README.md", "docs", "synthetic_images/cifar100/manifest.json")
    files = [path for name in names for path in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}, done.stdout


def test_publishing_copies_what_was_run_and_twice_is_once(tmp_path):
    folder = clone(tmp_path / "p")
    before = (folder / "synthetic_images" / "cifar100" / "manifest.json").read_bytes()
    once, _ = published(folder)
    assert b"0.4321" in once["results/cifar100/resnet.json"]
    assert "43.21 %" in once["docs/results.md"].decode()
    others = [json.loads(path.read_text())["test_accuracy"] for path in folder.glob("results/cifar100/resnet_seed*.json")]
    assert f"| {np.mean([43.21, *(100 * each for each in others)]):.1f} ±" in once["README.md"].decode()
    assert once["synthetic_images/cifar100/manifest.json"] == before
    for name in cells.NOTEBOOKS:
        notebook = nbformat.reads(once[f"notebooks/{name}.ipynb"].decode(), 4)
        assert "papermill" not in notebook.metadata
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        for cell in code:
            assert bool(cell.outputs) != ("real-images" in cell.metadata.get("tags", []))
            assert set(cell.metadata) <= {"tags"}
    assert published(folder)[0] == once


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda notebook: notebook.cells.insert(5, nbformat.v4.new_code_cell("EPOCHS = 3", execution_count=4)),
            "run with other parameters",
        ),
        (
            lambda notebook: notebook.cells[2].update(outputs=[nbformat.v4.new_output("stream", text="abc-dirty-12345678")]),
            "its code was not committed",
        ),
        (lambda notebook: notebook.cells[-1].update(source="edited since"), "differs from the present notebook"),
        (lambda notebook: notebook.metadata.update(papermill={"exception": True}), "failed or did not finish"),
        (
            lambda notebook: [cell.update(execution_count=None) for cell in notebook.cells[-3:] if "outputs" in cell],
            "did not finish",
        ),
    ],
)
def test_a_notebook_that_is_not_ours_as_it_stands_is_not_published(tmp_path, capsys, change, words):
    target = ROOT / "notebooks" / "resnet_baseline.ipynb"
    notebook = nbformat.read(target, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    change(notebook)
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    before = target.read_bytes()
    publish.publish_notebook(tmp_path / "executed.ipynb", target)
    assert words in capsys.readouterr().out
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "published"),
    [({}, True), ({"parameters": {"EPOCHS": 1}}, False), ({"commit": "abc-dirty-12345678"}, False), ({"commit": None}, False),
     ({"parameters": {"SEED": 1, "RUN": "vgg16_seed1"}}, True), ({"parameters": {"EPOCHS": 6, "BATCH_SIZE": 64}}, False),
     ({"parameters": {"PICTURE": "/home/me/me.jpg"}}, False),
     ({"parameters": {"SEED": 1}}, False)],
)  # fmt: skip
def test_only_runs_of_a_named_scale_and_committed_code_are_published(tmp_path, change, published):
    """A trial with one epoch, or with code that nobody else has, must not become the repository's number."""
    record = {"notebook": "vgg16_with_gan", "commit": "abc", "parameters": cells.parameters("vgg16_with_gan")}
    record |= change | {"parameters": record["parameters"] | change.get("parameters", {})}
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    assert bool(publish.is_of_a_named_scale(tmp_path / "record.json")) == published


@pytest.mark.parametrize(
    ("change", "published"),
    [({}, True), ({"title": "CIFAR-100", "images": 45_000}, True), ({"title": "CIFAR-100", "images": 500}, False),
     ({"title": "shapes100", "images": 4_500}, False), ({"commit": "abc-dirty-12345678"}, False)],
)  # fmt: skip
def test_measurements_of_part_of_the_data_are_not_published(tmp_path, change, published):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "bench.json").write_text(json.dumps({"commit": "abc"} | change), encoding="utf-8")
    publish.copy_measurements(tmp_path / "runs", tmp_path / "results")
    assert (tmp_path / "results" / "bench.json").exists() == published


def test_images_are_published_on_request_alone(project, monkeypatch):
    names = [f"class {i}" for i in range(3)]
    synthetic.save(synthetic.folder_of_run("cifar100"), np.zeros((3, 32, 32, 3), np.uint8), np.arange(3), names, {"run": "new"})
    (project / "runs" / "cifar100").mkdir(parents=True)
    monkeypatch.setattr(publish, "copy_results", lambda *_: None)
    monkeypatch.setattr(publish.pages, "fill", lambda: None)
    monkeypatch.setattr(publish.figures, "gallery", lambda path: None)
    for arguments, expected in (([], False), (["--images"], True)):
        monkeypatch.setattr(sys, "argv", ["publish", *arguments])
        publish.main()
        assert (project / "synthetic_images" / "cifar100" / "manifest.json").exists() == expected


@pytest.mark.parametrize(("size", "kind"), [(10, "image/png"), (500, "image/jpeg")])
def test_large_pictures_become_jpeg(size, kind):
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)).save(buffer, "PNG")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    publish.as_jpeg(data)
    assert list(data) == [kind]


def test_the_best_classifier_that_is_small_enough_is_published_alone(tmp_path):
    """Best on validation images: the test split chooses nothing."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    for folder in (runs, results):
        folder.mkdir()
    scores = {"vgg16": (0.60, 0.70, 9), "vgg16_wide": (0.65, 0.60, 8), "vgg16_best": (0.70, 0.80, 30), "gan": (None, None, 5)}
    for name, (validation, test, size) in scores.items():
        record = {"seed": 0} | ({"val_accuracy": validation, "test_accuracy": test} if test else {"gan_train": 0.2})
        (runs / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        (runs / f"{name}.keras").write_bytes(name.encode() * size)
    for name in ("vgg16_old.keras", "gan_generator.keras"):
        (results / name).touch()
    publish.copy_best_classifier(sorted(runs.glob("*.json")), results, largest=100)
    assert sorted(path.name for path in results.iterdir()) == ["gan_generator.keras", "vgg16_wide.keras"]


@pytest.mark.parametrize(("before", "after"), [("vgg16_best", "vgg16_best"), ("vgg16_worse", "vgg16"), ("vgg16", "vgg16")])
def test_a_published_classifier_gives_way_to_a_better_one_alone(tmp_path, before, after):
    """`make publish` after a short run must not take the best network away."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    for folder in (runs, results):
        folder.mkdir()
    for folder, name in ((results, before), (runs, "vgg16")):
        score = {"vgg16": 0.60, "vgg16_best": 0.70, "vgg16_worse": 0.50}[name]
        (folder / f"{name}.json").write_text(json.dumps({"val_accuracy": score}), encoding="utf-8")
        (folder / f"{name}.keras").write_text(folder.name)
    publish.copy_best_classifier([runs / "vgg16.json"], results)
    (left,) = results.glob("*.keras")
    assert left.stem == after
    assert left.read_text() == ("results" if after == "vgg16_best" else "runs")


def test_the_gallery_shows_the_first_images_of_each_class(tmp_path):
    from PIL import Image

    from tools import figures

    figures.gallery(tmp_path / "gallery.jpg")
    with Image.open(tmp_path / "gallery.jpg") as image:
        assert image.width == 850
        assert np.asarray(image.convert("RGB")).std() > 30
    assert (tmp_path / "gallery.jpg").stat().st_size < 300_000
    once = (tmp_path / "gallery.jpg").read_bytes()
    figures.gallery(tmp_path / "gallery.jpg")
    assert (tmp_path / "gallery.jpg").read_bytes() == once


def test_figures_of_seed_0_alone_are_published(tmp_path, monkeypatch):
    """Other seeds are but numbers, also where their names begin with that of seed 0."""
    monkeypatch.setattr(publish, "is_of_a_named_scale", lambda path: True)
    runs, results = tmp_path / "runs", tmp_path / "results"
    runs.mkdir()
    for name, seed in (("vgg16", 0), ("vgg16_gan", 0), ("vgg16_seed1", 1), ("vgg16_seed1_gan", 1), ("gan", 0), ("gan_long", 0)):
        (runs / f"{name}.json").write_text(json.dumps({"seed": seed}), encoding="utf-8")
        (runs / f"{name.removesuffix('_gan')}_curves.png").touch()
    for name in ("comparison.png", "pairs.png", "changes.png", "trial_curves.png", "gan_long_generator.keras"):
        (runs / name).touch()
    publish.copy_results(runs, results)
    assert {path.name for path in results.iterdir() if path.suffix != ".json"} == {
        "vgg16_curves.png", "gan_curves.png", "gan_long_curves.png", "gan_long_generator.keras", "comparison.png", "pairs.png",
        "changes.png",
    }  # fmt: skip
    assert len(list(results.glob("*.json"))) == 6
