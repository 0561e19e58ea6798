"""The notebooks as committed: their networks, parameters and outputs; and wrong parameters."""

import ast
import functools
import re

import keras
import numpy as np
import pytest
from conftest import ROOT, real_cifar100, run_script

import utils
from core import records, synthetic
from core.files import array_digest, file_sha256
from core.parameters import LIMITS, RUNS, check_parameters, wrong_values
from tools import cells

NAMES = cells.NOTEBOOKS
GAN, VGG16, RESNET = NAMES


@pytest.mark.slow
def test_the_first_cell_finds_this_project_from_any_folder_of_the_clone(tmp_path):
    """An editor or papermill may start a notebook elsewhere, where another utils.py can be."""
    for name in ("utils", "core"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')", encoding="utf-8")
    sources = [cells.tagged(name, "imports")[0] for name in NAMES]
    assert len({re.search("(?s)import sys.*import utils", source)[0] for source in sources}) == 1
    script = f"{sources[0]}\nimport os\nprint(os.path.realpath(utils.__file__))"
    for folder in (ROOT, ROOT / "notebooks", ROOT / "docs", tmp_path):
        done = run_script(script, folder=folder, PYTHONPATH=str(tmp_path))
        if folder == tmp_path:
            assert "AssertionError: Open this notebook inside a clone" in done.stderr
        else:
            assert done.stdout.strip() == str(ROOT / "utils.py"), done.stderr


STATISTICS = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}


def test_vgg16_matches_the_paper_and_a_resnet_has_its_stated_depth():
    model = cells.define(VGG16, **STATISTICS)["build_vgg16"](1.0)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    filters = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert [layer.filters for layer in convolutions] == filters
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 5
    for depth in (8, 20):
        model = cells.define(RESNET, **STATISTICS)["build_resnet"](depth, 16)
        kernels = [each.kernel.shape for each in model.layers if hasattr(each, "kernel")]
        assert len([shape for shape in kernels if shape[:2] != (1, 1)]) == depth  # no shortcuts


def test_the_imagenet_model_takes_any_size_and_can_be_another_of_keras(monkeypatch):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for size in (32, 64):
        model = cells.define(RESNET, IMAGENET_SIZE=size)["build_imagenet"]()
        assert model.predict(images, verbose=0).shape == (2, 100)
        assert model.count_params() == 3_413_024 + 1280 * 100 + 100
    other = functools.partial(keras.applications.MobileNetV2, weights=None)  # no download
    monkeypatch.setattr(keras.applications, "MobileNetV2", other)
    space = cells.define(RESNET, IMAGENET_SIZE=32, IMAGENET_MODEL="MobileNetV2")
    assert space["build_imagenet"]().predict(images, verbose=0).shape == (2, 100)


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


DRAWS = ("plot_images", "plot_classes", "imshow")
HARMLESS = {"generate", "published", "seed", "images", "labels", "ten", "shown", "picture"}


