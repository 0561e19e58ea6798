"""What defines a training: the same in every process, and never the same for two trainings that differ."""

import functools
import os
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT
from test_checkpoints import tiny_batches, tiny_model

from core import cifar100, definition, fast, records

NOTEBOOK = """
STRENGTH = 0.5
TABLE = np.arange(3)


def activation(x):
    return keras.ops.relu(x) * STRENGTH


def helper(y):
    return TABLE.sum() * y


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return activation(self.dense(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(helper(y_pred))


def build():
    keras.utils.set_random_seed(0)
    model = Own()
    model.compile("sgd")
    model(np.zeros((1, 2)))
    return model
"""


def notebook(text=NOTEBOOK, **names):
    """Execute a notebook's text, as a kernel would, and return what it defines."""
    space = {"__name__": "__main__", "keras": keras, "np": np}
    exec(text, space)
    space.update(names)
    return space


def defined(space):
    return definition.of_training(space["build"](), tiny_batches(), 3)


@pytest.mark.parametrize("beside", [False, True])
def test_packages_are_installed_wherever_pip_put_them(tmp_path, beside):
    """`pip install --target` and `--user` put Keras outside of the interpreter's own folder; here also beside the project."""
    (tmp_path / "keras").symlink_to(Path(keras.__file__).parent)
    root = ROOT
    if beside:
        root = tmp_path / "project"
        shutil.copytree(ROOT / "core", root / "core")
    kinds = "definition._is_own(keras.layers.Dense), definition._is_own(definition.key)"
    script = f"import keras; from core import definition; print(keras.__file__, {kinds})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "keras" / "__init__.py"), "False", "True"]


def test_two_builds_in_one_process_are_the_same_training():
    one, other = (definition.of_training(tiny_model(), tiny_batches(), 3) for _ in range(2))
    assert definition.key(one) == definition.key(other)
    assert definition.difference(one, other) == ""
    assert definition.key(defined(notebook())) == definition.key(defined(notebook()))


def test_two_processes_give_one_training_the_same_key():
    script = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import core, test_definition
        print(test_definition.definition.key(test_definition.defined(test_definition.notebook())))
        print(test_definition.definition.key(
            test_definition.definition.of_training(test_definition.tiny_model(), test_definition.tiny_batches(), 3)))
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    outputs = [subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[1] == definition.key(definition.of_training(tiny_model(), tiny_batches(), 3))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("STRENGTH = 0.5", "STRENGTH = 0.25", "values.STRENGTH is 0.25, was 0.5"),
        ("np.arange(3)", "np.arange(4)", "values.TABLE changed"),
        ("keras.ops.relu(x)", "keras.ops.tanh(x)", "code.activation changed"),
        ("TABLE.sum()", "TABLE.max()", "code.helper changed"),
        ("keras.layers.Dense(3)", "keras.layers.Dense(3, use_bias=False)", "use_bias is False, was True"),
        ("(1, 2)", "(1, 4)", "first weights changed"),
        ('"sgd"', '"adam"', "optimizer.class is 'Adam', was 'SGD'"),
    ],
)
def test_an_edited_notebook_is_another_training(before, after, words):
    assert NOTEBOOK.count(before) == 1
    text = definition.difference(defined(notebook(NOTEBOOK.replace(before, after))), defined(notebook()), most=50)
    assert words in text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    return TABLE", "    # why\n    return TABLE"),
        ("STRENGTH = 0.5", "STRENGTH = 0.5  # of the slope\nOTHER = 3"),
    ],
)
def test_a_comment_or_a_global_that_nothing_reads_is_no_other_training(before, after):
    assert definition.key(defined(notebook(NOTEBOOK.replace(before, after)))) == definition.key(defined(notebook()))


def test_a_function_of_the_notebook_within_a_plain_model_counts():
    def build(space):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation=space["activation"])])
        model.compile("sgd", space["helper"])
        return definition.of_training(model, tiny_batches(), 1)

    same, other, loss = (
        build(notebook(NOTEBOOK.replace(*change))) for change in (("x", "x"), ("relu", "tanh"), ("TABLE.sum()", "TABLE.max()"))
    )
    assert definition.difference(other, same) == "code.activation changed"
    assert definition.difference(loss, same) == "code.helper changed"


