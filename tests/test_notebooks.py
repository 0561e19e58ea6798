"""The notebooks: run for real on tiny data, edited and run again, and what is committed of them."""

import ast
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

import utils
from core import records, synthetic
from core.digests import digest, file_sha256
from core.parameters import LIMITS
from tools import cells, pages

NAMES = cells.NOTEBOOKS
TINY = {  # 8 channels: PyTorch 2.13 hangs in the backward pass of a strided convolution of 4 channels on a CPU
    "EPOCHS": 2, "REAL_FRACTION": 0.2, "CHANNELS": 8, "LATENT_DIM": 8, "JUDGE_EPOCHS": 1, "IMAGES_PER_CLASS": 10,
    "WIDTH": 0.05, "SYNTHETIC_PER_CLASS": 3, "DEPTH": 8, "BATCH_SIZE": 64, "PRECISION": "float32",
}  # fmt: skip
PART = "shapes100-0.2"  # where the results of TINY are


def run_notebooks(folder, parameters, dataset="shapes100", backend="tensorflow", only=None, environment=()):
    """Run `python -m tools.run` in a copy of the project, as `make run` does."""
    overrides = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "tools.run", "--dataset", dataset, *overrides, *(["--only", only] if only else [])]
    environment = os.environ | {
        "HOME": str(folder.parent / "home"),
        "KERAS_BACKEND": backend,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **dict(environment),
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def git(folder, *command):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", "-C", folder, *identity, *command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def chain(copy):
    """The whole chain, run once on tiny data, in a clone."""
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "as published")
    done = run_notebooks(copy, TINY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return copy, done.stdout, own_records(copy)


def own_records(folder, part=PART):
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "runs" / part).glob("*.json")}


def test_chain_says_first_how_long_it_takes_and_on_what(chain):
    first = chain[1].splitlines()[0]
    assert "stand-in, NOT CIFAR-100" in first
    assert "the notebooks' defaults" in first
    assert "minutes" not in first  # which are not known of other parameters


def test_chain_says_what_it_does_and_what_came_of_it(chain):
    printed = chain[1]
    assert ": the notebooks' defaults; changed: EPOCHS = 2, REAL_FRACTION = 0.2, " in printed.splitlines()[0]
    for name in ("judge", "teacher", "gan", "student", "vgg16", "vgg16_gan", "resnet"):
        assert re.search(rf"^{name}: epoch   1/", printed, flags=re.M)
    assert "The images teach" in printed
    assert re.search(r"Test accuracy of .+, less that without them\. Difference [+-]\d+\.\d\d percentage points", printed)
    assert re.search(r"^- VGG-16 x0\.05 \+ GAN, 2 epochs, Muon \(yours: vgg16_gan\): \d+\.\d % \(1 seed\)$", printed, flags=re.M)


def test_chain_writes_every_record_in_full(chain):
    _, _, made = chain
    assert set(made) == {"gan", "vgg16_gan", "vgg16", "resnet"}
    for name, record in made.items():
        assert record.keys() >= records.KEYS
        assert (record["name"], record["dataset"], record["seed"], record["real_fraction"]) == (name, "shapes100", 0, 0.2)
        assert record["epochs_run"] == 2
        assert record["steps"] == 2 * 15  # 100 classes x 9 images in batches of 64, rounded up, twice
        assert all(len(values) == 2 for values in record["history"].values())
        assert record["versions"]["keras"] == keras.__version__
        assert 100 < record["peak_memory_mb"] < 4000
    for name in ("vgg16_gan", "vgg16", "resnet"):
        for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_top5"):
            assert 0 <= made[name][key] <= 1
        assert made[name]["parameters"]["EPOCHS"] == 2
        assert made[name]["optimizer"] == "muon"
    assert (made["vgg16_gan"]["synthetic_per_class"], made["vgg16"]["synthetic_per_class"]) == (3, 0)
    assert made["vgg16_gan"]["model"] == "VGG-16 x0.05 + GAN"
    gan = made["gan"]
    assert 0 <= gan["gan_test"] <= 1
    assert gan["fid"] > gan["fid_real"] > 0
    assert gan["gan_train_ratio"] == pytest.approx(gan["gan_train"] / gan["gan_test_real"])
    assert all(0 <= gan[key] <= 1 for key in ("gan_train_test_split", "memorised_pixels", "memorised_features"))
    assert gan["diversity"] > 0
    assert gan["history"].keys() == {"loss", "d_loss", "g_loss", "fid", "gan_test", "diversity"}