def drawn(source):
    """Return all names in what a cell draws."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    images = [call.args[0] for call in calls if getattr(call.func, "attr", "") in DRAWS]
    parts = [part for image in images for part in ast.walk(image)]
    return {part.id for part in parts if isinstance(part, ast.Name)}


@pytest.mark.parametrize("name", NAMES)
def test_no_committed_output_holds_a_real_image(name):
    """Only tagged cells, which lose their outputs, draw anything but GAN images and a picture."""
    for cell in cells.read(name):
        tagged = "real-images" in cell.metadata.get("tags", [])
        assert tagged == bool(drawn(cell.source) - HARMLESS), cell.source
        assert not tagged or not cell.outputs


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_flat_plain_and_limited(name):
    (source,) = cells.tagged(name, "parameters")
    assigned = re.findall(r"^([A-Z_]+) = .+$", source, flags=re.M)
    lines = [line for line in source.splitlines() if line and not line.startswith("#")]
    assert len(assigned) == len(lines)
    for statement in ast.parse(source).body:
        ast.literal_eval(statement.value)  # nothing derived: the same on every machine
    assert set(assigned) - LIMITS.keys() == {"RUN"}  # whose form depends on the notebook


RIGHT = {
    "EPOCHS": 3, "WIDTH": 1, "DATASET": "cifar100", "RESUME": True, "DEPTH": 14,
    "REAL_FRACTION": 0.0025, "STEPS": "equal", "RUN": "vgg16_2",
}  # fmt: skip
WRONG = {
    "EPOCHS": [0, 2.0, "3", True, None, 10**9], "WIDTH": [-1, float("nan"), True, "1"],
    "RESUME": [1, "False", None], "DEPTH": [9, 8.0], "DATASET": ["mnist"], "STEPS": ["more", 1],
    "REAL_FRACTION": [0.001],  # less than one image per class
    "RUN": ["", 3, "vgg16/../gan", "vgg16-2", "vgg16\n"],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"\n  {name} = .*: expected "):
            check_parameters(RIGHT | {name: value}, VGG16)


WORDS = {
    "EPOCHS": (0, "a whole number from 1 to 10000"),
    "WIDTH": (-1, "a number from 0.015625 to 4.0"),
    "BATCH_SIZE": (10**9, "a whole number from 2 to 4096"),
    "SEED": ("0", "a whole number from 0 to 2147483648"),
}


@pytest.mark.parametrize("name", NAMES)
def test_all_wrong_parameters_are_named_at_once(name):
    """The cell after the parameters names them, before anything is loaded."""
    space, sources = cells.define(name), [cell.source for cell in cells.read(name)]
    check = sources[sources.index(*cells.tagged(name, "parameters")) + 1]
    wrong = {key: both for key, both in WORDS.items() if key in space}
    wrong["RUN"] = ("a-b", f"letters, digits and _, {RUNS[name].words}")
    with pytest.raises(ValueError, match="Invalid parameters") as error:
        exec(check, space | {key: value for key, (value, _) in wrong.items()})
    expected = {f"  {key} = {value!r}: expected {words}" for key, (value, words) in wrong.items()}
    assert set(str(error.value).splitlines()[1:]) == expected


def test_run_names_of_different_notebooks_cannot_collide():
    """Notebook 2 adds "_gan" to the name of a run of its own."""
    names = ["gan_long", "Gan", "vgg16", "vgg16_gan_like", "vgg16_gan", "vgg16_wide_gan"]
    names += ["resnet", "resnet_wide", "imagenet"]
    expected = {GAN: names[:1], VGG16: names[2:4], RESNET: names[6:8]}
    for notebook, accepted in expected.items():
        assert [name for name in names if not wrong_values({"RUN": name}, notebook)] == accepted


def test_a_file_is_looked_for_before_hours_of_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cat.jpg").touch()
    for path in ("", "cat.jpg", str(tmp_path / "cat.jpg"), "~/cat.jpg"):
        check_parameters({"PICTURE": path}, VGG16)
    words = "PICTURE = 'dog.jpg': expected the path of an existing file, absolute or relative to"
    with pytest.raises(ValueError, match=f"{words} {tmp_path}"):
        check_parameters({"PICTURE": "dog.jpg"}, VGG16)


def test_a_misspelt_parameter_is_named_with_the_one_that_was_meant(capsys):
    """Parameters are the plain values in capitals; a reader may add others."""
    others = {"lower": 1, "_i1": "x", "In": [], "PYTEST": pytest}
    own = {"SEEDS": [0, 1], "HEIGHT": 3, "NOTHING": None}  # far from all others, or a list
    assert check_parameters(RIGHT | own | others, VGG16) == RIGHT | own
    assert capsys.readouterr().out == ""
    assert check_parameters(RIGHT | {"EPOCH": 3}, VGG16) == RIGHT | {"EPOCH": 3}
    words = "EPOCH is not a parameter of this notebook. Did you mean EPOCHS?\n"
    assert capsys.readouterr().out == words


def test_splits_are_those_that_the_published_generators_were_trained_on(monkeypatch):
    """The digests were computed by the code that trained them."""
    made = array_digest(utils.split(np.arange(2000) % 100)[0])
    assert made == "06b83fc88a699cab5dea357c56c6793a659e1a4e6c9567659170a1d235532c6e"
    train, _ = utils.split(real_cifar100(monkeypatch).y_train)
    manifest = synthetic.read_manifest(ROOT / "synthetic_images" / "cifar100")
    assert array_digest(train) == manifest["train_digest"]


def test_committed_records_match_the_committed_files():
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
