"""The three notebooks, run for real on tiny data, edited and run again."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import keras
import nbformat
import numpy as np
import pytest
from conftest import git

import utils
from core import records, synthetic
from core.files import array_digest, file_sha256
from tools import cells

NAMES = cells.NOTEBOOKS
TINY = {  # 8 channels: on a CPU PyTorch 2.13 hangs in the gradient of a strided convolution of 4
    "EPOCHS": 2, "REAL_FRACTION": 0.2, "CHANNELS": 8, "IMAGES_PER_CLASS": 10, "JUDGE_EPOCHS": 1,
    "WIDTH": 0.05, "SYNTHETIC_PER_CLASS": 3, "DEPTH": 8, "BATCH_SIZE": 64, "PRECISION": "float32",
    "IMAGENET_SIZE": 32, "IMAGENET_EPOCHS": 2,
}  # fmt: skip
FOLDER = "shapes100-0.2"  # where the results of TINY are
GAN, VGG16, RESNET = NAMES
pytestmark = pytest.mark.slow


def passed(folder, parameters, only=None, backend="tensorflow"):
    """Run notebooks in a copy of the project, as `make run` does, and return what they print."""
    known = set().union(*(cells.parameters(name) for name in ([only] if only else NAMES)))
    command = [sys.executable, "-m", "tools.run", "--dataset", "shapes100"]
    for name in parameters.keys() & known:
        command += ["-p", name, str(parameters[name])]
    command += ["--only", only] if only else []
    environment = os.environ | {"HOME": str(folder.parent / "home"), "KERAS_BACKEND": backend}
    environment["MPLBACKEND"] = "Agg"  # as some shells have it; notebooks show figures nevertheless
    options = {"capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run(command, cwd=folder, env=environment, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def own_records(folder):
    paths = (folder / "runs" / FOLDER).glob("*.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


@pytest.fixture(scope="module")
def chain(copy):
    """The whole chain, run once on tiny data, in a repository of its own."""
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "as published")
    printed = passed(copy, TINY)
    return copy, printed, own_records(copy)


def test_the_chain_says_what_it_runs_and_writes_every_record_in_full(chain):
    _, printed, made = chain
    title = "shapes100 (stand-in, NOT CIFAR-100)"
    assert printed.startswith(f"{title}: the notebooks' defaults, with ")
    for name in ("judge", "teacher", "gan", "student", "vgg16", "vgg16_gan", "resnet", "imagenet"):
        line = rf"^{name}: training for \d epochs?\n(Epoch 1/\d\n)? *\d+/\d+ - \d+s - .* - loss: "
        assert re.search(line, printed, flags=re.M)
    assert re.search(r"^\| VGG-16 x0\.05 \+ GAN, 2 epochs, Adam, your vgg16_gan \| ", printed, re.M)
    assert set(made) == {"gan", "vgg16_gan", "vgg16", "resnet", "imagenet"}
    for name, record in made.items():
        assert record.keys() >= records.REQUIRED
        assert (record["name"], record["dataset"], record["seed"]) == (name, "shapes100", 0)
        assert (record["epochs_run"], record["steps"]) == (2, 2 * 15)  # 900 images in 64s
        assert all(len(values) == 2 for values in record["history"].values())
        assert record["versions"]["keras"] == keras.__version__
        assert record["parameters"]["EPOCHS"] == 2
        if name != "gan":
            assert 0 <= record["train_accuracy"] <= 1
            assert 0 <= record["test_top5"] <= 1
            assert record["precision"] == "float32"
    assert [made[name]["trained_on"] for name in ("vgg16", "vgg16_gan")] == [900, 1200]
    assert made["vgg16"]["recipe"] == made["vgg16_gan"]["recipe"]
    assert made["gan"]["fid"] > made["gan"]["fid_real"] > 0
    assert made["gan"]["history"].keys() >= {"g_loss", "d_loss", "fid", "gan_test", "diversity"}
    assert 0 <= made["gan"]["gan_test"] <= 1


@pytest.mark.parametrize("name", ["vgg16_gan", "vgg16", "resnet", "imagenet"])
def test_records_and_files_are_of_the_network_with_the_lowest_validation_loss(chain, name):
    folder, _, made = chain
    data = utils.load("shapes100")
    _, validation = utils.split(data.y_train, real_fraction=0.2)
    network = keras.saving.load_model(folder / "runs" / FOLDER / f"{name}.keras")
    smoothing = made[name]["parameters"]["LABEL_SMOOTHING"]
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    network.compile(loss=loss, metrics=["accuracy"])
    for split, images, labels in (
        ("val", data.x_train[validation], data.y_train[validation]),
        ("test", data.x_test, data.y_test),
    ):
        one_hot = np.eye(100, dtype="float32")[labels]
        loss, accuracy = network.evaluate(images, one_hot, batch_size=500, verbose=0)
        assert made[name][f"{split}_accuracy"] == pytest.approx(accuracy, abs=0.003)
        is_best = loss == pytest.approx(min(made[name]["history"]["val_loss"]), rel=2e-4)
        assert is_best == (split == "val")


def test_images_are_written_as_their_manifest_says_and_nothing_published_changes(chain):
    folder, _, made = chain
    data, own = utils.load("shapes100"), folder / "synthetic_images" / "runs" / FOLDER
    images, labels, manifest = synthetic.load(own, data.class_names)
    assert np.bincount(labels).tolist() == [10] * 100
    assert made["vgg16_gan"]["synthetic_digest"] == array_digest(images)
    train, _ = utils.split(data.y_train, real_fraction=0.2)
    assert manifest["train_digest"] == array_digest(train)
    generator = folder / "runs" / FOLDER / "gan_generator.keras"
    assert manifest["generator_sha256"] == file_sha256(generator)
    # The first promise: nothing that git knows has changed, and nothing new that it would know.
    assert git(folder, "status", "--porcelain") == ""


def test_the_chain_draws_figures_and_a_table_without_a_warning(chain):
    results = chain[0] / "runs" / FOLDER
    figures = {path.stem for path in results.glob("*.png")}
    assert figures >= {"comparison", "pairs", "gan_samples", "gan_losses", "gan_learning"}
    assert figures >= {f"vgg16_{name}" for name in ("confusion", "classes", "picture", "curves")}
    for name in NAMES:
        executed = nbformat.read(results / "notebooks" / f"{name}.ipynb", 4)
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        assert "stand-in, NOT CIFAR-100" in str(outputs)
        assert "image/png" in str(outputs)
        rows = 4 if name == "resnet_baseline" else 0  # two of VGG-16, a ResNet, an ImageNet model
        assert str(outputs).count("| yours: ") == rows
        printed = [output for output in outputs if output.output_type == "stream"]
        texts = [each.text for each in printed if each.name == "stderr" or "WARN" in each.text]
        lines = [line for text in texts for line in text.splitlines()]
        start_up = re.compile(r"[IWE]0000|WARNING: All log messages before")  # TensorFlow's own
        assert [line for line in lines if not start_up.match(line)] == []


OWN_LOSS = """
class WeightedLoss(keras.losses.Loss):
    def __init__(self, weight):
        super().__init__()
        self._weight = weight

    def call(self, y_true, y_pred):
        return self._weight * keras.losses.categorical_crossentropy(y_true, y_pred)
