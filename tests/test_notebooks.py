"""The notebooks as committed: their networks, parameters, cells and outputs."""

import ast
import functools
import os
import re
import subprocess
import sys

import keras
import nbformat
import numpy as np
import pytest
from conftest import ROOT

from core import records, synthetic
from core.files import array_digest, file_sha256
from core.parameters import LIMITS
from tools import cells

NAMES = cells.NOTEBOOKS
GAN, VGG16, RESNET = NAMES


@pytest.mark.slow
def test_the_first_cell_finds_the_project_from_any_folder_and_no_other_utils(tmp_path):
    """An editor or papermill may start a notebook elsewhere, where another utils.py can be."""
    for name in ("utils", "core"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')", encoding="utf-8")
    sources = [cells.tagged(name, "imports")[0] for name in NAMES]
    assert len({re.search("(?s)import sys.*import utils", source)[0] for source in sources}) == 1
    script = f"{sources[0]}\nimport os\nprint(os.path.realpath(utils.__file__))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for folder in (ROOT, ROOT / "notebooks", ROOT / "docs", tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if folder == tmp_path:
            assert "AssertionError: Open this notebook inside a clone" in done.stderr
        else:
            assert done.stdout.strip() == str(ROOT / "utils.py"), done.stderr


STATISTICS = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}


def test_vgg16_at_full_width_is_the_paper_s():
    model = cells.define(VGG16, **STATISTICS)["build_vgg16"](1.0)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    filters = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert [layer.filters for layer in convolutions] == filters
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 5


@pytest.mark.parametrize("depth", [8, 20])
def test_resnet_has_the_depth_it_says(depth):
    model = cells.define(RESNET, **STATISTICS)["build_resnet"](depth, 16)
    kernels = [each.kernel.shape for each in model.layers if hasattr(each, "kernel")]
    assert len([shape for shape in kernels if shape[:2] != (1, 1)]) == depth  # no shortcuts


def test_the_published_imagenet_model_takes_pictures_of_any_size_and_others_are_keras_s(
    monkeypatch,
):
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


REAL = {"x_train", "x_test", "x_real", "x_validation", "x_merged"}
DRAWS = ("plot_images", "plot_classes", "imshow")


def draws_real_images(source, real):
    """Whether a cell draws real images; `real` grows by the names that it makes of them."""
    drawn = False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and names_in(node.value) & real:
            real |= set().union(*map(names_in, node.targets))
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
    both = "pairs = np.concatenate([drawn, data.x_test[twins]])\naxis.imshow(pairs[0])"
    labels = "labels = measures.nearest(images, x_train)[1]\nutils.plot_images(images[labels])"
    assert draws_real_images(both, set(REAL))
    assert not draws_real_images(labels, set(REAL))


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
            assert len(cell.source.splitlines()) <= 25, cell.source
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
