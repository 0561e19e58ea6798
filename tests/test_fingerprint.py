"""What defines a training run: the same in every process, never the same for two different runs."""

import functools
import os
import shutil
import sys
import threading
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, run_script
from edits import EDITS, THINGS, WITHOUT_EFFECT
from test_training import tiny_batches, tiny_data, tiny_model

from core import fingerprint
from core.batches import Batches
from core.code_reader import CodeReader
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
    "optimizer": (lambda: {"model": tiny_model(optimizer=keras.optimizers.SGD)}, "is 'SGD', was"),
    "rate": (lambda: {"model": tiny_model(rate=2e-2)}, "initial_learning_rate is 0.02, was 0.01"),
    "first weights": (lambda: {"model": tiny_model(seed=1)}, "first weights changed"),
    "augmentation": (lambda: {"batches": tiny_batches(pad=2)}, "batches.state.pad is 2, was 4"),
    "one pixel": (lambda: {"batches": other_data()}, "batches.state.images changed"),
    "order": (lambda: {"batches": tiny_batches(seed=2)}, "batches.state.seed is 2, was 1"),
    "epochs": (lambda: {"epochs": 3}, "epochs is 3, was 5"),
    "patience": (lambda: {"callbacks": stopping(9)}, "callbacks.0.state.patience is 9, was 10"),
    "class weights": (lambda: {"class_weight": {0: 1, 1: 2}}, "fit.class_weight.0 was added"),
    "two devices": (lambda: {"replicas": 2}, "replicas is 2, was 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changing_anything_that_defines_a_run_makes_it_another_run(change):
    changes, words = CHANGES[change]
    one, other = of_run(callbacks=stopping(10)), of_run(**{"callbacks": stopping(10)} | changes())
    assert fingerprint.key(one) != fingerprint.key(other)
    assert words in fingerprint.difference(other, one, limit=20)


def test_versions_of_python_numpy_keras_and_the_backend_count(monkeypatch):
    before = of_run()
    assert before["versions"].keys() >= {"python", "numpy", "keras", keras.backend.backend()}
    version = fingerprint.importlib.metadata.version
    newer = {"numpy": "99.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: newer.get(name) or version(name))
    assert "versions.numpy is '99.0', was" in fingerprint.difference(of_run(), before)


def test_a_recipe_ignores_only_seeds_images_and_the_number_of_steps():
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
def test_installed_packages_are_recognised_wherever_pip_put_them(tmp_path, beside):
    """`pip install --target` can put Keras outside of Python's folders, even beside the project."""
    (tmp_path / "keras").symlink_to(Path(keras.__file__).parent)
    root = ROOT
    if beside:
        root = tmp_path / "project"
        shutil.copytree(ROOT / "core", root / "core")
    kinds = "code_reader._is_own(keras.layers.Dense), code_reader._is_own(code_reader._nested)"
    script = f"import keras; from core import code_reader; print(keras.__file__, {kinds})"
    done = run_script(script, folder=root, PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == [str(tmp_path / "keras" / "__init__.py"), "False", "True"]


def test_code_of_this_project_counts_and_installed_code_does_not(monkeypatch):
    before = of_run()
    assert "core.layers.BatchNormalization.call" in before["used"]
    assert "core.batches.crop_and_flip" in before["used"]
    assert not [name for name in before["used"] if name.startswith(("numpy", "keras"))]
    monkeypatch.setattr("core.batches.AHEAD", 3)
    assert "AHEAD is 3, was 2" in fingerprint.difference(of_run(), before)


def test_a_part_that_keras_cannot_serialise_is_read_or_named():
    activation = functools.partial(keras.ops.leaky_relu, negative_slope=0.1)
    words = fingerprint.difference(of_run(tiny_model(activation=activation)), {})
    assert "has no readable configuration" in words
    loss = functools.partial(keras.losses.huber, delta=2.0)
    assert "'delta': 2.0" in str(of_run(tiny_model(loss=loss))["compile"]["loss"])


def test_names_of_layers_may_contain_any_character():
    def described(name):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name=name)])
        return CodeReader(model.variables).read(model, "model")

    assert described("größe_1") == described("größe_2") != described("grösse_1")