@pytest.mark.parametrize("name", ["vgg16_gan", "vgg16", "resnet"])
def test_what_chain_publishes_is_the_network_that_stopped_on_validation_images(chain, name):
    folder, _, made = chain
    data = utils.load("shapes100")
    _, validation = utils.split(data.y_train, real_fraction=0.2)
    network = keras.saving.load_model(folder / "runs" / PART / f"{name}.keras")
    network.compile(loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1), metrics=["accuracy"])
    scored = {}
    for split, x, y in (("val", data.x_train[validation], data.y_train[validation]), ("test", data.x_test, data.y_test)):
        scored[split] = network.evaluate(x, np.eye(100, dtype="float32")[y], batch_size=500, verbose=0)
        assert made[name][f"{split}_accuracy"] == pytest.approx(scored[split][1], abs=0.003)
    stopped = min(made[name]["history"]["val_loss"])
    assert stopped == pytest.approx(scored["val"][0], rel=1e-4)
    assert stopped != pytest.approx(scored["test"][0], rel=2e-4)


def test_chain_writes_images_that_its_manifest_and_records_name(chain):
    folder, _, made = chain
    data = utils.load("shapes100")
    images, labels, manifest = synthetic.load(folder / "synthetic_images" / "runs" / PART, data.class_names)
    assert np.bincount(labels).tolist() == [10] * 100
    assert manifest["images_sha256"] == digest(images, labels)
    assert made["vgg16_gan"]["synthetic_digest"] == digest(images)
    assert manifest["train_digest"] == digest(utils.split(data.y_train, real_fraction=0.2)[0])
    assert manifest["generator_sha256"] == file_sha256(folder / "runs" / PART / "gan_generator.keras")


