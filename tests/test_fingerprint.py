"""What defines a training run: the same in every process, never the same for two different runs."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT
from test_training import tiny_batches, tiny_data, tiny_model

from core import fingerprint, layers
from core.batches import Batches


def of_run(model=None, batches=None, epochs=5, callbacks=(), **arguments):
    model, batches = model or tiny_model(), batches or tiny_batches()
    return fingerprint.of_training_run(model, batches, epochs, callbacks, **arguments)


def other_data():
    images, labels = tiny_data()
    images[7, 3, 2, 1] ^= 1
    return Batches(images, labels, 32, seed=1, classes=4)


def stopping(patience):
    return [keras.callbacks.EarlyStopping("val_loss", patience=patience)]


CHANGES = {
    "activation": (lambda: {"model": tiny_model(activation="tanh")}, "is 'tanh', was 'relu'"),
    "dropout": (lambda: {"model": tiny_model(dropout=0.2)}, "rate is 0.2, was 0.3"),
    "loss": (lambda: {"model": tiny_model(loss="mse")}, "compile.loss is 'mse', was 'categ"),
    "optimizer": (
        lambda: {"model": tiny_model(optimizer=keras.optimizers.SGD)},
        "optimizer.class is 'SGD', was 'Adam'",
    ),
    "rate": (lambda: {"model": tiny_model(rate=2e-2)}, "initial_learning_rate is 0.02, was 0.01"),
    "first weights": (lambda: {"model": tiny_model(seed=1)}, "first weights changed"),
    "augmentation": (lambda: {"batches": tiny_batches(pad=2)}, "batches.state.pad is 2, was 4"),
    "one pixel": (lambda: {"batches": other_data()}, "batches.state.images changed"),
    "epochs": (lambda: {"epochs": 3}, "epochs is 3, was 5"),
    "patience": (lambda: {"callbacks": stopping(9)}, "callbacks.0.state.patience is 9, was 10"),
    "class weights": (
        lambda: {"class_weight": dict.fromkeys(range(4), 2.0)},
        "fit.class_weight.0 is new",
    ),
    "two devices": (lambda: {"replicas": 2}, "replicas is 2, was 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_defines_a_run_makes_another_run_of_it(change):
    changes, words = CHANGES[change]
    one, other = of_run(callbacks=stopping(10)), of_run(**{"callbacks": stopping(10)} | changes())
    assert fingerprint.key(one) != fingerprint.key(other)
    assert words in fingerprint.difference(other, one, most=20)


def test_versions_of_python_numpy_keras_and_the_backend_count(monkeypatch):
    before = of_run()
    assert before["versions"].keys() >= {"python", "numpy", "keras", keras.backend.backend()}
    version = fingerprint.importlib.metadata.version
    newer = {"numpy": "99.0"}
    monkeypatch.setattr(
        fingerprint.importlib.metadata, "version", lambda name: newer.get(name) or version(name)
    )
    assert "versions.numpy is '99.0', was" in fingerprint.difference(of_run(), before)


def test_a_recipe_is_the_same_for_other_seeds_and_images_alone():
    def recipe(**changes):
        return fingerprint.recipe(of_run(**changes))

    images, labels = tiny_data(64)
    few = Batches(images, labels, 32, seed=1, classes=4, steps_per_epoch=10)
    same = recipe()
    for alike in (
        {"model": tiny_model(seed=1)},
        {"batches": tiny_batches(seed=2)},
        {"batches": few},
    ):
        assert recipe(**alike) == same
    for other in (
        {"batches": tiny_batches(pad=0)},
        {"model": tiny_model(rate=1e-3)},
        {"epochs": 6},
    ):
        assert recipe(**other) != same


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_packages_are_installed_wherever_pip_put_them(tmp_path, beside):
    """`pip install --target` can put Keras outside of Python's folders, even beside the project."""
    (tmp_path / "keras").symlink_to(Path(keras.__file__).parent)
    root = ROOT
    if beside:
        root = tmp_path / "project"
        shutil.copytree(ROOT / "core", root / "core")
    kinds = "code_reader._is_own(keras.layers.Dense), code_reader._is_own(code_reader._nested)"
    script = f"import keras; from core import code_reader; print(keras.__file__, {kinds})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "keras" / "__init__.py"), "False", "True"]


class Own(keras.Model):
    """A model whose layers, weights and numbers are attributes."""

    def __init__(self, weight, teacher=None):
        super().__init__()
        self.dense, self._weight, self.teacher = keras.layers.Dense(3), weight, teacher

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred) * self._weight


def of_own(weight=1, teacher_seed=0):
    keras.utils.set_random_seed(teacher_seed)
    teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    keras.utils.set_random_seed(0)
    model = Own(weight, lambda x: teacher(x))
    model.compile("sgd")
    model(np.zeros((1, 2)))
    return of_run(model)


def test_a_model_s_own_attributes_and_the_weights_of_a_teacher_count():
    same = of_own()
    assert fingerprint.difference(of_own(), same) == ""
    assert "model._weight is 3, was 1" in fingerprint.difference(of_own(weight=3), same)
    assert "teacher.weights changed" in fingerprint.difference(of_own(teacher_seed=1), same)


def test_code_of_this_project_counts_and_installed_code_does_not(monkeypatch):
    before = of_run()
    assert "core.layers.BatchNormalization.call" in before["used"]
    assert "core.batches.crop_and_flip" in before["used"]
    assert not [name for name in before["used"] if name.startswith(("numpy", "keras"))]
    monkeypatch.setattr(layers, "ENABLED", False)
    assert "ENABLED is False, was True" in fingerprint.difference(of_run(), before)


def test_a_part_that_keras_cannot_write_down_is_read_or_named():
    def of_dense(slope, loss):
        keras.utils.set_random_seed(0)
        activation = functools.partial(keras.ops.leaky_relu, negative_slope=slope)
        image = keras.Input((2,))
        model = keras.Model(image, keras.layers.Dense(3, activation=activation)(image))
        model.compile("sgd", loss)
        return of_run(model)

    words = fingerprint.difference(of_dense(0.1, "mse"), {})
    assert "has no readable configuration" in words
    for delta in (1.0, 2.0):
        loss = functools.partial(keras.losses.huber, delta=delta)
        made = of_run(tiny_model(loss=loss))
        assert f"'delta': {delta}" in str(made["compile"]["loss"])


def test_a_long_difference_is_cut():
    now = {"a": [1, 2, 3], "b": {"c": "x"}, "d": None}
    before = {"a": [1, 3, 4], "b": {"c": "y"}, "e": 1}
    assert (
        fingerprint.difference(now, before, most=2)
        == "a.1 is 2, was 3; a.2 is 3, was 4; and 3 more"
    )
    assert fingerprint.difference({"used": {"A": None}}, {"used": {}}) == "A is new; used is gone"
    assert fingerprint.difference({}, {"e": 1}) == "e is gone"
