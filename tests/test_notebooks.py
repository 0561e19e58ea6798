"""The notebooks: run for real on tiny data, edited and run again, and what is committed of them."""

import ast
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
from conftest import ROOT

import utils
from core import records, synthetic
from core.files import array_digest, file_sha256
from core.parameters import LIMITS
from tools import cells

NAMES = cells.NOTEBOOKS
TINY = {  # 8 channels: on a CPU PyTorch 2.13 hangs in the gradient of a strided convolution of 4
    "EPOCHS": 2, "REAL_FRACTION": 0.2, "CHANNELS": 8, "IMAGES_PER_CLASS": 10, "JUDGE_EPOCHS": 1,
    "WIDTH": 0.05, "SYNTHETIC_PER_CLASS": 3, "DEPTH": 8, "BATCH_SIZE": 64, "PRECISION": "float32",
}  # fmt: skip
FOLDER = "shapes100-0.2"  # where the results of TINY are
GAN, VGG16, RESNET = NAMES


def run_notebooks(folder, parameters, only=None, backend="tensorflow"):
    """Run `python -m tools.run` in a copy of the project, as `make run` does."""
    known = set().union(*(cells.parameters(name) for name in ([only] if only else NAMES)))
    command = [sys.executable, "-m", "tools.run", "--dataset", "shapes100"]
    for name in parameters.keys() & known:
        command += ["-p", name, str(parameters[name])]
    command += ["--only", only] if only else []
    environment = os.environ | {
        "HOME": str(folder.parent / "home"),
        "KERAS_BACKEND": backend,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )


def passed(*arguments, **choices):
    """Run notebooks, which must succeed, and return what they print."""
    done = run_notebooks(*arguments, **choices)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def git(folder, *command):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *command], check=True, capture_output=True, text=True
    )
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


slow = pytest.mark.slow


@slow
def test_the_chain_says_what_it_runs_and_what_came_of_it(chain):
    first, printed = chain[1].splitlines()[0], chain[1]
    assert first.startswith("shapes100 (stand-in, NOT CIFAR-100): the notebooks' defaults. Changed")
    for name in ("judge", "teacher", "gan", "student", "vgg16", "vgg16_gan", "resnet"):
        assert re.search(rf"^{name}: epoch   1/", printed, flags=re.M)
    assert re.search(r"^\| VGG-16 x0\.05 \+ GAN, 2 epochs, Muon, your vgg16_gan \| ", printed, re.M)


@slow
def test_the_chain_writes_every_record_in_full(chain):
    made = chain[2]
    assert set(made) == {"gan", "vgg16_gan", "vgg16", "resnet"}
    for name, record in made.items():
        assert record.keys() >= records.REQUIRED
        assert (record["name"], record["dataset"], record["seed"]) == (name, "shapes100", 0)
        assert (record["epochs_run"], record["steps"]) == (2, 2 * 15)  # 900 images in 64s
        assert all(len(values) == 2 for values in record["history"].values())
        assert record["versions"]["keras"] == keras.__version__
        assert record["parameters"]["EPOCHS"] == 2
    for name in ("vgg16_gan", "vgg16", "resnet"):
        for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_top5"):
            assert 0 <= made[name][key] <= 1
        assert made[name]["precision"] == "float32"
    assert [made[name]["trained_on"] for name in ("vgg16", "vgg16_gan")] == [900, 1200]
    assert made["vgg16"]["recipe"] == made["vgg16_gan"]["recipe"]
    assert made["gan"]["fid"] > made["gan"]["fid_real"] > 0
    assert 0 <= made["gan"]["gan_test"] <= 1


@slow
@pytest.mark.parametrize("name", ["vgg16_gan", "vgg16", "resnet"])
def test_what_is_recorded_is_the_network_that_stopped_on_validation_images(chain, name):
    folder, _, made = chain
    data = utils.load("shapes100")
    _, validation = utils.split(data.y_train, real_fraction=0.2)
    network = keras.saving.load_model(folder / "runs" / FOLDER / f"{name}.keras")
    smoothing = made[name]["parameters"]["LABEL_SMOOTHING"]
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    network.compile(loss=loss, metrics=["accuracy"])
    images = {"val": data.x_train[validation], "test": data.x_test}
    labels = {"val": data.y_train[validation], "test": data.y_test}
    for split, x in images.items():
        y = np.eye(100, dtype="float32")[labels[split]]
        loss, accuracy = network.evaluate(x, y, batch_size=500, verbose=0)
        assert made[name][f"{split}_accuracy"] == pytest.approx(accuracy, abs=0.003)
        is_best = loss == pytest.approx(min(made[name]["history"]["val_loss"]), rel=2e-4)
        assert is_best == (split == "val")