def notebook(text=THINGS, **names):
    """Execute a notebook's text, as a kernel would, and return what it defines."""
    space = {"__name__": "__main__", "keras": keras, "np": np}
    exec(text, space)
    space.update(names)
    return space


@pytest.fixture(autouse=True, scope="module")
def helpers():
    """A module that a reader wrote and imports inside a function."""
    module = types.ModuleType("helpers")
    module.__file__ = "/somewhere/helpers.py"
    text = "def double(x): return 2 * x\ndef triple(x): return 3 * x\ndef unused(x): return x"
    exec(text, module.__dict__)
    sys.modules["helpers"] = module
    yield module
    del sys.modules["helpers"]


def things(part="", other=""):
    """The fingerprint of the notebook's run, with one part of its text edited."""
    assert part == "" or THINGS.count(part) == 1
    space = notebook(THINGS.replace(part, other) if part else THINGS)
    return of_run(space["build"](), callbacks=space["callbacks"]())


@pytest.fixture(scope="module")
def unedited():
    made = things()
    assert "unreadable" not in made
    return made


@pytest.mark.parametrize("part", EDITS)
def test_nothing_that_a_run_uses_is_overlooked(part, unedited):
    named = {
        "Thing(5)": "state.v is 6, was 5", "x + 7": "cached.code changed",
        "_strength = 101": "model._strength is 110, was 101", "Loss(59)": "_n is 61, was 59",
        "(1, 103.0)": "teacher.weights changed",
    }  # fmt: skip
    words = fingerprint.difference(things(part, EDITS[part]), unedited, limit=9)
    assert words
    assert named.get(part, "") in words


@pytest.mark.parametrize("part", WITHOUT_EFFECT)
def test_a_comment_or_a_global_that_nothing_reads_changes_nothing(part, unedited):
    edited = things(part, WITHOUT_EFFECT[part])
    assert fingerprint.difference(edited, unedited) == ""
    assert fingerprint.key(edited) == fingerprint.key(unedited)


@pytest.mark.slow
def test_two_processes_give_one_run_the_same_key(unedited):
    script = """
        import core, test_fingerprint as test
        with_helpers = test.helpers.__wrapped__()
        next(with_helpers)
        print(test.fingerprint.key(test.things()), test.fingerprint.key(test.of_run()))
    """
    done = run_script(script)
    keys = [fingerprint.key(unedited), fingerprint.key(of_run())]
    assert done.stdout.split() == keys, done.stderr


UNREADABLE = {
    "globals()['K']": "loss uses globals",
    "eval('K')": "loss uses eval",
    "open('/dev/null').fileno()": "loss uses open",
    "int(os.environ['K'])": "loss uses environ",
    "LOCK and 1": "LOCK is a lock whose state cannot be read",
    "__import__('os').getpid()": "loss uses __import__",
    "getattr(helpers, 'dou' + 'ble')(1)": "getattr may access any attribute of helpers",
    "READ()['K']": "READ is globals",
}


@pytest.mark.parametrize("expression", UNREADABLE)
def test_what_cannot_be_read_counts_as_different_and_is_named(expression, helpers):
    text = f"def loss(y, p):\n    return keras.ops.mean(p) * {expression}"
    names = {"LOCK": threading.Lock(), "READ": globals, "os": os, "helpers": helpers}
    one, again = (of_run(tiny_model(loss=notebook(text, **names)["loss"])) for _ in range(2))
    assert fingerprint.key(one) != fingerprint.key(again)
    assert UNREADABLE[expression] in fingerprint.difference(one, again)


def test_mutual_recursion_and_a_list_that_contains_itself_are_handled():
    text = "def f(y, p): return g(y, p)\n\ndef g(y, p): return f(y, p) if y is g else loop"
    loop = []
    loop.append(loop)
    assert "unreadable" not in of_run(tiny_model(loss=notebook(text, loop=loop)["f"]))
