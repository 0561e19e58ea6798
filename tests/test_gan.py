"""Notebook 1's GAN: its losses, its teacher, its choice among candidates, and its training when it is interrupted."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from test_checkpoints import Stop, StopAt, assert_same, kill_at_random_moments, tiny_data

from core import checkpoints, definition
from core.batches import Batches
from tools import cells


class Score(keras.callbacks.Callback):
    """Logs a made-up Fréchet distance that is smallest after the second epoch."""

    def on_epoch_end(self, epoch, logs):
        logs["fid"] = (3.0, 1.0, 2.0)[epoch]


class Keep(keras.callbacks.Callback):
    """Keeps the teacher of the first moment, and the averaged generator of the best one."""

    only_watches = True

    def on_train_begin(self, logs=None):
        self.teacher = [np.array(weight) for weight in self.model.lesson.teacher.weights]

    def on_epoch_end(self, epoch, logs):
        if epoch == 1:
            self.average = [np.array(weight) for weight in self.model.average.weights]


TINY_GAN = {
    "LATENT_DIM": 4, "CHANNELS": 2, "EMA_MOMENTUM": 0.9, "CONSISTENCY": 1.0, "AUGMENT": True, "GUIDANCE": 0.5, "MATCHING": 0.5,
    "SPREAD": 0.5, "mean": np.full(3, 120.0), "variance": np.full(3, 4000.0), "feature_scale": 100.0, "replicas": 1,
    "real_means": np.ones((100, 32), "float32"), "real_covariance": np.eye(32, dtype="float32"),
}  # fmt: skip


def define(**names):
    """Notebook 1's functions and classes, with a tiny GAN's parameters."""
    return cells.define("gan_synthetic_images", **TINY_GAN | names)


def tiny_gan(rate=1e-3, after=None, step=0.0, **choices):
    """Notebook 1's GAN, tiny, with a teacher, as after so many steps; `after` are definitions that replace the notebook's."""
    space = define(**choices)
    space.update(after or {})
    keras.utils.set_random_seed(0)
    space["teacher"] = space["build_classifier"](2)
    gan = space["GAN"](total_steps=18)
    gan.step.assign(step)
    gan.compile(space["two_rates"](gan, rate, 2 * rate))
    return gan


def train_gan(folder, minutes=5, callbacks=(), **choices):
    """Train the tiny GAN for 3 epochs of 6 steps."""
    gan = tiny_gan(**choices)
    batches = Batches(*tiny_data(), 8, classes=100, pad=0, noise=4, steps=6)
    run = checkpoints.fit(
        gan, batches, epochs=3, folder=folder, minutes=minutes, callbacks=[Score(), *callbacks], verbose=0,
        early_stopping=keras.callbacks.EarlyStopping("fid", mode="min", patience=10, restore_best_weights=True),
    )  # fmt: skip
    checkpoints.release(folder)
    return gan, run


@pytest.fixture(scope="module")
def whole_gan(tmp_path_factory):
    """The GAN as an uninterrupted training leaves it, and what it was at its best."""
    best = Keep()
    trained = train_gan(tmp_path_factory.mktemp("gan"), callbacks=[best])
    return *trained, best.average, best.teacher


def test_the_gan_learns_to_tell_and_keeps_its_networks_apart(whole_gan):
    gan, run, _, teacher = whole_gan
    assert run["history"].keys() == {"loss", "d_loss", "g_loss", "fid"}
    for epoch in range(3):
        total = run["history"]["d_loss"][epoch] + run["history"]["g_loss"][epoch]
        assert run["history"]["loss"][epoch] == pytest.approx(total, rel=1e-4)
    for weight, before in zip(gan.lesson.teacher.weights, teacher, strict=True):
        np.testing.assert_array_equal(np.array(weight), before)  # it teaches, it does not learn
    average, current = ([np.array(weight) for weight in model.weights] for model in (gan.average, gan.generator))
    assert any((one != other).any() for one, other in zip(average, current, strict=True))
    assert max(np.abs(one - other).max() for one, other in zip(average, current, strict=True)) < 1


def test_bfloat16_rounds_neither_the_discriminators_weights_nor_the_features(policy):
    keras.config.set_dtype_policy("mixed_bfloat16")
    gan = tiny_gan()
    gan.fit(Batches(*tiny_data(), 8, classes=100, pad=0, noise=4, steps=6), epochs=1, verbose=0)
    gan.discriminator([np.zeros((1, 32, 32, 3), "float32"), np.zeros(1, "int32")], training=True)
    for variable in gan.discriminator.trainable_variables:
        value = np.array(variable.value)
        rounded = np.array(keras.ops.cast(keras.ops.cast(value, "bfloat16"), "float32"))
        assert (value != rounded).mean() > 0.5, variable.path
    assert [output.dtype for output in gan.lesson.teacher.outputs] == ["float32", "float32"]


def test_augmentation_shifts_hides_a_square_and_lets_gradients_pass():
    import tensorflow as tf

    augment = define()["augment"]
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
    move = define()["shift_and_flip"]
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
        space = define(**names)
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
    batch = Batches(*tiny_data(), 8, classes=100, pad=0, noise=4)[0]
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
    moments = define(**names)["ClassMoments"]()
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


def cell_with(line):
    """The source of notebook 1's cell that has a line beginning so."""
    return next(cell.source for cell in cells.read("gan_synthetic_images") if f"\n{line}" in f"\n{cell.source}")