@slow
def test_the_chain_writes_images_that_its_manifest_and_records_name(chain):
    folder, _, made = chain
    data, own = utils.load("shapes100"), folder / "synthetic_images" / "runs" / FOLDER
    images, labels, manifest = synthetic.load(own, data.class_names)
    assert np.bincount(labels).tolist() == [10] * 100
    assert made["vgg16_gan"]["synthetic_digest"] == array_digest(images)
    train, _ = utils.split(data.y_train, real_fraction=0.2)
    assert manifest["train_digest"] == array_digest(train)
    generator = folder / "runs" / FOLDER / "gan_generator.keras"
    assert manifest["generator_sha256"] == file_sha256(generator)


@slow
def test_the_chain_draws_figures_and_a_table_without_a_warning(chain):
    results = chain[0] / "runs" / FOLDER
    figures = {path.stem for path in results.glob("*.png")}
    expected = "vgg16_curves vgg16_confusion vgg16_classes vgg16_picture resnet_curves"
    assert figures >= {*expected.split(), "comparison", "pairs", "gan_samples"}
    assert (results / "comparison.md").read_text(encoding="utf-8").count("\n") == 5
    for name in NAMES:
        executed = nbformat.read(results / "notebooks" / f"{name}.ipynb", 4)
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        assert "stand-in, NOT CIFAR-100" in str(outputs)
        printed = [output for output in outputs if output.output_type == "stream"]
        warnings = [each.text for each in printed if each.name == "stderr" or "WARN" in each.text]
        assert [text for text in warnings if "cuda" not in text.lower()] == []


@slow
def test_a_run_leaves_what_is_published_as_it_is(chain):
    """The first promise: nothing that git knows has changed, and nothing new that it would know."""
    assert git(chain[0], "status", "--porcelain") == ""


OWN_LOSS = """
class WeightedLoss(keras.losses.Loss):
    def __init__(self, weight):
        super().__init__()
        self._weight = weight

    def call(self, y_true, y_pred):
        return self._weight * keras.losses.categorical_crossentropy(y_true, y_pred)
"""


@pytest.fixture(scope="module")
def edited(chain):
    """What notebook 2 prints and records with a reader's own loss, and as it was before."""
    path, told = chain[0] / "notebooks" / f"{VGG16}.ipynb", {}
    text = path.read_text(encoding="utf-8")
    for weight in (1.0, 3.0, None):
        notebook = nbformat.reads(text, 4)
        if weight:
            (cell,) = [cell for cell in notebook.cells if "def train_vgg16" in cell.source]
            cell.source = OWN_LOSS + cell.source.replace(
                "model.compile(optimizer, loss,",
                f"model.compile(optimizer, WeightedLoss({weight}),",
            )
        nbformat.write(notebook, path)
        told[weight] = passed(chain[0], TINY, only=VGG16), own_records(chain[0])
    path.write_text(text, encoding="utf-8")
    return told


@slow
def test_an_edited_cell_is_trained_and_reported_as_it_says(chain, edited):
    """The second promise, as a reader breaks it: an attribute whose name begins with _."""
    runs = ("vgg16", "vgg16_gan")
    for weight in (1.0, 3.0):
        printed, made = edited[weight]
        assert printed.count("trained from the start, because the run changed: ") == len(runs)
        assert "found" not in printed
        for name in runs:
            assert made[name]["fingerprint"] != chain[2][name]["fingerprint"]
            assert made[name]["history"] != chain[2][name]["history"]
    assert "model.loss._weight is 3.0, was 1.0" in edited[3.0][0]
    losses = [edited[weight][1]["vgg16"]["history"]["loss"][0] for weight in (1.0, 3.0)]
    assert losses[1] > 2 * losses[0]


@slow
def test_an_edit_taken_back_finds_the_old_runs_again(chain, edited):
    printed, made = edited[None]
    assert printed.count("of this training run, finished") == 2
    for name in ("vgg16", "vgg16_gan"):
        for key in ("history", "fingerprint", "steps", "test_accuracy"):
            assert made[name][key] == chain[2][name][key]