def test_a_model_read_as_a_global_counts_with_its_weights():
    text = NOTEBOOK.replace("TABLE.sum()", "keras.ops.sum(teacher(np.ones((1, 2))))")
    teachers = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        teachers.append(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    one, again, other = (definition.key(defined(notebook(text, teacher=teacher))) for teacher in teachers)
    assert one == again != other


def test_a_layer_of_the_project_counts_with_its_code(monkeypatch):
    before = definition.of_training(tiny_model(), tiny_batches(), 3)
    assert "core.fast.BatchNormalization.call" in before["code"]
    assert "core.batches.crop_and_flip" in before["code"]
    assert before["values"]["ENABLED"] is True
    monkeypatch.setattr(fast, "ENABLED", False)
    assert "values.ENABLED is False, was True" in definition.difference(
        definition.of_training(tiny_model(), tiny_batches(), 3), before
    )


def test_what_leads_back_to_itself_ends():
    """Functions and globals that read one another."""
    text = NOTEBOOK.replace("return keras.ops.relu(x) * STRENGTH", "return helper(activation(x)) if activation is helper else x")
    assert len(definition.key(defined(notebook(text.replace("TABLE.sum()", "activation(TABLE).sum()"))))) == 8


def test_a_long_difference_is_cut():
    now = {"a": [1, 2, 3], "b": {"c": "x"}, "d": None}
    before = {"a": [1, 3, 4], "b": {"c": "y"}, "e": 1}
    assert definition.difference(now, before, most=2) == "a.1 is 2, was 3; a.2 is 3, was 4; and 3 more"
    assert definition.difference({"values": {"A": None}}, {"values": {}}) == "values.A is new"
    assert definition.difference({}, {"e": 1}) == "e is gone"


def test_modules_of_the_project_are_followed_and_installed_ones_are_not():
    space = notebook(NOTEBOOK.replace("TABLE.sum()", "tools.double(np.max(TABLE))"))
    tools = types.ModuleType("tools")
    tools.__file__ = "/somewhere/tools.py"
    exec("def double(x):\n    return 2 * x\n\ndef unused(x):\n    return x", tools.__dict__)
    space["tools"] = tools
    code = defined(space)["code"]
    assert "tools.double" in code
    assert not [name for name in code if "unused" in name or name.startswith(("numpy", "keras"))]


HOLES = """
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
    return D, S, SLICE, PART, C, E, thing, bound, layer, cached, decorated, one, two, f1, f2, default


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
        self.n = n

    def call(self, y, p):
        return keras.ops.mean(p) * self.n


class Reg(keras.regularizers.Regularizer):
    def __call__(self, x):
        return keras.ops.sum(x) * 43

    def get_config(self):
        return {}


def build():
    keras.utils.set_random_seed(0)
    image = keras.Input((2,))
    x = keras.layers.Dense(3, kernel_regularizer=Reg())(image)
    x = keras.layers.Lambda(lambda v: v * 47)(x)
    model = keras.Model(image, keras.layers.Dropout(0.5, seed=53)(x))
    model.compile(keras.optimizers.SGD(Sched()), Loss(59), metrics=["mae"])
    return model


def callbacks():
    return [Cb(61), keras.callbacks.ReduceLROnPlateau(factor=0.67)]


SHAPE = 71
shape = 73
"""
EDITS = {  # what a training reads, and what a reader may make of it
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
}


def holes(text=HOLES):
    space = notebook(text)
    return definition.of_training(space["build"](), tiny_batches(), 3, callbacks=space["callbacks"]())


@pytest.fixture(scope="module")
def unedited():
    return definition.key(holes())


def test_the_notebook_of_holes_has_one_key(unedited):
    assert definition.key(holes()) == unedited


@pytest.mark.parametrize("part", EDITS)
def test_nothing_that_a_training_reads_is_overlooked(part, unedited):
    """Whatever kind of thing it is, and wherever it hides."""
    assert HOLES.count(part) == 1
    assert definition.key(holes(HOLES.replace(part, EDITS[part]))) != unedited


@pytest.mark.parametrize(
    ("part", "other"),
    [("SHAPE = 71", "SHAPE = 72"), ("shape = 73", "shape = 74"),
     ('"Docstring."', '"Another."'), ("\n\ndef make", "\n# a\n\ndef make"),
     ("    return y * n", "    return (y *\n                n)"), ("    return x + 7", '    "A docstring."\n    return x + 7')],
)  # fmt: skip
def test_what_a_training_does_not_read_changes_nothing(part, other, unedited):
    assert HOLES.count(part) == 1
    assert definition.key(holes(HOLES.replace(part, other))) == unedited


def test_modules_that_import_one_another_end():
    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            records.run_folder(cifar100.part("shapes100", 1)[0])

    made = definition.of_training(tiny_model(), tiny_batches(), 3, callbacks=[Own()])
    assert "core.records.run_folder" in made["code"]


def test_a_custom_object_that_keras_cannot_write_down_is_still_described():
    def build(n):
        keras.utils.set_random_seed(0)
        image = keras.Input((2,))
        model = keras.Model(
            image, keras.layers.Dense(3, activation=functools.partial(keras.ops.leaky_relu, negative_slope=n))(image)
        )
        model.compile("sgd", functools.partial(keras.losses.huber, delta=n))
        return definition.key(definition.of_training(model, tiny_batches(), 1))

    assert build(0.1) == build(0.1) != build(0.2)
