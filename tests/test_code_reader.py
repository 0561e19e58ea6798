"""What the code reader finds: every kind of thing that a training run may use."""

import os
import subprocess
import sys
import textwrap
import threading
import types

import keras
import numpy as np
import pytest
from conftest import ROOT
from edits import EDITS, THINGS, WITHOUT_EFFECT
from test_fingerprint import of_run
from test_training import tiny_model

from core import fingerprint


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
    """Whatever kind of thing it is, and wherever it hides; and some are named where they are."""
    named = {
        "Thing(5)": "state.v is 6, was 5", "x + 7": "cached.code changed",
        "_strength = 101": "model._strength is 110, was 101", "Loss(59)": "_n is 61, was 59",
        "(1, 103.0)": "teacher.weights changed",
    }  # fmt: skip
    words = fingerprint.difference(things(part, EDITS[part]), unedited, most=9)
    assert words
    assert named.get(part, "") in words


@pytest.mark.parametrize("part", WITHOUT_EFFECT)
def test_a_comment_or_a_global_that_nothing_reads_changes_nothing(part, unedited):
    edited = things(part, WITHOUT_EFFECT[part])
    assert fingerprint.difference(edited, unedited) == ""
    assert fingerprint.key(edited) == fingerprint.key(unedited)


@pytest.mark.slow
def test_two_processes_give_one_run_the_same_key(unedited):
    script = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import core, test_code_reader as test
        generator = test.helpers.__wrapped__()
        next(generator)
        print(test.fingerprint.key(test.things()), test.fingerprint.key(test.of_run()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True)
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


def test_functions_and_modules_that_use_one_another_end():
    text = "def f(y, p): return g(y, p)\n\ndef g(y, p): return f(y, p) if y is g else loop"
    loop = []
    loop.append(loop)
    assert "unreadable" not in of_run(tiny_model(loss=notebook(text, loop=loop)["f"]))
