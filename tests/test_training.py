"""Batches by (seed, epoch, step), and training that is interrupted in every way."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import filelock
import keras
import numpy as np
import pytest

import checkpoints
import utils
from notebooks import cells

ROOT = Path(__file__).resolve().parent.parent


def tiny_data(n=320):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    images = rng.integers(0, 80, (n, 32, 32, 3), np.uint8) + (40 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


def tiny_batches(**changes):
    return checkpoints.Batches(*tiny_data(), **{"batch_size": 32, "seed": 1, "classes": 4} | changes)


def tiny_model(rate=1e-2):
    """Everything that has a state: batch norm, dropout's seed, an optimiser with moments, a schedule."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, strides=4)(x)
    x = keras.layers.ReLU()(utils.BatchNormalization()(x))
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax")(x))
    rate = keras.optimizers.schedules.CosineDecay(rate, 60)
    model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy"])
    return model


def train(folder, epochs=5, parameters=None, minutes=5, callbacks=(), patience=10, model=None, **arguments):
    model = model or tiny_model()
    images, labels = tiny_data(64)
    run = checkpoints.fit(
        model, tiny_batches(), epochs=epochs, folder=folder, parameters=parameters or {"LR": 0.01}, minutes=minutes,
        early_stopping=keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True),
        callbacks=callbacks, validation_data=(images, np.eye(4, dtype="float32")[labels]), verbose=0, **arguments,
    )  # fmt: skip
    checkpoints.release(folder)
    return model, run


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch, step):
        super().__init__()
        self.at = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Stop


def assert_same(one, other):
    for mine, theirs in zip(one[0].variables, other[0].variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs))
    assert one[1]["history"] == other[1]["history"]
    assert one[1]["steps"] == other[1]["steps"]


def test_batches_depend_on_seed_epoch_and_step_alone():
    one, other = tiny_batches(), tiny_batches()
    [other[i] for i in range(5)]  # reading ahead changes nothing
    np.testing.assert_array_equal(one[3][0], other[3][0])
    first = one[0][0]
    one.on_epoch_end()
    assert (one[0][0] != first).any()
    other.epoch, other.start = 1, 2
    np.testing.assert_array_equal(one[2][0], other[0][0])
    assert len(other) == len(one) - 2
    assert (tiny_batches(seed=2)[0][0] != first).any()


def test_noise_comes_with_the_images_by_seed_epoch_and_step():
    noise = {}
    for seed, epoch in ((1, 1), (1, 2), (2, 1)):
        batches = tiny_batches(noise=5, seed=seed)
        batches.epoch = epoch
        for step in (0, 1):
            (images, noise[seed, epoch, step]), _ = batches[step]
            assert images.shape == (32, 32, 32, 3)
            np.testing.assert_array_equal(batches[step][0][1], noise[seed, epoch, step])
    assert len({each.tobytes() for each in noise.values()}) == 6
    every = np.concatenate(list(noise.values()))
    assert every.shape == (6 * 32, 5)
    assert abs(every.mean()) < 0.1
    assert every.std() == pytest.approx(1, abs=0.1)


def test_an_epoch_shows_every_image_once_and_full_batches():
    images, labels = np.zeros((50, 32, 32, 3), np.uint8), np.arange(50)
    batches = checkpoints.Batches(images, labels, 20)
    shown = np.concatenate([batches[i][1].argmax(1) for i in range(len(batches))])
    assert len(batches) == 3
    assert sorted(shown[:50]) == list(range(50))
    assert len(shown) == 60
    assert len(checkpoints.Batches(images, labels, 20, steps=2)) == 2
    assert checkpoints.Batches(images[:3], labels[:3], 20)[0][0].shape == (20, 32, 32, 3)


