"""What defines a training run: the same in every process, never the same for two different runs."""

import functools
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import types
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


THINGS = """
import functools, enum, collections
D = {"a": 1, "f": [lambda x: x]}
S = {1, 2}
SLICE = slice(1, 3)
PART = functools.partial(pow, 2)


class C:
    k = 1

    @property
    def p(self):
        return self.k + 1

    class Inner:
        depth = 3


class E(enum.Enum):
    a = 1


class Thing:
    def __init__(self, v):
        self.v = v

    def go(self, y):
        return y * self.v


thing = Thing(5)
bound = thing.go
layer = keras.layers.Rescaling(3)


@functools.lru_cache
def cached(x):
    return x + 7


def decorate(f):
    @functools.wraps(f)
    def wrapper(y):
        return f(y) + 11

    return wrapper


@decorate
def decorated(y):
    return y + 13


def make(n):
    def inner(y):
        return y * n

    return inner


one, two = make(17), make(19)
f1 = lambda y: y + 23
f2 = lambda y: y + 29


def default(y, a=31, t=(1, 2), *, k=37, g=f1):
    return sum(d["a"] for d in [D]) + y.shape[0]


def helper(y):
    "Docstring."
    things = D, S, SLICE, PART, C, E, thing, bound, layer, cached, decorated, one, two, f1, f2
    return things, default, slots, counts, random, imports


class Cb(keras.callbacks.Callback):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def on_epoch_end(self, epoch, logs=None):
        helper(self.n)


class Sched(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01 * 41

    def get_config(self):
        return {}


class Loss(keras.losses.Loss):
    def __init__(self, n):
        super().__init__()
        self._n = n

    def call(self, y, p):
        return keras.ops.mean(p) * self._n


class Slots:
    __slots__ = ("depth",)

    def __init__(self, depth):
        self.depth = depth


class Scale(keras.layers.Layer):
    def __init__(self, n):
        super().__init__()
        self._n = n

    def call(self, x):
        return x * self._n

    def get_config(self):
        return {"name": self.name}


slots, counts = Slots(89), collections.Counter("aab")
random = np.random.default_rng(97)


def imports(y):
    import helpers

    return helpers.double(y)


class Reg(keras.regularizers.Regularizer):
    def __call__(self, x):
        return keras.ops.sum(x) * 43

    def get_config(self):
        return {}


def build():
    keras.utils.set_random_seed(0)
    image = keras.Input((2,))
    x = keras.layers.Dense(3, kernel_regularizer=Reg())(image)
    x = Scale(83)(keras.layers.Lambda(lambda v: v * 47)(x))
    model = keras.Model(image, keras.layers.Dropout(0.5, seed=53)(x))
    model.compile(keras.optimizers.SGD(Sched()), Loss(59), metrics=["mae"])
    model._strength = 101
    return model


def callbacks():
    return [Cb(61), keras.callbacks.ReduceLROnPlateau(factor=0.67)]


SHAPE = 71
shape = 73
"""
EDITS = {  # what a training run uses, and what a reader may make of it
    '"a": 1,': '"a": 2,',
    "lambda x: x]": "lambda x: -x]",
    "{1, 2}": "{1, 3}",
    "slice(1, 3)": "slice(1, 4)",
    "pow, 2": "pow, 3",
    "k = 1": "k = 2",
    "self.k + 1": "self.k + 2",
    "depth = 3": "depth = 4",
    "a = 1\n": "a = 2\n",
    "Thing(5)": "Thing(6)",
    "y * self.v": "y - self.v",
    "Rescaling(3)": "Rescaling(4)",
    "x + 7": "x + 8",
    "f(y) + 11": "f(y) + 22",
    "y + 13": "y + 24",
    "make(17)": "make(28)",
    "make(19)": "make(21)",
    "y * n": "y - n",
    "y + 23": "y + 34",
    "y + 29": "y + 31",
    "a=31": "a=42",
    "t=(1, 2)": "t=(1, 3)",
    "k=37": "k=48",
    "g=f1": "g=f2",
    'd["a"]': 'd["f"]',
    "Cb(61)": "Cb(72)",
    "factor=0.67": "factor=0.78",
    "0.01 * 41": "0.02 * 52",
    "Loss(59)": "Loss(61)",
    "keras.ops.mean(p)": "keras.ops.max(p)",
    "* 43": "* 54",
    "v * 47": "v * 58",
    "seed=53": "seed=64",
    '["mae"]': '["mse"]',
    "Slots(89)": "Slots(98)",
    '"aab"': '"abb"',
    "default_rng(97)": "default_rng(79)",
    "Scale(83)": "Scale(38)",
    "_strength = 101": "_strength = 110",
    "helpers.double(y)": "helpers.triple(y)",
}


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


