"""Training that is interrupted in every way, and that is taken up again only if it is the same training."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from unittest import mock

import filelock
import keras
import numpy as np
import pytest

from core import checkpoints, definition, fast, parameters, records
from core.batches import Batches

ROOT = Path(__file__).resolve().parent.parent


def tiny_data(n=320):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    images = rng.integers(0, 80, (n, 32, 32, 3), np.uint8) + (40 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


def tiny_batches(**changes):
    return Batches(*tiny_data(), **{"batch_size": 32, "seed": 1, "classes": 4} | changes)


def tiny_model(
    rate=1e-2, activation="relu", dropout=0.3, loss="categorical_crossentropy", optimizer=keras.optimizers.Adam, seed=0
):
    """Everything that has a state: batch norm, dropout's seed, an optimiser with moments, a schedule."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, strides=4)(x)
    x = keras.layers.Activation(activation)(fast.BatchNormalization()(x))
    x = keras.layers.Dropout(dropout)(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax")(x))
    rate = keras.optimizers.schedules.CosineDecay(rate, 60)
    model.compile(optimizer(rate), loss, metrics=["accuracy"])
    return model


def train(folder, epochs=5, minutes=5, callbacks=(), patience=10, model=None, batches=None, **arguments):
    model = model or tiny_model()
    images, labels = tiny_data(64)
    run = checkpoints.fit(
        model, batches or tiny_batches(), epochs=epochs, folder=folder, minutes=minutes,
        early_stopping=keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True),
        callbacks=callbacks, validation_data=(images, np.eye(4, dtype="float32")[labels]), verbose=0, **arguments,
    )  # fmt: skip
    checkpoints.release(folder)
    return model, run


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    only_watches = True  # the training with it is the training without it

    def __init__(self, epoch, step):
        super().__init__()
        self.at = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Stop


def nothing_trained():
    """Fail within a `with` block where a model's `fit` is called."""
    return mock.patch.object(keras.Model, "fit", side_effect=AssertionError("trained again"))


def assert_same(one, other):
    for mine, theirs in zip(one[0].variables, other[0].variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs))
    assert one[1]["history"] == other[1]["history"]
    assert one[1]["steps"] == other[1]["steps"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_training_learns(whole):
    assert whole[1]["history"]["accuracy"][-1] > 0.5  # chance is 0.25
    assert whole[1]["steps"] == 50


@pytest.mark.parametrize(("epoch", "step", "minutes"), [(0, 4, 0), (2, 0, 5), (3, 6, 0), (4, 9, 0)])
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, whole, epoch, step, minutes):
    """With `minutes=0` every step is checkpointed, so that it goes on in the middle of an epoch."""
    with pytest.raises(Stop):
        train(tmp_path, minutes=minutes, callbacks=[StopAt(epoch, step)])
    checkpoints.release(tmp_path)
    assert_same(train(tmp_path), whole)


def test_early_stopping_is_the_same_after_an_interruption(tmp_path):
    uninterrupted = train(tmp_path / "a", epochs=30, patience=1, model=tiny_model(rate=0.3))
    n = len(uninterrupted[1]["history"]["loss"])
    assert n < 30
    with pytest.raises(Stop):
        train(tmp_path / "b", epochs=30, patience=1, minutes=0, callbacks=[StopAt(n - 1, 5)], model=tiny_model(rate=0.3))
    checkpoints.release(tmp_path / "b")
    assert_same(train(tmp_path / "b", epochs=30, patience=1, model=tiny_model(rate=0.3)), uninterrupted)


def test_a_finished_training_is_not_repeated(tmp_path, whole):
    train(tmp_path)
    with nothing_trained():
        assert_same(train(tmp_path), whole)


def test_a_recipe_is_the_same_for_other_seeds_and_images_alone():
    def recipe(**changes):
        return definition.recipe(definition_of(**changes))

    images, labels = tiny_data(64)
    same = recipe()
    assert recipe(model=tiny_model(seed=1)) == same
    assert recipe(batches=tiny_batches(seed=2)) == same
    assert recipe(batches=Batches(images, labels, batch_size=32, seed=1, classes=4, steps=10)) == same
    assert recipe(batches=tiny_batches(pad=0)) != same
    for other in ({"model": tiny_model(activation="tanh")}, {"model": tiny_model(rate=1e-3)}, {"epochs": 6}):
        assert recipe(**other) != same


def test_a_training_knows_how_many_images_it_saw(finished):
    _, run = train(finished[0])
    assert run["trained_on"] == 320
    assert run["recipe"] != run["definition"]