def test_crop_and_flip_moves_whole_images():
    image = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(1, 32, 32, 3) % 251
    images = np.repeat(image.astype(np.uint8), 64, axis=0)
    changed = checkpoints.crop_and_flip(images, np.random.default_rng(0))
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    padded = np.pad(images[:1], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")[0]
    crops = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    possible = {crop.tobytes() for crop in crops} | {np.ascontiguousarray(crop[:, ::-1]).tobytes() for crop in crops}
    assert {np.ascontiguousarray(one).tobytes() for one in changed} <= possible
    only_flips = checkpoints.crop_and_flip(images, np.random.default_rng(0), pad=0)
    assert {one.tobytes() for one in only_flips} == {images[0].tobytes(), np.ascontiguousarray(images[0][:, ::-1]).tobytes()}


def test_cutmix_pastes_a_rectangle_of_a_partner_and_shares_the_labels_by_its_area():
    images = np.full((8, 32, 32, 3), 1, np.uint8) * np.arange(1, 9, dtype=np.uint8)[:, None, None, None]
    labels = np.eye(8, dtype="float32")
    areas = []
    for seed in range(50):
        mixed, shared = checkpoints.cutmix(images, labels, np.random.default_rng(seed))
        for i in range(8):
            pasted = (mixed[i] == images[i - 1]).all(axis=-1)
            assert ((mixed[i] == images[i]).all(axis=-1) != pasted).all()  # each pixel is one image's or the other's
            rows, columns = np.nonzero(pasted)
            if len(rows):
                assert np.ptp(rows) + 1 == len(set(rows))
                assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == pasted.sum()
            assert shared[i] == pytest.approx(labels[i] * (1 - pasted.mean()) + labels[i - 1] * pasted.mean(), abs=1e-6)
        areas.append(pasted.mean())
    assert min(areas) < 0.1
    assert max(areas) > 0.6
    assert images[0].max() == 1  # the inputs are left alone


def test_mixed_batches_come_as_often_as_asked_and_change_nothing_else():
    plain, always = tiny_batches(), tiny_batches(cutmix=1.0)
    half = [batch for epoch in range(20) for batch in every_batch(tiny_batches(cutmix=0.5), epoch)]
    assert 0.35 < np.mean([(labels.max(axis=1) < 1).any() for _, labels in half]) < 0.65
    (images, labels), (mixed, shared) = plain[2], always[2]
    assert (mixed != images).any()
    assert shared.sum(axis=1) == pytest.approx(np.ones(32))
    assert ((mixed == images) | (mixed == np.roll(images, 1, axis=0))).all()
    assert labels.max(axis=1).min() == 1


def every_batch(batches, epoch):
    batches.epoch = epoch
    return [batches[step] for step in range(len(batches))]


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
    untrained = tiny_model()
    untrained.fit = lambda *arguments, **options: pytest.fail("trained again")
    assert_same(train(tmp_path, model=untrained), whole)


def test_resume_false_starts_anew(tmp_path, whole):
    with pytest.raises(Stop):
        train(tmp_path, callbacks=[StopAt(3, 0)])
    checkpoints.release(tmp_path)
    assert_same(train(tmp_path, resume=False), whole)


def test_other_parameters_are_refused_by_name_unless_finished(tmp_path, capsys):
    with pytest.raises(Stop):
        train(tmp_path, callbacks=[StopAt(2, 0)], parameters={"LR": 0.01, "WIDTH": 1})
    checkpoints.release(tmp_path)
    with pytest.raises(checkpoints.CheckpointError, match=r"WIDTH is 2, was 1\. Set RESUME = False"):
        train(tmp_path, parameters={"LR": 0.01, "WIDTH": 2})
    checkpoints.release(tmp_path)
    train(tmp_path, parameters={"LR": 0.01, "WIDTH": 1})
    train(tmp_path, parameters={"LR": 0.01, "WIDTH": 2})
    assert "had other parameters (WIDTH): starting anew" in capsys.readouterr().out


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
    _, newest = sorted(tmp_path.glob("*.npz"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size * tenth // 10])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        assert_same(train(tmp_path), whole)


def test_flipped_bytes_never_pass(tmp_path):
    train(tmp_path, epochs=1)
    (path,) = tmp_path.glob("*.npz")
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


def test_two_checkpoints_are_kept(tmp_path):
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["00004-0000000.npz", "00005-0000000.npz"]
    assert not list(tmp_path.glob("*.partial"))


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
        import test_training
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        print(test_training.train({str(tmp_path)!r})[1]["steps"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("50"), done.stderr
    assert "no checkpoint written" in done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.glob("*.npz"))
    assert not list(tmp_path.glob("*.partial"))


def test_a_second_run_is_told_at_once_and_touches_nothing(tmp_path):
    with filelock.FileLock(tmp_path / "lock"):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(checkpoints.CheckpointError, match="in use by another run"):
            train(tmp_path)
        assert sorted(tmp_path.iterdir()) == before
    train(tmp_path, epochs=1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
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
    state = checkpoints._read(max(tmp_path.glob("*.npz")))
    assert state["epoch"] == 2
    assert all(np.isfinite(array).all() for array in state["arrays"]["model"])


def test_an_interrupted_cell_can_be_run_again(tmp_path, whole):
    """SIGINT, as Jupyter's stop button sends it; the kernel, and with it the claim on the folder, lives on."""

    class PressStop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 33:
                signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a kernel; a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, minutes=0, callbacks=[PressStop()])
    finally:
        signal.signal(signal.SIGINT, handler)
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


class Score(keras.callbacks.Callback):
    """Logs a made-up Fréchet distance that is smallest after the second epoch, and keeps the average of that moment."""

    def on_epoch_end(self, epoch, logs):
        logs["fid"] = (3.0, 1.0, 2.0)[epoch]
        if epoch == 1:
            self.average = [np.array(weight) for weight in self.model.average.weights]


def tiny_gan(rate=1e-3, **choices):
    """Notebook 1's GAN, tiny, with a teacher."""
    names = {
        "LATENT_DIM": 4,
        "CHANNELS": 2,
        "EMA_MOMENTUM": 0.9,
        "CONSISTENCY": 1.0,
        "AUGMENT": True,
        "replicas": 1,
        "GUIDANCE": 0.5,
        "MATCHING": 0.5,
        "SPREAD": 0.5,
    }
    names |= {"real_means": np.ones((100, 32), "float32"), "real_covariance": np.eye(32, dtype="float32"), "feature_scale": 100.0}
    names |= choices
    keras.utils.set_random_seed(0)
    teacher = cells.define("gan_synthetic_images", "def build_classifier", **names)["build_classifier"](2)
    space = cells.define("gan_synthetic_images", *cells.GAN, teacher=teacher, **names)
    gan = space["GAN"](total_steps=18)
    gan.compile(space["two_rates"](gan, rate, 2 * rate))
    return gan


def train_gan(folder, minutes=5, callbacks=()):
    """Train the tiny GAN for 3 epochs of 6 steps."""
    gan = tiny_gan()
    batches = checkpoints.Batches(*tiny_data(), 8, classes=100, pad=0, noise=4, steps=6)
    run = checkpoints.fit(
        gan, batches, epochs=3, folder=folder, parameters={}, minutes=minutes, callbacks=[Score(), *callbacks], verbose=0,
        early_stopping=keras.callbacks.EarlyStopping("fid", mode="min", patience=10, restore_best_weights=True),
    )  # fmt: skip
    checkpoints.release(folder)
    return gan, run


@pytest.fixture(scope="module")
def whole_gan(tmp_path_factory):
    """The GAN as an uninterrupted training leaves it, and what it was at its best."""
    start, best = [], Score()
    begin = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: start.extend(map(np.array, best.model.teacher.weights)))
    trained = train_gan(tmp_path_factory.mktemp("gan"), callbacks=[best, begin])
    return *trained, best.average, start


def test_the_gan_learns_to_tell_and_keeps_its_networks_apart(whole_gan):
    gan, run, _, teacher = whole_gan
    assert run["history"].keys() == {"loss", "d_loss", "g_loss", "fid"}
    for epoch in range(3):
        total = run["history"]["d_loss"][epoch] + run["history"]["g_loss"][epoch]
        assert run["history"]["loss"][epoch] == pytest.approx(total, rel=1e-4)
    for weight, before in zip(gan.teacher.weights, teacher, strict=True):
        np.testing.assert_array_equal(np.array(weight), before)  # it teaches, it does not learn
    average, current = ([np.array(weight) for weight in model.weights] for model in (gan.average, gan.generator))
    assert any((one != other).any() for one, other in zip(average, current, strict=True))
    assert max(np.abs(one - other).max() for one, other in zip(average, current, strict=True)) < 1


def test_bfloat16_rounds_neither_the_discriminators_weights_nor_the_features(policy):
    keras.config.set_dtype_policy("mixed_bfloat16")
    gan = tiny_gan()
    gan.fit(checkpoints.Batches(*tiny_data(), 8, classes=100, pad=0, noise=4, steps=6), epochs=1, verbose=0)
    gan.discriminator([np.zeros((1, 32, 32, 3), "float32"), np.zeros(1, "int32")], training=True)
    for variable in gan.discriminator.trainable_variables:
        value = np.array(variable.value)
        rounded = np.array(keras.ops.cast(keras.ops.cast(value, "bfloat16"), "float32"))
        assert (value != rounded).mean() > 0.5, variable.path
    assert [output.dtype for output in gan.teacher.outputs] == ["float32", "float32"]


def test_augmentation_shifts_hides_a_square_and_lets_gradients_pass():
    import tensorflow as tf

    augment = cells.define("gan_synthetic_images", "def augment")["augment"]
    images = tf.Variable(np.random.default_rng(0).uniform(0.1, 1, (64, 32, 32, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        changed = augment(images, keras.random.SeedGenerator(0))
        total = keras.ops.sum(changed)
    hidden = np.array(changed == 0).all(axis=3)
    assert hidden.any(axis=(1, 2)).all()
    assert 0.15 < hidden.mean() < 0.4  # a square of 17x17 and the edges that a shift by up to 4 leaves, some outside
    assert len(np.unique(np.array(changed).round(4)[:, 16, 16, 0])) > 30  # each image has its own
    gradient = np.array(tape.gradient(total, images))
    assert np.isfinite(gradient).all()
    assert (gradient != 0).any(axis=(1, 2, 3)).all()


def test_copies_are_shifted_and_half_of_them_flipped():
    images = np.random.default_rng(0).random((200, 32, 32, 3)).astype("float32")
    move = cells.define("gan_synthetic_images", "def shift_and_flip")["shift_and_flip"]
    copies = np.array(move(images, keras.random.SeedGenerator(0)))
    flips, offsets = [], set()
    for image, copy in zip(images, copies, strict=True):
        row, column = np.argwhere((copy[12:20, 12:20] > 0).all(axis=2))[0] + 12  # a pixel from within
        y, x = np.argwhere(np.isclose(image, copy[row, column]).all(axis=2))[0]
        again = np.argwhere(np.isclose(image, copy[row, column + 1]).all(axis=2))[0]
        flips.append(again[1] < x)
        offsets.add((row - y, column - (31 - x if flips[-1] else x)))
    assert np.mean(flips) == pytest.approx(0.5, abs=0.1)
    assert {offset for pair in offsets for offset in pair} == set(range(-4, 5))


@pytest.mark.parametrize(("sees", "pays"), [("brightest pixel", False), ("first column", True)])
def test_a_discriminator_pays_where_an_image_and_its_copy_score_differently(sees, pays):
    """The brightest pixel, in the middle, is never shifted out; the first column is."""
    shown, columns = [], 32 if sees == "brightest pixel" else 1

    def score(images):
        return images[:, :, :columns].max(axis=(1, 2, 3))

    def discriminator(inputs, training):
        shown.append([np.array(each) for each in inputs])
        return keras.ops.convert_to_tensor(score(shown[-1][0])[:, None])

    real, fake = np.random.default_rng(0).random((2, 8, 32, 32, 3)).astype("float32") / 2
    for images in (real, fake):
        images[:, 16, 16] = 1 - np.arange(8)[:, None] / 10
    losses = []
    for weight in (0.0, 1.0, 2.0):
        names = {"CONSISTENCY": weight, "AUGMENT": False}
        space = cells.define("gan_synthetic_images", "def augment", "def discriminator_loss", **names)
        losses.append(float(space["discriminator_loss"](discriminator, real, fake, np.arange(8), keras.random.SeedGenerator(0))))
    (both, _), (halves, labels), _ = shown
    assert both.shape == halves.shape == (16, 32, 32, 3)  # no more with copies than without
    assert labels.tolist() == 4 * [0, 1, 2, 3]
    np.testing.assert_array_equal(halves[[0, 1, 2, 3, 8, 9, 10, 11]], np.concatenate([real[:4], fake[:4]]))
    differences = score(halves).reshape(2, 2, 4)
    price = np.mean((differences[:, 0] - differences[:, 1]) ** 2)
    hinge = np.mean(1 - score(halves)[:8]) + np.mean(1 + score(halves)[8:])
    assert (price > 1e-3) == pays
    assert losses == pytest.approx(
        [np.mean(1 - score(real)) + np.mean(1 + score(fake)), hinge + price, hinge + 2 * price], rel=1e-4
    )


def test_generator_and_discriminator_learn_at_their_own_rates():
    """Adam's first step moves a weight by the learning rate, whatever its gradient."""
    gan = tiny_gan(rate=1e-3)
    batch = checkpoints.Batches(*tiny_data(), 8, classes=100, pad=0, noise=4)[0]
    networks = (gan.generator, gan.discriminator)
    biases = [next(weight for weight in network.trainable_weights if weight.name == "bias") for network in networks]
    before = [np.array(bias) for bias in biases]
    gan.train_on_batch(*batch)
    for bias, old, rate in zip(biases, before, (1e-3, 2e-3), strict=True):
        assert np.abs(np.array(bias) - old).max() == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(("scale", "shift", "signs"), [(0.5, 0, (0, -1)), (1, 0, (0, 0)), (2, 0, (0, 1)), (1, 1, (1, 1))])
def test_class_moments_pull_generated_features_to_the_real_ones(scale, shift, signs):
    """Features of a given spread and shift about the class means: which way the two terms would move them."""
    rng = np.random.default_rng(0)
    names = {"real_means": rng.normal(size=(100, 16)).astype("float32"), "real_covariance": np.eye(16, dtype="float32")}
    moments = cells.define("gan_synthetic_images", "class ClassMoments", EMA_MOMENTUM=0.9, **names)["ClassMoments"]()
    moments.build((100, 16))
    terms = []
    for _ in range(300):
        labels = rng.integers(0, 100, 64)
        features = names["real_means"][labels] + scale * rng.normal(size=(64, 16)) + shift
        terms.append([float(term) for term in moments(features.astype("float32"), np.eye(100, dtype="float32")[labels])])
    for term, noise, sign in zip(np.mean(terms[100:], axis=0), (8, 2), signs, strict=True):
        assert np.sign(term) * (abs(term) > noise) == sign


class Candidates:
    """Stands in for a generator: images as bright as its teacher is sure, which is the noise itself."""

    def predict(self, inputs, **arguments):
        noise, labels = inputs
        sure = 1 / (1 + np.exp(-noise[:, 0]))
        return np.broadcast_to((2 * sure - 1)[:, None, None, None], (len(labels), 32, 32, 3)), sure


def test_of_several_candidates_the_surest_is_drawn():
    labels = np.repeat(np.arange(100), 2)
    names = {"generator": Candidates(), "SEED": 0, "LATENT_DIM": 1}
    draw = cells.define("gan_synthetic_images", "def with_confidence", **names)["draw"]
    one, four = draw(labels, seed=0), draw(labels, seed=0, candidates=4)
    assert one.shape == (200, 32, 32, 3)
    assert one.dtype == "uint8"
    assert (four >= one).all()  # the first candidates are the same ones
    assert np.mean(four > one) == pytest.approx(3 / 4, abs=0.1)
    assert (draw(labels, seed=0, candidates=4) == four).all()


def test_a_generator_tells_the_probability_that_its_image_shows_the_class(whole_gan):
    gan, *_ = whole_gan
    teacher = keras.Model(gan.teacher.inputs, gan.teacher.outputs[0])
    both = cells.define("gan_synthetic_images", "def with_confidence", teacher=teacher)["with_confidence"](gan.average)
    labels = np.arange(100, dtype="int32")
    images, sure = both.predict([np.random.default_rng(0).normal(size=(100, 4)).astype("float32"), labels], verbose=0)
    assert sure == pytest.approx(teacher.predict((images + 1) * 127.5, verbose=0)[labels, labels], rel=1e-4)


def test_a_generator_s_file_holds_no_optimizer(whole_gan, tmp_path, recwarn):
    gan, *_ = whole_gan
    image = keras.Input((32, 32, 3))
    answer = keras.layers.Dense(100, activation="softmax")(keras.layers.GlobalAveragePooling2D()(image))
    teacher = keras.Model(image, answer)
    teacher.compile(keras.optimizers.Adam(), "categorical_crossentropy")
    teacher.train_on_batch(np.zeros((2, 32, 32, 3)), np.eye(100)[:2])  # as trained, so that its optimiser has variables
    teacher.trainable = False  # as the GAN leaves it
    both = cells.define("gan_synthetic_images", "def with_confidence", teacher=teacher)["with_confidence"](gan.average)
    both.save(tmp_path / "generator.keras")
    keras.saving.load_model(tmp_path / "generator.keras")
    assert not [warning for warning in recwarn if "optimizer" in str(warning.message)]


def test_the_best_scored_average_is_kept(whole_gan):
    gan, run, best, _ = whole_gan
    assert run["history"]["fid"] == [3.0, 1.0, 2.0]
    for kept, expected in zip(gan.average.weights, best, strict=True):
        np.testing.assert_array_equal(np.array(kept), expected)


def test_a_diverging_gan_names_both_losses(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 8:
                kernel = self.model.generator.layers[-1].kernel
                kernel.assign(kernel * float("nan"))

    with pytest.raises(checkpoints.DivergedError, match=r"epoch 2, step 3: .*'d_loss': nan, 'g_loss': nan"):
        train_gan(tmp_path, callbacks=[Poison()])
    checkpoints.release(tmp_path)
    state = checkpoints._read(max(tmp_path.glob("*.npz")))
    assert state["epoch"] == 1
    assert state["arrays"]["best"]  # the best weights so far are in it
    assert all(np.isfinite(array).all() for array in state["arrays"]["best"])


def test_a_resumed_gan_ends_in_the_same_bits(tmp_path, whole_gan):
    with pytest.raises(Stop):
        train_gan(tmp_path, minutes=0, callbacks=[StopAt(2, 3)])
    checkpoints.release(tmp_path)
    assert_same(train_gan(tmp_path), whole_gan)


def being_saved(folder, since):
    """Whether a checkpoint is half written, other than one an earlier kill left behind."""
    try:
        return any(path.stat().st_mtime > since for path in folder.glob("*.partial"))
    except FileNotFoundError:  # renamed in the meantime
        return False


@pytest.mark.parametrize("trainer", ["train", "train_gan"])
def test_killed_at_random_moments(tmp_path, trainer, request):
    """kill -9 during steps and saves (every step is checkpointed), each time started again, then to the end.

    `make soak` kills twenty times (KILLS), `make test` twice.
    """
    kills = int(os.environ.get("KILLS", "2"))
    uninterrupted = request.getfixturevalue({"train": "whole", "train_gan": "whole_gan"}[trainer])
    script = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import os, time, keras, test_training
        class Tell(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):  # a save is next
                print("step", flush=True)
        fsync = os.fsync
        os.fsync = lambda file: (fsync(file), print("save", flush=True), time.sleep(float(sys.argv[1])))  # a slow disk
        test_training.{trainer}({str(tmp_path / "run")!r}, minutes=0, callbacks=[Tell()])
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
        torn += being_saved(tmp_path / "run", since)
    print(f"{trainer}: {kills} kills, {torn} of them in the midst of a save")
    assert torn >= kills // 2
    assert_same(globals()[trainer](tmp_path / "run"), uninterrupted)
