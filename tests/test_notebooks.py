"""The notebooks: run for real on tiny data, and what is committed of them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import keras
import nbformat
import numpy as np
import pytest
from conftest import ROOT

import measures
import utils
from notebooks import bench, cells, parity, run

NAMES = ("gan_synthetic_images", "vgg16_with_gan", "resnet_baseline")
TINY = {  # 8 channels: PyTorch 2.13 hangs in the backward pass of a strided convolution of 4 channels on a CPU
    "EPOCHS": 2, "REAL_FRACTION": 0.2, "CHANNELS": 8, "LATENT_DIM": 8, "JUDGE_EPOCHS": 1, "IMAGES_PER_CLASS": 10,
    "WIDTH": 0.05, "SYNTHETIC_PER_CLASS": 3, "DEPTH": 8, "PRECISION": "float32",
}  # fmt: skip
PART = "shapes100-0.2"  # where the results of TINY are


def run_notebooks(folder, parameters, dataset="shapes100", backend="tensorflow", only=None, environment=()):
    """Run `python -m notebooks.run` in a copy of the project, as `make run` does."""
    overrides = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "notebooks.run", "--dataset", dataset, *overrides, *(["--only", only] if only else [])]
    environment = os.environ | {
        "HOME": str(folder),
        "KERAS_BACKEND": backend,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **dict(environment),
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def parameters_cell(name):
    (source,) = [cell.source for cell in cells.read(name) if "parameters" in cell.metadata.get("tags", [])]
    return source


@pytest.fixture(scope="session")
def chain(copy):
    """The whole chain, run once on tiny data."""
    done = run_notebooks(copy, TINY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return copy, done.stdout, utils_records(copy)


def utils_records(folder, part=PART):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results" / part).glob("*.json")}


def test_chain_says_first_how_long_it_takes_and_on_what(chain):
    first = chain[1].splitlines()[0]
    assert "stand-in, NOT CIFAR-100" in first
    assert "expect about 8 minutes" in first


def test_chain_writes_every_record_in_full(chain):
    _, _, records = chain
    assert set(records) == {"gan", "vgg16_gan", "vgg16", "resnet"}
    for name, record in records.items():
        assert record.keys() >= utils.RECORD_KEYS
        assert (record["name"], record["dataset"], record["seed"], record["real_fraction"]) == (name, "shapes100", 0, 0.2)
        assert record["epochs_run"] == 2
        assert record["steps"] == 2 * 15  # 100 classes x 9 images in batches of 64, rounded up, twice
        assert all(len(values) == 2 for values in record["history"].values())
        assert record["versions"]["keras"] == keras.__version__
        assert 100 < record["peak_memory_mb"] < 4000
    for name in ("vgg16_gan", "vgg16", "resnet"):
        for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_top5"):
            assert 0 <= records[name][key] <= 1
        assert records[name]["parameters"]["EPOCHS"] == 2
    assert (records["vgg16_gan"]["synthetic_per_class"], records["vgg16"]["synthetic_per_class"]) == (3, 0)
    assert records["vgg16_gan"]["model"] == "VGG-16 x0.05 + GAN"
    gan = records["gan"]
    assert 0 <= gan["gan_test"] <= 1
    assert gan["fid"] > gan["fid_real"] > 0
    assert gan["gan_train_ratio"] == pytest.approx(gan["gan_train"] / gan["gan_test_real"])
    assert all(0 <= gan[key] <= 1 for key in ("gan_train_test_split", "memorised_pixels", "memorised_features"))
    assert gan["diversity"] > 0
    assert gan["history"].keys() == {"loss", "d_loss", "g_loss", "fid", "gan_test", "diversity"}


def test_chain_writes_images_that_its_manifest_and_records_name(chain):
    folder, _, records = chain
    data = utils.load("shapes100")
    images, labels, manifest = utils.load_synthetic(folder / "synthetic_images" / PART, data.class_names)
    assert np.bincount(labels).tolist() == [10] * 100
    assert manifest["images_sha256"] == utils.digest(images, labels)
    assert records["vgg16_gan"]["synthetic_digest"] == utils.digest(images)
    assert manifest["train_digest"] == utils.digest(utils.split(data.y_train, real_fraction=0.2)[0])
    assert manifest["generator_sha256"] == utils.file_sha256(folder / "results" / PART / "gan_generator.keras")


def test_chain_draws_every_figure_and_the_table(chain):
    results = chain[0] / "results" / PART
    expected = (
        "gan_losses gan_learning gan_samples gan_nearest gan_classes vgg16_curves "
        "vgg16_confusion vgg16_classes resnet_curves comparison"
    )
    assert {path.stem for path in results.glob("*.png")} == set(expected.split())
    assert (results / "comparison.md").read_text().count("\n") == 5
    for name in NAMES:
        executed = (results / "notebooks" / f"{name}.ipynb").read_text()
        assert "stand-in, NOT CIFAR-100" in executed


def test_a_finished_chain_is_not_trained_again_and_train_false_only_draws(chain):
    folder, _, records = chain
    before = (folder / "synthetic_images" / PART / "manifest.json").read_text()
    done = run_notebooks(folder, TINY | {"TRAIN": False})
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("s of training found in") == 5  # judge, student and three networks; no teacher, no GAN
    again = utils_records(folder)
    assert json.loads((folder / "synthetic_images" / PART / "manifest.json").read_text()) == json.loads(before)
    assert again["gan"] == records["gan"]
    for name in ("vgg16", "vgg16_gan", "resnet"):
        assert again[name]["test_accuracy"] == records[name]["test_accuracy"]
        assert again[name]["history"] == records[name]["history"]


def test_saved_model_predicts_the_same_in_a_new_process(chain):
    folder = chain[0]
    script = f"""
        import sys, numpy as np
        import utils, keras
        model = keras.saving.load_model("results/{PART}/vgg16_gan.keras")
        data = utils.load("shapes100")
        print((model.predict(data.x_test, verbose=0, batch_size=500).argmax(1) == data.y_test).mean())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert float(done.stdout.split()[-1]) == pytest.approx(chain[2]["vgg16_gan"]["test_accuracy"], abs=1e-9), done.stderr


