"""Training runs that are interrupted in every way, and reused only if they are the same run."""

import shutil
from unittest import mock

import keras
import numpy as np
import pytest

from core import checkpoints, layers, training
from core.batches import Batches


def tiny_data(n=320):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    brightness = (40 * labels[:, None, None, None]).astype(np.uint8)
    return rng.integers(0, 80, (n, 32, 32, 3), np.uint8) + brightness, labels


def tiny_batches(**changes):
    return Batches(*tiny_data(), **{"batch_size": 32, "seed": 1, "classes": 4} | changes)


def tiny_model(rate=1e-2, activation="relu", dropout=0.3, loss="categorical_crossentropy",
               optimizer=keras.optimizers.Adam, seed=0):  # fmt: skip
    """Everything that has a state: batch norm, dropout's seed, an optimiser with a schedule."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, strides=4)(x)
    x = keras.layers.Activation(activation)(layers.BatchNormalization()(x))
    x = keras.layers.Dropout(dropout)(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax")(x))
    schedule = keras.optimizers.schedules.CosineDecay(rate, 60)
    model.compile(optimizer(schedule), loss, metrics=["accuracy"])
    return model


def train(folder, epochs=5, callbacks=(), patience=10, model=None, **arguments):
    """Train the tiny model for epochs of ten steps; there is a checkpoint after every epoch."""
    model = model or tiny_model()
    images, labels = tiny_data(64)
    choices = {"patience": patience, "restore_best_weights": True}
    arguments = {
        "validation_data": (images, np.eye(4, dtype="float32")[labels]), "verbose": 0,
        "callbacks": [*callbacks, keras.callbacks.EarlyStopping("val_loss", **choices)],
        "checkpoint_seconds": 0,
    } | arguments  # fmt: skip
    run = training.fit(model, tiny_batches(), epochs=epochs, folder=folder, **arguments)
    checkpoints.release(folder)
    return model, run


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    only_watches = True  # with it, the run is the same run

    def __init__(self, epoch, step):
        super().__init__()
        self.at = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Stop


def interrupt(folder, epoch, step, train=train, **choices):
    with pytest.raises(Stop):
        train(folder, callbacks=[StopAt(epoch, step)], **choices)
    checkpoints.release(folder)


def nothing_trained():
    """Fail within a `with` block if a model's `fit` is called."""
    return mock.patch.object(keras.Model, "fit", side_effect=AssertionError("trained again"))


def assert_same(one, other):
    for mine, theirs in zip(one[0].variables, other[0].variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs))
    assert one[1]["history"] == other[1]["history"]
    assert one[1]["steps"] == other[1]["steps"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption, and its folder, which no test changes."""
    folder = tmp_path_factory.mktemp("whole")
    return *train(folder), folder


def test_a_run_learns_and_records_what_it_was_given(whole):
    _, run, folder = whole
    assert run["history"]["accuracy"][-1] > 0.5  # chance is 0.25
    given = {"steps": 50, "epochs": 5, "epochs_run": 5, "trained_on": 320, "batch_size": 32}
    given |= {"seed": 1, "optimizer": "adam", "precision": "float32", "replicas": 1}
    assert run.items() >= given.items()
    assert run["recipe"] != run["fingerprint"]
    assert (folder / run["fingerprint"]).is_dir()


@pytest.mark.parametrize(("epoch", "step"), [(0, 4), (2, 0), (4, 9)])
def test_a_resumed_run_is_bit_identical(tmp_path, whole, epoch, step):
    interrupt(tmp_path, epoch, step)
    assert_same(train(tmp_path), whole)


@pytest.mark.slow
def test_early_stopping_is_the_same_after_an_interruption(tmp_path):
    """It restores the best weights at the very end, after the last epoch's checkpoint."""

    def stopped_early(name, trainer=train, **choices):
        choices |= {"epochs": 30, "patience": 1, "model": tiny_model(rate=0.3)}
        return trainer(tmp_path / name, **choices)

    uninterrupted = stopped_early("a")
    n = uninterrupted[1]["epochs_run"]
    assert n < 30
    assert uninterrupted[1]["steps"] == 10 * n
    stopped_early("b", interrupt, epoch=n - 1, step=5)
    assert_same(stopped_early("b"), uninterrupted)
    end = mock.patch.object(training._Saver, "on_train_end", side_effect=Stop)
    with end, pytest.raises(Stop):
        stopped_early("c")
    checkpoints.release(tmp_path / "c")
    assert_same(stopped_early("c"), uninterrupted)


def test_a_finished_run_is_not_repeated_unless_resume_is_false(whole, tmp_path):
    folder = shutil.copytree(whole[2], tmp_path / "copy")
    with nothing_trained():
        assert_same(train(folder), whole)
        with pytest.raises(AssertionError, match="trained again"):
            train(folder, resume=False)
    checkpoints.release(folder)


def test_a_changed_run_is_trained_from_the_start_and_says_why(tmp_path, whole, capsys):
    """Nothing of the old run may be taken for the new one's; going back finds the old one."""
    folder = shutil.copytree(whole[2], tmp_path / "copy")
    _, run = train(folder, model=tiny_model(activation="tanh"))
    printed = capsys.readouterr().out
    assert printed.startswith("copy: training from the start, because the run has changed: ")
    assert printed.endswith("is 'tanh', was 'relu'\n")
    assert printed.count("\n") == 1
    assert run["history"] != whole[1]["history"]
    with nothing_trained():
        assert_same(train(folder), whole)


def test_what_cannot_be_read_is_named_and_never_reused(tmp_path, capsys):
    def loss(y, p):
        return keras.ops.mean(p) * globals().get("K", 1.0)

    for _ in range(2):
        train(tmp_path, epochs=1, model=tiny_model(loss=loss))
        printed = capsys.readouterr().out
        assert "if this run is interrupted, it cannot be resumed" in printed
        assert "loss uses globals" in printed
        assert "has finished" not in printed
        assert "continues after" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("tenth", [0, 5, 9])
def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path, whole, tenth):
    interrupt(tmp_path, 3, 2)
    _, newest = sorted(tmp_path.glob("*/*.npz"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size * tenth // 10])
    torn = next(tmp_path.glob("*/fingerprint.json"))
    torn.write_text(torn.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        assert_same(train(tmp_path), whole)


def test_checkpoints_keep_their_interval_and_the_last_two_are_kept(tmp_path, whole):
    assert_same(train(tmp_path, checkpoint_seconds=1000), whole)
    for folder, files in ((whole[2], ["00004.npz", "00005.npz"]), (tmp_path, ["00005.npz"])):
        assert sorted(path.name for path in folder.glob("*/*.npz")) == files
    assert not list(whole[2].glob("*/*.partial"))


class Poison(keras.callbacks.Callback):
    """Makes the last layer's weights NaN after 24 steps."""

    only_watches = True

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations == 24:
            kernel = self.model.layers[-1].kernel
            kernel.assign(kernel * float("nan"))


def test_nan_stops_within_the_step_and_names_it(tmp_path):
    words = r"not finite at step 5 of epoch 3: .*'loss': nan"
    with pytest.raises(training.DivergedError, match=words):
        train(tmp_path, callbacks=[Poison()])
    checkpoints.release(tmp_path)
    state = checkpoints.read(max(tmp_path.glob("*/*.npz")))
    assert state["epoch"] == 2
    for group in ("model", "best"):  # the best weights so far are in it
        assert state["arrays"][group]
        assert all(np.isfinite(array).all() for array in state["arrays"][group])