"""


def test_editing_a_cell_retrains_and_undoing_the_edit_finds_the_old_runs(chain):
    """The edit changes only an attribute whose name begins with an underscore."""
    folder, _, first = chain
    path, losses = folder / "notebooks" / f"{VGG16}.ipynb", []
    text = path.read_text(encoding="utf-8")
    for weight in (1.5, 4.0):
        notebook = nbformat.reads(text, 4)
        (cell,) = [cell for cell in notebook.cells if "def compile_vgg16" in cell.source]
        own = f"compile(optimizer, WeightedLoss({weight}),"
        cell.source = OWN_LOSS + cell.source.replace("compile(optimizer, loss,", own)
        nbformat.write(notebook, path)
        printed, made = passed(folder, TINY, only=VGG16), own_records(folder)
        losses.append(made["vgg16"]["history"]["loss"][0])
        assert printed.count("training from the start, because the run has changed: ") == 2
        assert "has finished" not in printed
        assert "continues after" not in printed
        for name in ("vgg16", "vgg16_gan"):
            assert made[name]["fingerprint"] != first[name]["fingerprint"]
            assert made[name]["history"] != first[name]["history"]
    assert "model.loss._weight is 4.0, was 1.5" in printed
    assert losses[1] > 2 * losses[0]
    path.write_text(text, encoding="utf-8")
    printed, made = passed(folder, TINY, only=VGG16), own_records(folder)
    assert printed.count("this run has finished") == 2
    for name in ("vgg16", "vgg16_gan"):
        for key in ("history", "fingerprint", "steps", "test_accuracy"):
            assert made[name][key] == first[name][key]


def test_train_false_only_draws_and_the_record_stays(chain):
    folder, before = chain[0], own_records(chain[0])
    manifest = folder / "synthetic_images" / "runs" / FOLDER / "manifest.json"
    old = json.loads(manifest.read_text(encoding="utf-8"))
    printed = passed(folder, TINY | {"TRAIN": False, "CANDIDATES": 1}, only=GAN)
    assert "gan: training" not in printed
    assert own_records(folder) == before
    new = json.loads(manifest.read_text(encoding="utf-8"))
    assert [each["parameters"]["CANDIDATES"] for each in (old, new)] == [4, 1]
    assert new["images_sha256"] != old["images_sha256"]
    assert new["generator_sha256"] == old["generator_sha256"] == before["gan"]["generator_sha256"]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_chain_runs_on_another_backend(tmp_path, copy, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    left_out = shutil.ignore_patterns("runs", "synthetic_images", ".git")
    folder = shutil.copytree(copy, tmp_path / backend, ignore=left_out)
    others = {"EPOCHS": 1, "CUTMIX": 1.0, "TRIVIAL_AUGMENT": True, "STEPS": "added"}
    passed(folder, TINY | others, backend=backend)
    made = own_records(folder)
    assert (made["vgg16"]["steps"], made["vgg16_gan"]["steps"]) == (15, 19)  # of 64 images
    assert made["vgg16"]["recipe"] == made["vgg16_gan"]["recipe"]
    assert set(made) == {"gan", "vgg16_gan", "vgg16", "resnet", "imagenet"}
    assert {record["versions"]["backend"] for record in made.values()} == {backend}
    assert (folder / "synthetic_images" / "runs" / FOLDER / "manifest.json").exists()
    fingerprint = next((folder / "runs" / FOLDER / "checkpoints").glob("vgg16/*/fingerprint.json"))
    settings = json.loads(fingerprint.read_text(encoding="utf-8"))["batches"]["state"]
    assert (settings["trivial_augment"], settings["cutmix"]) == (True, 1.0)