def things(text=THINGS):
    space = notebook(text)
    return of_run(space["build"](), callbacks=space["callbacks"]())


@pytest.fixture(scope="module")
def unedited():
    made = things()
    assert "unreadable" not in made
    return made


@pytest.mark.parametrize("part", EDITS)
def test_nothing_that_a_run_uses_is_overlooked(part, unedited):
    """Whatever kind of thing it is, and wherever it hides."""
    assert THINGS.count(part) == 1
    assert fingerprint.difference(things(THINGS.replace(part, EDITS[part])), unedited)


WITHOUT_EFFECT = {
    "SHAPE = 71": "SHAPE = 72",
    "shape = 73": "shape = 74",
    '"Docstring."': '"Another."',
    "\n\ndef make": "\n# a\n\ndef make",
    "        return y * n": "        # why\n        return (y *\n                n)",
    "    return x + 7": '    "A docstring."\n    return x + 7',
}


@pytest.mark.parametrize("part", WITHOUT_EFFECT)
def test_a_comment_or_a_global_that_nothing_reads_changes_nothing(part, unedited):
    assert THINGS.count(part) == 1
    edited = things(THINGS.replace(part, WITHOUT_EFFECT[part]))
    assert fingerprint.difference(edited, unedited) == ""
    assert fingerprint.key(edited) == fingerprint.key(unedited)


@pytest.mark.slow
def test_two_processes_give_one_run_the_same_key(unedited):
    script = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import core, test_fingerprint as test
        generator = test.helpers.__wrapped__()
        next(generator)
        print(test.fingerprint.key(test.things()), test.fingerprint.key(test.of_run()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    keys = [fingerprint.key(unedited), fingerprint.key(of_run())]
    assert done.stdout.split() == keys, done.stderr


def test_a_change_is_named_where_it_was_made(unedited):
    for part, words in (
        ("Thing(5)", "state.v is 6, was 5"),
        ("x + 7", "cached.code changed"),
        ("_strength = 101", "model._strength is 110, was 101"),
        ("Loss(59)", "model.loss._n is 61, was 59"),
    ):
        edited = things(THINGS.replace(part, EDITS[part]))
        assert words in fingerprint.difference(edited, unedited, most=9)


UNREADABLE = {
    "globals()['K']": "loss uses globals",
    "eval('K')": "loss uses eval",
    "open('/dev/null').fileno()": "loss uses open",
    "int(os.environ['K'])": "loss uses environ",
    "LOCK and 1": "LOCK is a lock whose state cannot be read",
    "__import__('os').getpid()": "loss uses __import__",
    "getattr(helpers, 'dou' + 'ble')(1)": "getattr may reach any part of helpers",
    "READ()['K']": "READ is globals",
}


@pytest.mark.parametrize("expression", UNREADABLE)
def test_what_cannot_be_read_counts_as_different_and_is_named(expression, helpers):
    text = f"def loss(y, p):\n    return keras.ops.mean(p) * {expression}"
    names = {"LOCK": threading.Lock(), "READ": globals, "os": os, "helpers": helpers}
    one, again = (of_run(tiny_model(loss=notebook(text, **names)["loss"])) for _ in range(2))
    assert fingerprint.key(one) != fingerprint.key(again)
    assert UNREADABLE[expression] in fingerprint.difference(one, again)


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


def test_functions_and_modules_that_use_one_another_end():
    text = (
        "def f(y, p):\n    return g(y, p)\n\ndef g(y, p):\n    return f(y, p) if y is g else loop"
    )
    loop = []
    loop.append(loop)
    assert "unreadable" not in of_run(tiny_model(loss=notebook(text, loop=loop)["f"]))


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