@pytest.mark.parametrize("n", [900, 4_500, 9_806, 45_000])
def test_the_student_of_gan_train_sees_all_classes_alike(n):
    trained = {"labels": np.repeat(np.arange(100), 50), "y_train": np.zeros(n), "CANDIDATES": 4, "SEED": 0, "np": np}
    trained |= {"draw": lambda labels, seed, candidates: labels, "train_classifier": lambda *arguments: arguments}
    exec(cell_with("copy_labels ="), trained)
    _, _, images, labels, _ = trained["student"]
    counts = np.bincount(labels, minlength=100)
    assert len(images) == counts.sum() == n
    assert counts.max() - counts.min() <= 1


def test_gan_train_is_measured_on_images_that_nothing_was_trained_on():
    names = ("judge", "student", "x_validation", "y_validation", "x_train", "y_train")
    space = {name: name for name in names} | {
        "np": np,
        "SEED": 0,
        "fid_real": 1.0,
        "data": SimpleNamespace(x_test="x", y_test="y"),
    }
    space |= {"images": np.zeros(3), "labels": np.zeros(3, int), "draw": lambda *_, **__: None}
    space |= {"judge_accuracy": 0.5, "score": lambda *_: {"gan_test": 0.5, "fid": 1.0, "diversity": 1.0}, "asked": []}
    space["measures"] = SimpleNamespace(accuracy=lambda *what: space["asked"].append(what) or 0.5)
    exec(cell_with('scores["gan_train"] ='), space)
    held_out = ("x_validation", "y_validation")
    assert space["asked"] == [("student", *held_out), ("student", "x", "y")]


def test_of_several_candidates_the_surest_is_drawn():
    labels = np.repeat(np.arange(100), 2)
    names = {"generator": Candidates(), "SEED": 0, "LATENT_DIM": 1}
    draw = define(**names)["draw"]
    one, four = draw(labels, seed=0), draw(labels, seed=0, candidates=4)
    assert one.shape == (200, 32, 32, 3)
    assert one.dtype == "uint8"
    assert (four >= one).all()  # the first candidates are the same ones
    assert np.mean(four > one) == pytest.approx(3 / 4, abs=0.1)
    assert (draw(labels, seed=0, candidates=4) == four).all()


