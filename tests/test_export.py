"""Files of trained networks: Keras alone loads them, and what cannot be saved is refused early."""

import importlib.util
import json
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, real_cifar100, run_script
from PIL import Image

from core import datasets, export, layers, metrics, records, synthetic
from core.files import file_sha256
from tools import classify

RESULTS = ROOT / "results" / "cifar100"
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)


class OwnLoss(keras.losses.Loss):  # it is not registered
    def call(self, labels, predicted):
        return keras.losses.categorical_crossentropy(labels, predicted)


class Unregistered(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable("test_export")
class Forgetful(keras.layers.Layer):
    def __init__(self, factor=1.0, **arguments):
        super().__init__(**arguments)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {"name": self.name}


class Subclassed(keras.Model):
    def call(self, x):
        return keras.ops.softmax(keras.ops.reshape(x, (-1, 3072))[:, :100])


def network(layer=None, activation="softmax"):
    """Return a classifier within which there is another network, and all layers of ours."""
    features = keras.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3)(features))
    inner = keras.Model(features, keras.ops.relu(layers.Conv2DTranspose(8, 3)(x)) + 1)
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = inner(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.GlobalAveragePooling2D()(layer(x) if layer else x)
    classes = keras.layers.Dense(100, activation=activation, dtype="float32")(x)
    return keras.Model(image, classes)


REFUSED = {
    "cannot be saved.*than Lambda": lambda: network(keras.layers.Lambda(lambda x: 2 * x)),
    "cannot be saved.*register_keras_serializable": lambda: network(Unregistered()),
    "cannot be saved.*subclass of Model": Subclassed,
    "gives different outputs .*get_config": lambda: network(Forgetful(50.0)),
    "not probabilities.*has a softmax": lambda: network(activation=None),
    "not probabilities": lambda: network(activation="sigmoid"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_could_not_be_saved_or_measured_is_refused_before_training(words):
    with pytest.raises(export.NetworkError, match=words):
        export.check_classifier(REFUSED[words]())


def test_a_file_holds_only_rounded_weights_and_is_replaced_whole(tmp_path, monkeypatch, policy):
    """It has no optimiser, loss or precision; nobody else could load a reader's own loss."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network(Forgetful())
    model.compile("adam", OwnLoss())
    model.fit(IMAGES, np.eye(100, dtype="float32")[:16], batch_size=8, verbose=0)
    export.check_classifier(model)
    before = model.get_weights()
    path = export.save(model, tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
        assert not json.loads(config)["compile_config"]
        assert b"bfloat16" not in config
        assert b"optimizer" not in archive.read(export.WEIGHTS)
    loaded = keras.saving.load_model(path)
    assert not loaded.compiled
    for weight, old, kept in zip(model.weights, before, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, old)  # saving leaves the network as it was
        np.testing.assert_array_equal(kept, old.astype("float16").astype("float32"))
    expected = model(IMAGES, training=False)
    np.testing.assert_allclose(loaded(IMAGES, training=False), expected, atol=2e-3)
    content = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.save(network(), path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"m.keras": content}


@pytest.mark.slow
def test_the_documented_python_names_classes_whatever_lies_beside_the_images(tmp_path):
    """Jupyter leaves .ipynb_checkpoints in any folder; names come from the network's file."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    classify, draw = re.findall(r"(?s)```python\n(.*?)```", page)
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "synthetic_images" / "cifar100" / ".ipynb_checkpoints").mkdir(parents=True)
    Image.open(ROOT / "docs" / "picture.png").convert("RGB").save(tmp_path / "picture.jpg")
    script = f"{classify}\n{draw}\nprint(images.shape, confidence.mean() > 0.1)"
    done = run_script(script, folder=tmp_path, PYTHONPATH="")
    printed = [line for line in done.stdout.splitlines() if line and "step" not in line]
    assert printed == ["apple", "(10, 32, 32, 3) True"], done.stderr


@pytest.mark.slow
def test_published_and_new_networks_load_in_other_versions_of_keras(tmp_path):
    """They load without this project, on all backends that are installed."""
    folders = [""]  # none in front of the Keras that is installed
    for version in ("==3.8.0", ""):
        target = str(tmp_path / f"keras{version}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
        if subprocess.run([*pip, f"keras{version}"], capture_output=True).returncode == 0:
            folders.append(target)
    path = export.save(network(), tmp_path / "new.keras")
    files = [path, *RESULTS.glob("*.keras"), *(ROOT / "results" / "imagenet").glob("*.keras")]
    script = """
        import sys, keras, numpy as np
        for path in sys.argv[1:]:
            model = keras.saving.load_model(path)
            rng = np.random.default_rng(0)
            noise, labels = rng.normal(size=(4, 64)).astype("float32"), np.arange(4)
            images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
            inputs = [noise, labels] if len(model.inputs) == 2 else images
            outputs = model.predict(inputs, verbose=0)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            print(*[f"{value:.3f}" for each in outputs for value in each.reshape(4, -1)[:, 0]])
        assert not {"core", "utils"} & sys.modules.keys()
    """
    printed = []
    for backend in filter(importlib.util.find_spec, ("tensorflow", "torch", "jax")):
        for folder in folders:
            variables = {"PYTHONPATH": folder, "KERAS_BACKEND": backend}
            done = run_script(script, *files, folder=tmp_path, **variables)
            assert done.returncode == 0, done.stderr[-2000:]
            printed.append([list(map(float, line.split())) for line in done.stdout.splitlines()])
    for other in printed[1:]:
        for one, same in zip(other, printed[0], strict=True):
            np.testing.assert_allclose(one, same, atol=5e-3)
    if len(folders) < 3:
        pytest.skip("pip could not install other versions of Keras")


@pytest.mark.slow
def test_the_published_classifier_is_small_and_as_accurate_as_its_record_says(monkeypatch):
    """On photographs of the first ten classes, and on 200 GAN images, which every clone has."""
    path = classify.NETWORK
    record = records.read("cifar100", published=True)[path.stem]
    assert record["weights_sha256"] == file_sha256(path)
    assert path.stat().st_size < 20e6
    model = keras.saving.load_model(path)
    folder, names = ROOT / "synthetic_images" / "cifar100", datasets.class_names("cifar100")
    drawn, labels, _ = synthetic.load(folder, names)
    assert metrics.accuracy(model, drawn[::25], labels[::25]) > 0.25  # by chance 0.01
    data = real_cifar100(monkeypatch)
    first = data.y_test < 10
    accuracy = metrics.accuracy(model, data.x_test[first], data.y_test[first])
    assert accuracy == pytest.approx(np.mean(record["test_by_class"][:10]), abs=4e-3)  # rounding
