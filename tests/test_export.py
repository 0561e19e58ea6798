"""Files of trained networks: plain Keras loads them, and they predict the same."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import CIFAR100_DIR, ROOT

from core import cifar100, export, fast, measures, records, synthetic
from core.digests import file_sha256
from tools import cells

STATISTICS = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}


def noise(n=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def alone(script, *arguments, folder):
    """What a script prints in a process where nothing of this project can be imported."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def trained_a_little(model):
    """Give batch normalisation something to have learned."""
    model.compile("sgd", "categorical_crossentropy")
    model.fit(noise(), np.eye(100, dtype="float32")[np.arange(64)], batch_size=32, verbose=0)
    return model


def test_a_file_is_whole_or_the_one_before_it_stays(tmp_path, monkeypatch):
    entry = keras.Input((2,))
    model = keras.Model(entry, keras.layers.Dense(1)(entry))
    path = tmp_path / "m.keras"
    assert export.save(model, path) == path
    before = path.read_bytes()
    monkeypatch.setattr(export, "_as_float16", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.save(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.keras"]
    assert path.read_bytes() == before


def test_a_classifier_s_file_predicts_the_same_where_there_is_keras_alone(tmp_path, policy):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = trained_a_little(cells.define("vgg16_with_gan", **STATISTICS)["build_vgg16"](0.125))
    before = [weight.copy() for weight in model.get_weights()]
    export.save(model, tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", noise(seed=1))
    script = """
        import sys, keras, numpy as np
        model = keras.saving.load_model("m.keras")
        assert not {"core", "utils"} & sys.modules.keys()
        np.save("y.npy", model.predict(np.load("x.npy"), verbose=0))
        print(*{type(layer).__module__.split(".")[0] for layer in model.layers}, *{w.dtype for w in model.weights})
    """
    assert alone(script, folder=tmp_path) == ["keras", "float32"]
    portable = export.in_keras_layers(model)
    expected, found = portable.predict(noise(seed=1), verbose=0), np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)  # saving leaves the network as it was


def test_weights_are_those_of_the_network_rounded_to_float16(tmp_path):
    model = cells.define("resnet_baseline", **STATISTICS)["build_resnet"](8, 8)
    export.save(model, tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for weight, kept in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weight.astype("float16").astype("float32") if weight.dtype == "float32" else weight)
    model.save(tmp_path / "full.keras")
    assert (tmp_path / "m.keras").stat().st_size < 0.7 * (tmp_path / "full.keras").stat().st_size


def test_no_layer_of_ours_is_left():
    image = keras.Input((8, 8, 3))
    x = fast.Conv2DTranspose(4, 3)(fast.BatchNormalization()(fast.Conv2D(4, 3)(image)))
    inner = keras.Model(image, x * 2)
    outer = keras.Model(image, inner(image) + 1)
    portable = export.in_keras_layers(outer)
    kinds = [type(layer) for model in (portable, *portable.layers) for layer in getattr(model, "layers", [])]
    assert keras.layers.Conv2DTranspose in kinds
    assert all(kind.__module__.startswith("keras.") for kind in kinds)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(portable.predict(x, verbose=0), outer.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ as committed

GENERATORS = sorted((ROOT / "results").glob("*/*_generator.keras"))
TEACHERS = sorted((ROOT / "results" / "study").glob("*.keras"))
CLASSIFIERS = sorted(set((ROOT / "results").glob("*/*.keras")) - {*GENERATORS, *TEACHERS})


def test_published_files_are_small_and_those_of_their_records():
    assert GENERATORS
    assert CLASSIFIERS
    for path in GENERATORS + CLASSIFIERS:
        record = json.loads((path.parent / f"{path.stem.removesuffix('_generator')}.json").read_text(encoding="utf-8"))
        key = "generator_sha256" if path in GENERATORS else "weights_sha256"
        assert record[key] == file_sha256(path)
        assert path.stat().st_size < 20e6


def test_the_teachers_of_published_students_are_published():
    students = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results" / "study").glob("*.json")]
    taught = {student["teacher_sha256"] for student in students if "teacher_sha256" in student}
    assert taught
    assert taught <= {file_sha256(path) for path in TEACHERS}


@pytest.mark.parametrize("path", GENERATORS, ids=lambda path: path.stem)
def test_a_published_generator_draws_where_there_is_keras_alone(tmp_path, path):
    script = """
        import sys, keras, numpy as np
        model = keras.saving.load_model(sys.argv[1])
        noise = np.random.default_rng(0).normal(size=(100, 64)).astype("float32")
        drawn, sure = model.predict([noise, np.arange(100)], verbose=0)
        print(*drawn.shape, drawn.min() >= -1, drawn.max() <= 1, drawn.std() > 0.2, sure.mean())
    """
    *shape_and_range, sure = alone(script, path, folder=tmp_path)
    assert shape_and_range == ["100", "32", "32", "3", "True", "True", "True"]
    assert float(sure) > 0.1  # the teacher's probability of the class asked for; by chance 0.01


def test_the_published_classifier_scores_what_its_record_says():
    """On CIFAR-100's test split, where it is at hand."""
    if not CIFAR100_DIR:
        pytest.skip("no CIFAR-100: CIFAR100_DIR is not set")
    model = keras.saving.load_model(CLASSIFIERS[0])
    record = records.read("cifar100", published=True)[CLASSIFIERS[0].stem]
    test = cifar100.read_member(Path(CIFAR100_DIR) / "test", cifar100.CIFAR100_MD5["test"])
    images, labels, _ = cifar100.image_arrays(test, 10_000, CIFAR100_DIR)
    assert measures.accuracy(model, images, labels) == pytest.approx(record["test_accuracy"], abs=2e-3)  # rounding differs


def test_the_published_classifier_names_published_gan_images():
    """500 images of a fixed set, at hand in every clone. Chance would name one in a hundred."""
    model = keras.saving.load_model(CLASSIFIERS[0])
    images, labels, _ = synthetic.load(ROOT / "synthetic_images" / "cifar100", cifar100.class_names("cifar100"))
    assert measures.accuracy(model, images[::10], labels[::10]) > 0.25