def test_a_failing_cell_ends_the_run_with_its_name_and_keeps_the_notebook(copy):
    done = run_notebooks(copy, {"EPOCHS": 0, "CHANNELS": -1, "PRECISION": "half"}, dataset="shapes100")
    assert done.returncode == 1
    end = done.stdout[done.stdout.index("FAILED") :]
    assert "FAILED gan_synthetic_images, cell" in end
    assert "under 'Parameters'" in end
    for part in ("EPOCHS = 0", "CHANNELS = -1", "PRECISION = 'half'"):
        assert part in end
    executed = nbformat.read(copy / "results" / "shapes100" / "notebooks" / "gan_synthetic_images.ipynb", 4)
    assert any(output.output_type == "error" for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs)


def test_one_notebook_can_be_run_alone(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(run, "execute", lambda name, dataset, parameters: ran.append((name, dataset, parameters)) or True)
    command = ["run", "--dataset", "shapes100", "--only", "resnet_baseline", "-p", "EPOCHS", "3", "-p", "LATENT_DIM", "8"]
    monkeypatch.setattr(sys, "argv", command)
    assert run.main() == 0
    assert ran == [("resnet_baseline", "shapes100", {"EPOCHS": 3, "DATASET": "shapes100"})]
    assert "expect about 1 minutes" in capsys.readouterr().out


def test_an_unknown_parameter_is_an_error(copy):
    done = run_notebooks(copy, {"EPOCS": 3})
    assert done.returncode != 0
    assert "unknown parameter EPOCS; known are AUGMENT, BATCH_SIZE" in done.stderr
    assert run.literal("3") == 3
    assert run.literal("False") is False
    assert run.literal("float32") == "float32"


def test_without_dataset_and_network_the_stand_in_is_taken_loudly(project, monkeypatch, capsys):
    monkeypatch.setattr(run.cifar100.download_cifar100, "__defaults__", (("http://127.0.0.1:9/none",), "0" * 64, 1))
    assert run.choose_dataset() == "shapes100"
    assert "NOTHING about CIFAR-100" in capsys.readouterr().out


def test_an_altered_dataset_is_not_replaced_by_the_stand_in(project, monkeypatch):
    monkeypatch.setenv("CIFAR100_DIR", str(project))
    with pytest.raises(SystemExit, match="missing"):
        run.choose_dataset()


def test_vgg16_at_full_width_is_the_paper_s():
    names = {"WIDTH": 1.0, "x_real": np.zeros((2, 32, 32, 3), np.uint8)}
    model = cells.define("vgg16_with_gan", "def build_vgg16", **names)["build_vgg16"](1.0)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert all(layer.kernel_size == (3, 3) for layer in convolutions)
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 5
    assert sum(int(np.prod(layer.kernel.shape)) for layer in convolutions) == 14_710_464  # the paper's, without biases


def test_resnet_has_the_depth_it_says():
    build_resnet = cells.define("resnet_baseline", "def build_resnet", DEPTH=20, CHANNELS=16)["build_resnet"]
    for depth in (8, 20, 56):
        layers = build_resnet(depth).layers
        weighted = [layer for layer in layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))]
        assert sum(getattr(layer, "kernel_size", 0) != (1, 1) for layer in weighted) == depth


def imagenet_builder(weights):
    choices = {"IMAGENET": False, "IMAGENET_MODEL": "MobileNetV2", "IMAGENET_WEIGHTS": str(weights), "IMAGENET_SIZE": 32}
    return cells.define("resnet_baseline", "def build_imagenet", **choices)["build_imagenet"]


