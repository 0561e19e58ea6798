"""What defines a training: the same in every process, and never the same for two trainings that differ."""

import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
from conftest import ROOT
from test_checkpoints import tiny_batches, tiny_model

from core import definition, fast

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
    assert definition.difference(now, before, most=2) == "a.1 is 2, was 3; a.2 is 3, was 4; and 2 more"


def test_modules_of_the_project_are_followed_and_installed_ones_are_not():
    space = notebook(NOTEBOOK.replace("TABLE.sum()", "tools.double(np.max(TABLE))"))
    tools = types.ModuleType("tools")
    tools.__file__ = "/somewhere/tools.py"
    exec("def double(x):\n    return 2 * x\n\ndef unused(x):\n    return x", tools.__dict__)
    space["tools"] = tools
    code = defined(space)["code"]
    assert "tools.double" in code
    assert not [name for name in code if "unused" in name or name.startswith(("numpy", "keras"))]