def test_chain_draws_every_figure_and_the_table(chain):
    results = chain[0] / "runs" / PART
    expected = (
        "gan_losses gan_learning gan_samples gan_nearest gan_classes vgg16_curves "
        "vgg16_confusion vgg16_classes vgg16_picture resnet_curves comparison pairs changes"
    )
    assert {path.stem for path in results.glob("*.png")} == set(expected.split())
    assert (results / "comparison.md").read_text(encoding="utf-8").count("\n") == 5
    for name in NAMES:
        executed = (results / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        assert "stand-in, NOT CIFAR-100" in executed


@pytest.mark.parametrize("name", NAMES)
def test_no_warning_disturbs_a_reader(chain, name):
    executed = nbformat.read(chain[0] / "runs" / PART / "notebooks" / f"{name}.ipynb", 4)
    printed = [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "stream"]
    assert [output.text for output in printed if output.name == "stderr" or "WARNING:" in output.text] == []


def test_a_run_leaves_what_is_published_as_it_is(chain):
    """The first promise: nothing that git knows has changed, and nothing new that it would know."""
    assert git(chain[0], "status", "--porcelain") == ""


EDITS = {  # a line of each notebook, what a reader makes of it, and the trainings that are others then
    "gan_synthetic_images": (
        "x = layers.Reshape((4, 4, 4 * CHANNELS))(x)",
        "x = layers.Reshape((4, 4, 4 * CHANNELS))(-x)",
        {"gan", "student"},
    ),
    "vgg16_with_gan": ("x = layers.ReLU()(fast", 'x = layers.Activation("tanh")(fast', {"vgg16", "vgg16_gan"}),
    "resnet_baseline": ("label_smoothing=LABEL_SMOOTHING", "label_smoothing=0.3", {"resnet"}),
}


@pytest.fixture(scope="module")
def edited(chain):
    """What the chain prints and records after an edit of each notebook, and after all edits are taken back."""
    folder, told = chain[0], []
    notebooks = {path: path.read_text(encoding="utf-8") for path in (folder / "notebooks").glob("*.ipynb")}
    for path, text in notebooks.items():
        line, other, _ = (json.dumps(part)[1:-1] if isinstance(part, str) else part for part in EDITS[path.stem])
        assert text.count(line) == 1
        path.write_text(text.replace(line, other), encoding="utf-8")
    done = run_notebooks(folder, TINY)
    told.append((done.stdout, own_records(folder)))
    for path, text in notebooks.items():
        path.write_text(text, encoding="utf-8")
    done = run_notebooks(folder, TINY)
    assert done.returncode == 0, done.stdout[-3000:]
    return *told, (done.stdout, own_records(folder))


def anew(printed):
    """The names of the trainings that were trained anew because something differed."""
    return set(re.findall(r"^(\w+): trained anew, because its definition changed: .+$", printed, flags=re.M))


def test_an_edited_cell_trains_anew_and_reports_what_it_says(chain, edited):
    """The second promise, as a reader breaks it."""
    (printed, made), _ = edited
    assert anew(printed) == set().union(*(names for *_, names in EDITS.values()))
    assert "activation is" in printed or "class_name is 'Activation', was 'ReLU'" in printed
    assert "label_smoothing is 0.3, was 0.1" in printed
    for name, record in made.items():
        assert record["definition"] != chain[2][name]["definition"]
        assert record["history"] != chain[2][name]["history"]


def test_an_edit_taken_back_finds_every_old_training_again(chain, edited):
    _, (printed, made) = edited
    assert anew(printed) == set()
    assert printed.count("s of training found in") == 7  # judge, teacher, GAN, student and three networks
    for name, record in made.items():
        same = ("history", "definition", "steps", *(("test_accuracy",) if name != "gan" else ("fid", "gan_train")))
        assert [record[key] for key in same] == [chain[2][name][key] for key in same]
    assert git(chain[0], "status", "--porcelain") == ""


def test_images_of_another_split_stop_notebook_2(chain):
    folder = chain[0]
    manifest = folder / "synthetic_images" / "runs" / PART / "manifest.json"
    whole = manifest.read_text(encoding="utf-8")
    manifest.write_text(json.dumps(json.loads(whole) | {"train_digest": "another"}), encoding="utf-8")
    own = {name: value for name, value in TINY.items() if name in cells.parameters("vgg16_with_gan")}
    done = run_notebooks(folder, own, only="vgg16_with_gan")
    manifest.write_text(whole, encoding="utf-8")
    assert done.returncode == 1
    assert "DataError: the synthetic images belong to another run" in done.stdout


def test_notebook_2_trains_on_images_changed_and_mixed(chain):
    own = {name: value for name, value in TINY.items() if name in cells.parameters("vgg16_with_gan")}
    long = {"EPOCHS": 1, "SYNTHETIC_PER_CLASS": 0, "CUTMIX": 1.0, "TRIVIAL_AUGMENT": True, "VARIANT": "more"}
    done = run_notebooks(chain[0], own | long, only="vgg16_with_gan")
    assert done.returncode == 0, done.stdout[-3000:]
    (record,) = own_records(chain[0], f"{PART}-more").values()
    assert record["parameters"]["TRIVIAL_AUGMENT"] is True
    definition = next((chain[0] / "runs" / f"{PART}-more" / "checkpoints" / "vgg16").glob("*/definition.json"))
    settings = json.loads(definition.read_text(encoding="utf-8"))["batches"]["settings"]
    assert (settings["trivial"], settings["cutmix"]) == (True, 1.0)


def test_train_false_only_draws_and_the_record_stays(chain, edited):
    folder, before = chain[0], own_records(chain[0])
    manifest = folder / "synthetic_images" / "runs" / PART / "manifest.json"
    old = json.loads(manifest.read_text(encoding="utf-8"))
    own = {name: value for name, value in TINY.items() if name in cells.parameters("gan_synthetic_images")}
    done = run_notebooks(folder, own | {"TRAIN": False, "CANDIDATES": 1}, only="gan_synthetic_images")
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("s of training found in") == 1  # the judge
    assert anew(done.stdout) == {"student"}  # of other images; no teacher, no GAN
    assert own_records(folder) == before
    new = json.loads(manifest.read_text(encoding="utf-8"))
    assert (old["parameters"]["CANDIDATES"], new["parameters"]["CANDIDATES"]) == (4, 1)
    assert new["images_sha256"] != old["images_sha256"]
    assert new["generator_sha256"] == old["generator_sha256"] == before["gan"]["generator_sha256"]


def test_an_installed_module_called_utils_does_not_hide_ours(tmp_path):
    """And one called core: the notebooks' first cell finds the project's."""
    for name in ("utils", "core"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')", encoding="utf-8")
    for name in NAMES:
        (source,) = cells.tagged(name, "imports")
        script = f"{source}\nimport os\nprint(os.path.realpath(utils.__file__))"
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT / "notebooks", env=environment, capture_output=True, text=True, timeout=100)
        assert done.stdout.strip() == str(ROOT / "utils.py"), done.stderr


def test_saved_model_predicts_the_same_in_a_new_process(chain):
    folder = chain[0]
    script = f"""
        import utils, keras
        model = keras.saving.load_model("runs/{PART}/vgg16_gan.keras")
        data = utils.load("shapes100")
        print((model.predict(data.x_test, verbose=0, batch_size=500).argmax(1) == data.y_test).mean())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert float(done.stdout.split()[-1]) == pytest.approx(chain[2]["vgg16_gan"]["test_accuracy"], abs=1e-9), done.stderr


def test_a_failing_cell_ends_the_run_with_its_name_and_keeps_the_notebook(copy):
    path = copy / "notebooks" / "gan_synthetic_images.ipynb"
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, 4)
    (check,) = [cell for cell in notebook.cells if "check_parameters(globals()" in cell.source]
    check.source += "\n[][7]"
    nbformat.write(notebook, path)
    done = run_notebooks(copy, {}, dataset="shapes100")
    path.write_text(before, encoding="utf-8")  # other tests run it
    assert done.returncode == 1
    end = done.stdout[done.stdout.index("FAILED") :]
    assert "IndexError: list index out of range" in end
    folder = copy / "runs" / "shapes100" / "notebooks"
    assert not (folder / "gan_synthetic_images.ipynb").exists()  # the place of a run that passed
    executed = nbformat.read(folder / "gan_synthetic_images-unfinished.ipynb", 4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    (failed,) = [cell for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    assert f"FAILED gan_synthetic_images, In [{failed.execution_count}], under 'Parameters'" in end


STATISTICS = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}


def test_vgg16_at_full_width_is_the_paper_s():
    model = cells.define("vgg16_with_gan", **STATISTICS)["build_vgg16"](1.0)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert all(layer.kernel_size == (3, 3) for layer in convolutions)
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 5
    assert sum(int(np.prod(layer.kernel.shape)) for layer in convolutions) == 14_710_464  # the paper's, without biases


def test_resnet_has_the_depth_it_says():
    build_resnet = cells.define("resnet_baseline", **STATISTICS)["build_resnet"]
    for depth in (8, 20, 56):
        layers = build_resnet(depth, 16).layers
        weighted = [layer for layer in layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))]
        assert sum(getattr(layer, "kernel_size", 0) != (1, 1) for layer in weighted) == depth


def imagenet_builder(weights, **names):
    return cells.define("resnet_baseline", IMAGENET_WEIGHTS=str(weights), IMAGENET_SIZE=32, **names)["build_imagenet"]


def test_imagenet_model_from_a_weights_file(tmp_path):
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    base.save_weights(tmp_path / "local.weights.h5")
    model = imagenet_builder(tmp_path / "local.weights.h5")()
    loaded = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    np.testing.assert_array_equal(loaded.get_weights()[0], base.get_weights()[0])
    assert model.predict(np.zeros((2, 32, 32, 3), np.uint8), verbose=0).shape == (2, 100)


def test_each_imagenet_model_gets_the_numbers_it_was_trained_on(monkeypatch):
    seen = []

    def model(include_top, weights, input_shape, pooling):
        return lambda images: seen.append(images) or keras.layers.GlobalAveragePooling2D()(images)

    for name in ("MobileNetV2", "ResNet50V2", "EfficientNetV2B0"):
        monkeypatch.setattr(keras.applications, name, model)
        made = imagenet_builder("imagenet", IMAGENET_MODEL=name)()
        images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 255)])
        ends = keras.Model(made.inputs, seen[-1]).predict(images, verbose=0)
        assert (ends[0].max(), ends[1].min()) == ((0, 255) if name == "EfficientNetV2B0" else (-1, 1))  # it normalises itself


def test_imagenet_weights_that_cannot_be_had_are_named(tmp_path):
    with pytest.raises(RuntimeError, match="none.weights.h5.*for MobileNetV2.*IMAGENET = False"):
        imagenet_builder(tmp_path / "none.weights.h5")()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_chain_runs_on_another_backend(tmp_path, copy, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    folder = tmp_path / backend
    shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("runs", "synthetic_images", ".git"))
    done = run_notebooks(
        folder, TINY | {"EPOCHS": 1, "AUGMENT": True, "CUTMIX": 1.0, "TRIVIAL_AUGMENT": True, "VARIANT": "other"}, backend=backend
    )
    assert done.returncode == 0, done.stdout[-3000:]
    made = own_records(folder, f"{PART}-other")
    assert set(made) == {"gan", "vgg16_gan", "vgg16", "resnet"}
    assert {record["versions"]["backend"] for record in made.values()} == {backend}
    assert (folder / "synthetic_images" / "runs" / f"{PART}-other" / "manifest.json").exists()


# ------------------------------------------------------------------------------------------ as committed


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_is_executed_in_order_without_error(name):
    code = cells.read(name)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert "site-packages" not in str([cell.outputs for cell in code])  # a path of the machine that it ran on
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1.5e6
    assert all(set(cell.metadata) <= {"tags"} for cell in code)


def drawn_names(cell, real):
    """The names within the arguments of a cell's drawing calls; `real` grows by what is made of real images."""
    made = (ast.Subscript, ast.Name, ast.Attribute, ast.Call, ast.BinOp, ast.IfExp, ast.List, ast.Tuple)
    drawn = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, made) and pixels(node.value) & real:
            targets = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            real |= {name.id for name in targets}
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("plot_images", "show_classes", "imshow"):
            drawn |= pixels(node.args[0])
    return drawn