def test_a_record_that_would_not_say_what_was_trained_is_refused(tmp_path, capsys):
    """A reader edits a parameter and runs some of the cells that use it."""
    notebook = {"EPOCHS": 5, "WIDTH": 0.25, "CANDIDATES": 4, "N": 3, "PICTURE": ""}
    then = parameters.check_parameters(notebook)
    notebook |= {"EPOCHS": 3, "CANDIDATES": 1, "N": np.zeros(3), "PICTURE": "a.png"}  # those after the first change no training
    parameters._notebook["values"] = notebook  # as in a notebook, whose globals are one dictionary
    _, run = train(tmp_path)
    said = "EPOCHS was 5 and is 3. Run the cell below the parameters again"
    assert f"Changed since the parameters were checked: {said}" in capsys.readouterr().out
    assert run["trained_with"] == {"EPOCHS": 3, "WIDTH": 0.25}
    with pytest.raises(ValueError, match="the record would not say what was trained: EPOCHS was 5 and is 3"):
        records.write("vgg16", parameters=then, **run)
    now = parameters.check_parameters(notebook | {"WIDTH": 0.5, "N": 1, "PICTURE": ""})  # and the cell of the training is not run
    with pytest.raises(ValueError, match="WIDTH was 0.5 and is 0.25"):
        records.write("vgg16", parameters=now, **run)
    parameters.check_parameters({})
    assert "trained_with" not in train(tmp_path)[1]


def test_resume_false_starts_anew(tmp_path, whole):
    with pytest.raises(Stop):
        train(tmp_path, callbacks=[StopAt(3, 0)])
    checkpoints.release(tmp_path)
    assert_same(train(tmp_path, resume=False), whole)


CHANGES = {
    "activation": ({"model": lambda: tiny_model(activation="tanh")}, "activation is 'tanh', was 'relu'"),
    "dropout": ({"model": lambda: tiny_model(dropout=0.2)}, "rate is 0.2, was 0.3"),
    "loss": ({"model": lambda: tiny_model(loss="mse")}, "loss is 'mse', was 'categorical_crossentropy'"),
    "optimizer": ({"model": lambda: tiny_model(optimizer=keras.optimizers.SGD)}, "optimizer.class is 'SGD', was 'Adam'"),
    "learning rate": ({"model": lambda: tiny_model(rate=2e-2)}, "initial_learning_rate is 0.02, was 0.01"),
    "first weights": ({"model": lambda: tiny_model(seed=1)}, "first weights changed"),
    "augmentation": ({"batches": lambda: tiny_batches(pad=2)}, "batches.settings.pad is 2, was 4"),
    "order": ({"batches": lambda: tiny_batches(seed=2)}, "batches.settings.seed is 2, was 1"),
    "data": ({"batches": lambda: other_data()}, "batches.settings.images changed"),
    "epochs": ({"epochs": lambda: 3}, "epochs is 3, was 5"),
    "patience": ({"patience": lambda: 9}, "early stopping.patience is 9, was 10"),
    "callback": ({"callbacks": lambda: [Halver()]}, "callbacks.0.class is new"),
    "class weights": ({"class_weight": lambda: dict.fromkeys(range(4), 2.0)}, "fit.class_weight.0 is new"),
}


def other_data():
    images, labels = tiny_data()
    images[7, 3, 2, 1] ^= 1
    return Batches(images, labels, 32, seed=1, classes=4)


class Halver(keras.callbacks.Callback):
    """Changes what is learned: it does not only watch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[-1].kernel.assign(self.model.layers[-1].kernel / 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder)


def definition_of(epochs=5, patience=10, callbacks=(), model=None, batches=None, **arguments):
    """What defines the training that `train` would take with these."""
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True)
    return definition.of_training(model or tiny_model(), batches or tiny_batches(), epochs, stopping, callbacks, **arguments)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_defines_a_training_makes_another_one_of_it(change):
    """One pixel, one rate, one activation."""
    made, words = CHANGES[change]
    one, other = definition_of(), definition_of(**{name: make() for name, make in made.items()})
    assert definition.key(one) != definition.key(other)
    assert words in definition.difference(other, one)
    assert definition.key(one) == definition.key(definition_of())


@pytest.mark.parametrize("change", ["activation", "order", "callback"])
def test_a_changed_training_is_trained_anew_says_why_and_leaves_the_old_one(tmp_path, finished, whole, capsys, change):
    """Nothing of the old training may be taken for the new one's."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    made, words = CHANGES[change]
    _, run = train(tmp_path, **{name: make() for name, make in made.items()})
    printed = capsys.readouterr().out
    assert "trained anew, because its definition changed: " in printed
    assert words in printed
    assert printed.count("\n") == 1
    assert run["definition"] != whole[1]["definition"]
    assert run["history"] != whole[1]["history"]
    with nothing_trained():
        assert_same(train(tmp_path), whole)  # going back finds the old training