@slow
def test_train_false_only_draws_and_the_record_stays(chain, edited):
    folder, before = chain[0], own_records(chain[0])
    manifest = folder / "synthetic_images" / "runs" / FOLDER / "manifest.json"
    old = json.loads(manifest.read_text(encoding="utf-8"))
    printed = passed(folder, TINY | {"TRAIN": False, "CANDIDATES": 1}, only=GAN)
    assert not re.search(r"^gan: epoch", printed, flags=re.M)
    assert own_records(folder) == before
    new = json.loads(manifest.read_text(encoding="utf-8"))
    assert [each["parameters"]["CANDIDATES"] for each in (old, new)] == [4, 1]
    assert new["images_sha256"] != old["images_sha256"]
    assert new["generator_sha256"] == old["generator_sha256"] == before["gan"]["generator_sha256"]


@slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_chain_runs_on_another_backend(tmp_path, copy, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    left_out = shutil.ignore_patterns("runs", "synthetic_images", ".git")
    folder = shutil.copytree(copy, tmp_path / backend, ignore=left_out)
    passed(folder, TINY | {"EPOCHS": 1, "CUTMIX": 1.0, "TRIVIAL_AUGMENT": True}, backend=backend)
    made = own_records(folder)
    assert set(made) == {"gan", "vgg16_gan", "vgg16", "resnet"}
    assert {record["versions"]["backend"] for record in made.values()} == {backend}
    assert (folder / "synthetic_images" / "runs" / FOLDER / "manifest.json").exists()
    fingerprint = next((folder / "runs" / FOLDER / "checkpoints").glob("vgg16/*/fingerprint.json"))
    settings = json.loads(fingerprint.read_text(encoding="utf-8"))["batches"]["state"]
    assert (settings["trivial_augment"], settings["cutmix"]) == (True, 1.0)


@pytest.mark.slow
def test_an_installed_module_called_utils_does_not_hide_ours(tmp_path):
    """And one called core: the notebooks' first cell finds the project's."""
    for name in ("utils", "core"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')", encoding="utf-8")
    (source,) = cells.tagged(RESNET, "imports")
    assert all('sys.path.insert(0, "..")' in cells.tagged(name, "imports")[0] for name in NAMES)
    script = f"{source}\nimport os\nprint(os.path.realpath(utils.__file__))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    folder = ROOT / "notebooks"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "utils.py"), done.stderr


STATISTICS = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}


def test_vgg16_at_full_width_is_the_paper_s():
    model = cells.define(VGG16, **STATISTICS)["build_vgg16"](1.0)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    filters = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert [layer.filters for layer in convolutions] == filters
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 5
    weights = sum(int(np.prod(layer.kernel.shape)) for layer in convolutions)
    assert weights == 14_710_464  # the paper's, without biases


def test_resnet_has_the_depth_it_says():
    build_resnet = cells.define(RESNET, **STATISTICS)["build_resnet"]
    for depth in (8, 20):
        kinds = (keras.layers.Conv2D, keras.layers.Dense)
        weighted = [each for each in build_resnet(depth, 16).layers if isinstance(each, kinds)]
        shortcuts = [each for each in weighted if getattr(each, "kernel_size", 0) == (1, 1)]
        assert len(weighted) - len(shortcuts) == depth


def imagenet_builder(weights, **names):
    names |= {"IMAGENET_WEIGHTS": str(weights), "IMAGENET_SIZE": 32}
    return cells.define(RESNET, **names)["build_imagenet"]


def test_an_imagenet_model_takes_its_weights_from_a_file_or_says_why_not(tmp_path):
    choices = {"include_top": False, "weights": None, "input_shape": (32, 32, 3), "pooling": "avg"}
    base = keras.applications.MobileNetV2(**choices)
    base.save_weights(tmp_path / "local.weights.h5")
    model = imagenet_builder(tmp_path / "local.weights.h5")()
    loaded = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    np.testing.assert_array_equal(loaded.get_weights()[0], base.get_weights()[0])
    assert model.predict(np.zeros((2, 32, 32, 3), np.uint8), verbose=0).shape == (2, 100)
    with pytest.raises(RuntimeError, match=r"(?s)MobileNetV2 could not be .*IMAGENET = False"):
        imagenet_builder(tmp_path / "none.weights.h5")()


# ------------------------------------------------------------------------------ as committed


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_was_executed_in_order_without_error(name):
    code = cells.read(name)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error"]
    assert not [each for each in outputs if each.get("name") == "stderr"]
    assert "site-packages" not in str(outputs)  # a path of the machine that it ran on
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1.5e6
    assert all(set(cell.metadata) <= {"tags"} for cell in code)


REAL = {"x_train", "x_test", "x_real", "x_validation", "x_merged"}
DRAWS = ("plot_images", "plot_classes", "imshow")


def draws_real_images(source, real):
    """Whether a cell draws real images; `real` grows by the names that it makes of them."""
    drawn = False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and names_in(node.value) & real:
            real |= {each.id for target in node.targets for each in ast.walk(target)
                     if isinstance(each, ast.Name)}  # fmt: skip
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in DRAWS:
            drawn = drawn or bool(names_in(node.args[0]) & real)
    return drawn


def names_in(expression):
    """The names and attributes in an expression; numbers computed by a function are no pixels."""
    joins = {"concatenate", "stack", "where", "copy", "astype", "reshape", "transpose", "merge"}
    if isinstance(expression, ast.Call) and getattr(expression.func, "attr", "") not in joins:
        return set()
    if isinstance(expression, ast.Subscript):
        return names_in(expression.value)
    own = {getattr(expression, "id", None), getattr(expression, "attr", None)} - {None}
    return own.union(*(names_in(part) for part in ast.iter_child_nodes(expression)))


@pytest.mark.parametrize("name", NAMES)
def test_no_committed_output_holds_a_real_image(name):
    real = set(REAL)
    for cell in cells.read(name):
        tagged = "real-images" in cell.metadata.get("tags", [])
        assert tagged or not draws_real_images(cell.source, real), cell.source
        assert not tagged or not cell.outputs


def test_real_images_are_found_however_they_are_drawn():
    sources = {
        "utils.plot_images(x_train[:20], titles)": True,
        "utils.plot_images(np.concatenate([images, x_train[twins]]), titles)": True,
        "pairs = np.concatenate([drawn[closest], data.x_test[twins]])": False,
        "axis.imshow(pairs[0])": True,
        "labels = measures.nearest(images, x_train)[1]": False,
        "utils.plot_images(images[labels], titles)": False,
        "plt.imshow(generated)": False,
    }
    real = set(REAL)
    assert [draws_real_images(source, real) for source in sources] == list(sources.values())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_flat_plain_commented_and_limited(name):
    (source,) = cells.tagged(name, "parameters")
    assigned = re.findall(r"^([A-Z_]+) = .+$", source, flags=re.M)
    lines = [line for line in source.splitlines() if line and not line.startswith("#")]
    assert len(assigned) == len(lines)
    for statement in ast.parse(source).body:
        ast.literal_eval(statement.value)  # nothing derived: the same on every machine
    assert set(assigned) - LIMITS.keys() == {"RUN"}  # whose form depends on the notebook


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_those_that_define_do_nothing_else(name):
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells:
        tags = cell.metadata.get("tags", [])
        assert max(map(len, cell.source.splitlines())) <= 100 or "<!-- expected" in cell.source
        if cell.cell_type == "code":
            assert cell.source.count("\n") < 28 or "parameters" in tags, cell.source
        if "define" in tags:
            definitions = (ast.FunctionDef, ast.ClassDef)
            assert all(isinstance(each, definitions) for each in ast.parse(cell.source).body)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_parameters_are_refused_before_anything_is_loaded(name):
    wrong = {"EPOCHS": 0, "WIDTH": -1, "BATCH_SIZE": 10**9, "SEED": "0", "DEPTH": 21}
    space = cells.define(name)
    wrong = {key: value for key, value in wrong.items() if key in space}
    check = next(each.source for each in cells.read(name) if "check_parameters(glo" in each.source)
    with pytest.raises(ValueError, match="wrong parameters") as error:
        exec(check, space | wrong)
    assert all(f"{key} = {value!r}" in str(error.value) for key, value in wrong.items())


def test_committed_records_belong_to_committed_files():
    results, folder = ROOT / "results" / "cifar100", ROOT / "synthetic_images" / "cifar100"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    images, labels, manifest = synthetic.load(folder, names)
    assert manifest["images_sha256"] == array_digest(images, labels)
    assert np.bincount(labels).min() >= 20
    published = records.read("cifar100", published=True)
    assert published["vgg16_gan"]["synthetic_digest"] == array_digest(images)
    made = {name: record for name, record in published.items() if "gan_train" in record}
    for name, record in made.items():
        assert record["generator_sha256"] == file_sha256(results / f"{name}_generator.keras")
    assert manifest["generator_sha256"] in [each["generator_sha256"] for each in made.values()]