def pixels(node):
    """The names whose pixels an expression holds: through indices, arithmetic and NumPy's joining, not through predictions."""
    if isinstance(node, ast.Subscript):
        return pixels(node.value)
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Attribute):
        return {node.attr} if node.attr in ("x_train", "x_test") else pixels(node.value)
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", "")
        joins = name in ("concatenate", "stack", "vstack", "where", "copy", "astype", "reshape", "transpose", "merge", "flip")
        inner = node.args + ([node.func.value] if isinstance(node.func, ast.Attribute) else [])
        return set().union(*(pixels(each) for each in inner)) if joins else set()
    if isinstance(node, (ast.BinOp, ast.List, ast.Tuple, ast.IfExp)):
        return set().union(*(pixels(each) for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)))
    return set()


def shows_real(sources):
    """Return for each source whether a call in it draws real images."""
    real = {"x_train", "x_test", "x_real", "x_validation"}
    return [bool(drawn_names(nbformat.v4.new_code_cell(source), real) & real) for source in sources]


@pytest.mark.parametrize("name", NAMES)
def test_no_committed_output_holds_a_real_image(name):
    code = cells.read(name)
    for cell, shown in zip(code, shows_real([cell.source for cell in code]), strict=True):
        tagged = "real-images" in cell.metadata.get("tags", [])
        assert not shown or tagged, cell.source
        assert not tagged or not cell.outputs