def test_an_unfinished_training_is_found_again_after_another(tmp_path, whole):
    with pytest.raises(Stop):
        train(tmp_path, callbacks=[StopAt(3, 2)])
    checkpoints.release(tmp_path)
    train(tmp_path, model=tiny_model(activation="tanh"), epochs=1)
    assert_same(train(tmp_path), whole)


def test_the_last_training_is_the_one_that_differences_are_told_from(tmp_path, capsys):
    for rate in (0.01, 0.02, 0.01, 0.03):
        train(tmp_path, epochs=1, model=tiny_model(rate=rate))
    assert "is 0.03, was 0.01" in capsys.readouterr().out


def test_a_torn_definition_does_not_stop_a_training(tmp_path, whole):
    train(tmp_path, epochs=1)
    (path,) = tmp_path.glob("*/definition.json")
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert_same(train(tmp_path), whole)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Stop):
        train(folder, callbacks=[StopAt(3, 2)])
    checkpoints.release(folder)
    return folder


@pytest.mark.parametrize("tenth", range(10))
def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path, whole, interrupted, tenth):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    _, newest = sorted(tmp_path.glob("*/*.npz"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size * tenth // 10])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        assert_same(train(tmp_path), whole)


def test_flipped_bytes_never_pass(tmp_path):
    train(tmp_path, epochs=1)
    (path,) = tmp_path.glob("*/*.npz")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    original = checkpoints._read(path)
    for position in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            state = checkpoints._read(path)
        except Exception:
            continue
        for group, arrays in original["arrays"].items():  # a byte no reader looks at
            for mine, theirs in zip(state["arrays"][group], arrays, strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("person", [True, False])
def test_a_person_sees_a_bar_that_moves_and_a_log_one_line_an_epoch(tmp_path, capsys, person):
    """Keras's own switch decides. Both say how much time is left."""
    switches = keras.config.disable_interactive_logging, keras.config.enable_interactive_logging
    switches[person]()
    try:
        model = tiny_model()
        checkpoints.fit(model, tiny_batches(), epochs=2, folder=tmp_path)
        checkpoints.release(tmp_path)
    finally:
        keras.config.enable_interactive_logging()
    printed, moving = capsys.readouterr()
    assert bool(re.search(r"2/2 \[\d\d:\d\d<", moving)) == person
    lines = [line for line in printed.splitlines() if "epoch   " in line]
    begin = [f"{tmp_path.name}: epoch   {epoch}/2  " for epoch in (1, 2)]  # which training it is, where there are several
    assert [line.startswith(words) for line, words in zip(lines, begin, strict=True)] == [True, True] if not person else not lines
    assert all("min left  " in line and "accuracy 0." in line for line in lines)


def test_one_bar_for_all_epochs_whatever_was_trained_before(tmp_path, capsys):
    """Where a training goes on within an epoch, Keras trains the rest of it in a call of its own."""
    with pytest.raises(Stop):
        checkpoints.fit(tiny_model(), tiny_batches(), epochs=4, folder=tmp_path, minutes=0, callbacks=[StopAt(1, 5)], verbose=0)
    capsys.readouterr()
    checkpoints.fit(tiny_model(), tiny_batches(), epochs=4, folder=tmp_path)
    checkpoints.release(tmp_path)
    moving = capsys.readouterr().err
    assert list(dict.fromkeys(re.findall(r"(\d/4) \[", moving))) == ["0/4", "1/4", "2/4", "3/4", "4/4"]


def test_a_training_that_stops_early_ends_with_a_full_bar(tmp_path, capsys):
    """tqdm shows one that has less than its total in red, as if something had failed."""
    stopping = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=100)
    model = tiny_model()
    run = checkpoints.fit(model, tiny_batches(), epochs=30, folder=tmp_path, early_stopping=stopping)
    checkpoints.release(tmp_path)
    n = len(run["history"]["loss"])
    assert n < 30
    assert f"stopped early: 100%|██████████| {n}/{n} [" in capsys.readouterr().err


def test_two_checkpoints_are_kept(tmp_path):
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*/*.npz")) == ["00004-0000000.npz", "00005-0000000.npz"]
    assert not list(tmp_path.glob("*/*.partial"))


def test_where_writing_is_slow_some_epochs_go_without_a_checkpoint(tmp_path, whole, monkeypatch):
    written, write = [], checkpoints._write

    def slow_write(folder, state):
        time.sleep(0.5)
        written.append(state["epoch"])
        write(folder, state)

    monkeypatch.setattr(checkpoints, "_write", slow_write)
    assert_same(train(tmp_path), whole)
    assert written == [1, 5, 5]  # the last is written again when early stopping has put the best weights back


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path):
    """A file size limit makes the kernel refuse to write more, as a full disk does."""
    script = f"""
        import resource, signal, sys, warnings
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import test_checkpoints
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        print(test_checkpoints.train({str(tmp_path)!r})[1]["steps"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("50"), done.stderr
    assert "no checkpoint written" in done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.glob("*/*.npz"))
    assert not list(tmp_path.glob("*/*.partial"))


def test_a_second_run_is_told_at_once_and_touches_nothing(tmp_path):
    with filelock.FileLock(tmp_path / "lock"):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(checkpoints.CheckpointError, match="in use by another run"):
            train(tmp_path)
        assert sorted(tmp_path.iterdir()) == before
    train(tmp_path, epochs=1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(checkpoints.CheckpointError, match="results.* cannot be written"):
        train(tmp_path / "results" / "run")


def test_nan_stops_within_the_step_and_names_it(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 24:
                self.model.layers[-1].kernel.assign(self.model.layers[-1].kernel * float("nan"))

    with pytest.raises(checkpoints.DivergedError, match=r"epoch 3, step 5: .*'loss': nan"):
        train(tmp_path, callbacks=[Poison()])
    checkpoints.release(tmp_path)
    state = checkpoints._read(max(tmp_path.glob("*/*.npz")))
    assert state["epoch"] == 2
    assert all(np.isfinite(array).all() for array in state["arrays"]["model"])


def test_an_interrupted_cell_can_be_run_again(tmp_path, whole):
    """SIGINT, as Jupyter's stop button sends it; the kernel, and with it the claim on the folder, lives on."""

    class PressStop(keras.callbacks.Callback):
        only_watches = True

        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 33:
                signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a kernel; a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt, match="Run it again") as error:
            train(tmp_path, minutes=0, callbacks=[PressStop()])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not any("keras" in str(entry.path) for entry in error.traceback)  # a person reads what is above
    assert_same(train(tmp_path), whole)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="changes the user")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "run").mkdir(mode=0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(checkpoints.CheckpointError, match="run cannot be written: .*denied"):
            checkpoints.claim(tmp_path / "run")
    finally:
        os.seteuid(0)
        checkpoints.release(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def being_saved(folder, since):
    """Whether a checkpoint is half written, other than one an earlier kill left behind."""
    try:
        return any(path.stat().st_mtime > since for path in folder.glob("*/*.partial"))
    except FileNotFoundError:  # renamed in the meantime
        return False


def kill_at_random_moments(folder, module, trainer):
    """kill -9 during steps and saves (every step is checkpointed), each time started again; the caller trains to the end.

    `make soak` kills twenty times (KILLS), `make test` twice.
    """
    kills = int(os.environ.get("KILLS", "2"))
    script = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import os, time, core, keras, {module}
        class Tell(keras.callbacks.Callback):
            only_watches = True
            def on_train_batch_end(self, batch, logs=None):  # a save is next
                print("step", flush=True)
        fsync = os.fsync
        os.fsync = lambda file: (fsync(file), print("save", flush=True), time.sleep(float(sys.argv[1])))  # a slow disk
        {module}.{trainer}({str(folder)!r}, minutes=0, callbacks=[Tell()])
    """
    rng, torn = np.random.default_rng(0), 0
    for kill in range(kills):
        event, disk = ("save", "60") if kill % 2 else ("step", "0.2")  # odd ones meet a save that lasts
        command = [sys.executable, "-c", textwrap.dedent(script), disk]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        since = time.time()
        next(line for line in process.stdout if line.strip() == event)
        time.sleep(0 if kill % 2 else rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        torn += being_saved(folder, since)
    print(f"{trainer}: {kills} kills, {torn} of them in the midst of a save")
    assert torn >= kills // 2


def test_killed_at_random_moments(tmp_path, whole):
    kill_at_random_moments(tmp_path / "run", "test_checkpoints", "train")
    assert_same(train(tmp_path / "run"), whole)
