"""What defines a training run: the same in every process, never the same for two different runs."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from conftest import ROOT
from test_training import tiny_batches, tiny_data, tiny_model

from core import fingerprint, layers
from core.batches import Batches
from core.optimizers import Adam, OneCycle


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
    "optimizer": (lambda: {"model": tiny_model(optimizer=keras.optimizers.SGD)}, "is 'SGD', was"),
    "rate": (lambda: {"model": tiny_model(rate=2e-2)}, "initial_learning_rate is 0.02, was 0.01"),
    "first weights": (lambda: {"model": tiny_model(seed=1)}, "first weights changed"),
    "augmentation": (lambda: {"batches": tiny_batches(pad=2)}, "batches.state.pad is 2, was 4"),
    "one pixel": (lambda: {"batches": other_data()}, "batches.state.images changed"),
    "order": (lambda: {"batches": tiny_batches(seed=2)}, "batches.state.seed is 2, was 1"),
    "epochs": (lambda: {"epochs": 3}, "epochs is 3, was 5"),
    "patience": (lambda: {"callbacks": stopping(9)}, "callbacks.0.state.patience is 9, was 10"),
    "callback": (lambda: {"callbacks": [keras.callbacks.TerminateOnNaN()]}, "is 'TerminateOnNaN'"),
    "class weights": (lambda: {"class_weight": {0: 1, 1: 2}}, "fit.class_weight.0 is new"),
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
    monkeypatch.setattr("importlib.metadata.version", lambda name: newer.get(name) or version(name))
    assert "versions.numpy is '99.0', was" in fingerprint.difference(of_run(), before)


def test_a_recipe_is_the_same_for_other_seeds_images_and_numbers_of_steps_alone():
    def recipe(**changes):
        return fingerprint.recipe(of_run(**changes))

    images, labels = tiny_data(64)
    few = Batches(images, labels, 32, seed=1, classes=4, steps_per_epoch=10)
    assert recipe(model=tiny_model(seed=1), batches=tiny_batches(seed=2)) == recipe()
    assert recipe(batches=few) == recipe()
    assert recipe(batches=tiny_batches(pad=0)) != recipe()
    assert recipe(model=tiny_model(rate=1e-3)) != recipe()
    schedules = [OneCycle(1e-3, 10), OneCycle(1e-3, 20), OneCycle(2e-3, 10)]
    models = [tiny_model(optimizer=lambda _, rate=rate: Adam(rate)) for rate in schedules]
    short, long, faster = (recipe(model=model) for model in models)
    assert short == long != faster


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
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path / "keras" / "__init__.py"), "False", "True"]


def test_code_of_this_project_counts_and_installed_code_does_not(monkeypatch):
    before = of_run()
    assert "core.layers.BatchNormalization.call" in before["used"]
    assert "core.batches.crop_and_flip" in before["used"]
    assert not [name for name in before["used"] if name.startswith(("numpy", "keras"))]
    monkeypatch.setattr(layers, "ENABLED", False)
    assert "ENABLED is False, was True" in fingerprint.difference(of_run(), before)


def test_a_part_that_keras_cannot_write_down_is_read_or_named():
    activation = functools.partial(keras.ops.leaky_relu, negative_slope=0.1)
    words = fingerprint.difference(of_run(tiny_model(activation=activation)), {})
    assert "has no readable configuration" in words
    loss = functools.partial(keras.losses.huber, delta=2.0)
    assert "'delta': 2.0" in str(of_run(tiny_model(loss=loss))["compile"]["loss"])


def test_a_long_difference_is_cut():
    now = {"a": [1, 2, 3], "b": {"c": "x"}, "d": None}
    before = {"a": [1, 3, 4], "b": {"c": "y"}, "e": 1}
    words = "a.1 is 2, was 3; a.2 is 3, was 4; and 3 more"
    assert fingerprint.difference(now, before, most=2) == words
    assert fingerprint.difference({"used": {"A": None}}, {"used": {}}) == "A is new; used is gone"
    assert fingerprint.difference({}, {"e": 1}) == "e is gone"