def test_real_images_are_found_however_they_are_drawn():
    sources = [
        "utils.plot_images(x_train[:20], titles)", "utils.plot_images(np.concatenate([images, x_train[twins]]), titles)",
        "pairs = np.concatenate([drawn[closest], data.x_test[twins]])", "axis.imshow(pairs[0])",
        "some = x_validation[:2000] if SEED else images", "utils.show_classes(np.stack([some[0]]), names, title)",
        "labels = measures.nearest(images, x_train)[1]", "utils.plot_images(images[labels], titles)", "plt.imshow(generated)",
    ]  # fmt: skip
    assert shows_real(sources) == [True, True, False, True, False, True, False, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_flat_plain_and_commented(name):
    (source,) = cells.tagged(name, "parameters")
    assigned = re.findall(r"^([A-Z_]+) = .+$", source, flags=re.M)
    assert len(assigned) == len([line for line in source.splitlines() if line and not line.startswith("#")])
    for statement in ast.parse(source).body:
        ast.literal_eval(statement.value)  # nothing derived: the same on every machine


@pytest.mark.parametrize("name", NAMES)
def test_cells_that_define_do_nothing_else(name):
    defining = cells.tagged(name, "define")
    assert defining
    for source in defining:
        assert all(isinstance(part, (ast.FunctionDef, ast.ClassDef)) for part in ast.parse(source).body), source


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_fits_on_a_screen(name):
    for cell in cells.read(name):
        tags = cell.metadata.get("tags", [])
        assert cell.source.count("\n") < 32 or "parameters" in tags, cell.source


@pytest.mark.parametrize("name", NAMES)
def test_wrong_parameters_are_refused_before_anything_is_loaded(name):
    wrong = {
        "EPOCHS": 0,
        "WIDTH": -1,
        "BATCH_SIZE": 10**9,
        "SYNTHETIC_PER_CLASS": 10**9,
        "SEED": "0",
        "DEPTH": 21,
        "RESUME": "no",
    }
    space = cells.define(name)
    wrong = {key: value for key, value in wrong.items() if key in space}
    (check,) = [cell.source for cell in cells.read(name) if "check_parameters(globals()" in cell.source]
    with pytest.raises(ValueError, match="wrong parameters") as error:
        exec(check, space | wrong)
    assert all(f"{key} = {value!r}" in str(error.value) for key, value in wrong.items())


def test_every_parameter_of_the_notebooks_has_a_limit():
    for name in NAMES:
        (source,) = cells.tagged(name, "parameters")
        assigned = set(re.findall(r"^([A-Z_]+) = ", source, flags=re.M))
        assert assigned - LIMITS.keys() <= {"RUN"}  # whose form depends on the notebook


def test_committed_records_belong_to_committed_files():
    results = ROOT / "results" / "cifar100"
    names = [path.name for path in (ROOT / "synthetic_images" / "cifar100").iterdir() if path.is_dir()]
    images, labels, manifest = synthetic.load(ROOT / "synthetic_images" / "cifar100", sorted(names))
    assert manifest["images_sha256"] == digest(images, labels)
    assert np.bincount(labels).min() >= 20
    published = records.read("cifar100", published=True)
    assert published["vgg16_gan"]["synthetic_digest"] == digest(images)
    made = {name: record for name, record in published.items() if "gan_train" in record}
    assert made.keys() == {"gan", "gan_long"}
    for name, record in made.items():
        generator = results / f"{name}_generator.keras"
        assert record["generator_sha256"] == file_sha256(generator)
        assert generator.stat().st_size < 20e6
    assert manifest["generator_sha256"] in [record["generator_sha256"] for record in made.values()]


@pytest.mark.parametrize("part", ["cifar100", "cifar100-0.1"])
def test_published_tables_are_made_from_the_published_records(part):
    table = records.comparison_table(pages.classifiers(part))
    assert (ROOT / "results" / part / "comparison.md").read_text(encoding="utf-8") == table