def test_a_generator_tells_the_probability_that_its_image_shows_the_class(whole_gan):
    gan, *_ = whole_gan
    teacher = keras.Model(gan.lesson.teacher.inputs, gan.lesson.teacher.outputs[0])
    both = define(teacher=teacher)["with_confidence"](gan.average)
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
    both = define(teacher=teacher)["with_confidence"](gan.average)
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
        only_watches = True

        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 8:
                kernel = self.model.generator.layers[-1].kernel
                kernel.assign(kernel * float("nan"))

    with pytest.raises(checkpoints.DivergedError, match=r"epoch 2, step 3: .*'d_loss': nan, 'g_loss': nan"):
        train_gan(tmp_path, callbacks=[Poison()])
    checkpoints.release(tmp_path)
    state = checkpoints._read(max(tmp_path.glob("*/*.npz")))
    assert state["epoch"] == 1
    assert state["arrays"]["best"]  # the best weights so far are in it
    assert all(np.isfinite(array).all() for array in state["arrays"]["best"])


def test_a_resumed_gan_ends_in_the_same_bits(tmp_path, whole_gan):
    with pytest.raises(Stop):
        train_gan(tmp_path, minutes=0, callbacks=[StopAt(2, 3)])
    checkpoints.release(tmp_path)
    assert_same(train_gan(tmp_path), whole_gan)


def test_a_gan_killed_at_random_moments(tmp_path, whole_gan):
    kill_at_random_moments(tmp_path / "run", "test_gan", "train_gan")
    assert_same(train_gan(tmp_path / "run"), whole_gan)


def definition_of(**choices):
    gan = tiny_gan(**choices)
    gan.optimizer.build(gan.trainable_variables)
    return definition.of_training(gan, Batches(*tiny_data(), 8, classes=100, pad=0, noise=4, steps=6), 3)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"CONSISTENCY": 2.0}, "values.CONSISTENCY is 2.0, was 1.0"),
        ({"CHANNELS": 4}, "values.CHANNELS is 4, was 2"),
        ({"feature_scale": 50.0}, "values.feature_scale is 50.0, was 100.0"),
        ({"real_means": np.zeros((100, 32), "float32")}, "values.real_means changed"),
    ],
)
def test_a_gan_with_another_global_is_another_training(choices, words):
    assert words in definition.difference(definition_of(**choices), definition_of())


@pytest.mark.parametrize(
    ("line", "other"),
    [
        (
            "    return ops.mean(ops.square(scores[:, 0] - scores[:, 1]))",
            "    return ops.mean(ops.abs(scores[:, 0] - scores[:, 1]))",
        ),
        ("        x = layers.LeakyReLU(0.1)(", "        x = layers.LeakyReLU(0.3)("),
        ("    momentum = ops.minimum(EMA_MOMENTUM, (1 + step) / (10 + step))", "    momentum = EMA_MOMENTUM"),
        ("    slow, quick = (fast.Adam(rate, beta_1=0.0,", "    slow, quick = (fast.Adam(rate, beta_1=0.5,"),
    ],
)
def test_a_gan_of_which_one_line_is_edited_is_another_training(monkeypatch, line, other):
    """The cell of a function that the model only calls, in any of its layers."""
    before, tagged = definition_of(), cells.tagged
    assert sum(line in source for source in tagged("gan_synthetic_images", "define")) == 1
    monkeypatch.setattr(cells, "tagged", lambda *which: [source.replace(line, other) for source in tagged(*which)])
    assert definition.key(definition_of()) != definition.key(before)


def test_a_gan_with_another_comment_is_the_same_training(monkeypatch):
    before, tagged = definition_of(), cells.tagged

    def commented(*which):
        return ["# a note\n" + source.replace("    return loss", "    # a note\n\n    return loss") for source in tagged(*which)]

    monkeypatch.setattr(cells, "tagged", commented)
    assert definition.key(definition_of()) == definition.key(before)