def test_imagenet_model_from_a_weights_file(tmp_path):
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    base.save_weights(tmp_path / "local.weights.h5")
    model = imagenet_builder(tmp_path / "local.weights.h5")()
    loaded = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    np.testing.assert_array_equal(loaded.get_weights()[0], base.get_weights()[0])
    assert model.predict(np.zeros((2, 32, 32, 3), np.uint8), verbose=0).shape == (2, 100)


def test_imagenet_weights_that_cannot_be_had_are_named(tmp_path):
    with pytest.raises(RuntimeError, match="none.weights.h5.*for MobileNetV2.*IMAGENET = False"):
        imagenet_builder(tmp_path / "none.weights.h5")()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_chain_runs_on_another_backend(tmp_path, copy, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    folder = tmp_path / backend
    shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("results", "synthetic_images"))
    done = run_notebooks(folder, TINY | {"EPOCHS": 1, "AUGMENT": True, "CUTMIX": 1.0, "VARIANT": "other"}, backend=backend)
    assert done.returncode == 0, done.stdout[-3000:]
    records = utils_records(folder, f"{PART}-other")
    assert set(records) == {"gan", "vgg16_gan", "vgg16", "resnet"}
    assert {record["versions"]["backend"] for record in records.values()} == {backend}
    assert (folder / "synthetic_images" / f"{PART}-other" / "manifest.json").exists()


# ------------------------------------------------------------------------------------------ as committed


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_executed_in_order_without_error(name):
    code = cells.read(name)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1.5e6
    assert all(set(cell.metadata) <= {"tags"} for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_no_committed_output_holds_a_real_image(name):
    for cell in cells.read(name):
        shows_real = re.search(r"(plot_images|show_classes|imshow)\(\s*(data\.)?x_(?!synthetic)", cell.source)
        tagged = "real-images" in cell.metadata.get("tags", [])
        assert not shows_real or tagged, cell.source
        assert not tagged or not cell.outputs


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_flat_commented_and_all_checked(name):
    source = parameters_cell(name)
    assigned = re.findall(r"^([A-Z_]+) = ", source, flags=re.M)
    assert len(assigned) == len([line for line in source.splitlines() if line and not line.startswith("#")])
    (check,) = [cell.source for cell in cells.read(name) if "check_parameters(" in cell.source]
    assert set(re.findall(r"\b([A-Z_]{3,})=", check)) == set(assigned)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_parameters_are_refused_before_anything_is_loaded(name):
    parameters = cells.define(name, parameters_cell(name), GPU=False)
    wrong = {
        "EPOCHS": 0,
        "WIDTH": -1,
        "BATCH_SIZE": 10**9,
        "SYNTHETIC_PER_CLASS": 10**9,
        "SEED": "0",
        "DEPTH": 21,
        "RESUME": "no",
    }
    wrong = {key: value for key, value in wrong.items() if key in parameters}
    with pytest.raises(ValueError, match="wrong parameters") as error:
        cells.define(name, "check_parameters(", **parameters | wrong)
    assert all(f"{key} = {value!r}" in str(error.value) for key, value in wrong.items())


def test_committed_records_belong_to_committed_files():
    results = ROOT / "results" / "cifar100"
    names = [path.name for path in (ROOT / "synthetic_images" / "cifar100").iterdir() if path.is_dir()]
    images, labels, manifest = utils.load_synthetic(ROOT / "synthetic_images" / "cifar100", sorted(names))
    assert manifest["images_sha256"] == utils.digest(images, labels)
    assert np.bincount(labels).min() >= 20
    assert json.loads((results / "vgg16_gan.json").read_text())["synthetic_digest"] == utils.digest(images)
    records = {name: record for name, record in utils.read_records("cifar100").items() if "gan_train" in record}
    assert records.keys() == {"gan", "gan_long"}
    for name, record in records.items():
        generator = results / f"{name}_generator.keras"
        assert record["generator_sha256"] == utils.file_sha256(generator)
        assert generator.stat().st_size < 20e6
    assert manifest["generator_sha256"] in [record["generator_sha256"] for record in records.values()]


@pytest.mark.parametrize(("part", "text"), [("cifar100", run.results_text), ("cifar100-0.1", run.tables)])
def test_readme_says_what_the_records_say(part, text):
    results = ROOT / "results" / part
    records = utils.read_records(part).values()
    classifiers = [record for record in records if "test_accuracy" in record and record["seed"] == 0]
    table = utils.comparison_table(classifiers)
    assert (results / "comparison.md").read_text() == table
    assert text(results) in (ROOT / "README.md").read_text()


def test_readme_tells_all_pairs():
    text = run.pairs_text(ROOT / "results" / "cifar100")
    assert text.count("%") == 2 * len(measures.gan_pairs(utils.read_records("cifar100"), "vgg16_gan")[0]) >= 2 * 3
    assert text in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("module", [bench, parity])
def test_readme_says_what_bench_and_parity_said(module):
    record = json.loads(module.OUTPUT.read_text())
    assert module.report(record) in (ROOT / "README.md").read_text()
