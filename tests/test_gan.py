"""Notebook 1's GAN: losses, teacher, choice among candidates, and training when interrupted."""

import keras
import numpy as np
import pytest
from test_interruptions import kill_at_random_moments
from test_training import assert_same, tiny_data

from core import checkpoints, fingerprint, gan, training
from core.batches import Batches
from core.judge import build_classifier
from tools import cells

MOMENTS = {"means": np.ones((100, 32), "float32"), "covariance": np.eye(32, dtype="float32")}
MOMENTS["scale"] = 100.0
WEIGHTS = {"guidance": 0.5, "matching": 0.5, "covariance_ratio": 1.0}


class Score(keras.callbacks.Callback):
    """Logs a made-up Fréchet distance that is smallest after the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        logs["fid"] = (3.0, 1.0, 2.0)[epoch]


class Keep(keras.callbacks.Callback):
    """Keeps the weights of the averaged generator after the best epoch."""

    only_watches = True

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.average = arrays(self.model.average.network)


def arrays(network):
    return [np.array(weight) for weight in network.weights]


def tiny_gan(consistency=1.0, augmented=True, moments=(), **weights):
    """Notebook 1's improved GAN, tiny; `moments` and `weights` replace those of the teacher."""
    space = cells.define("gan_synthetic_images")
    keras.utils.set_random_seed(0)
    moments, weights = MOMENTS | dict(moments), WEIGHTS | weights
    teacher_loss = gan.TeacherLoss(build_classifier(2), moments, total_steps=18, **weights)
    generator = space["build_generator"](2, noise_size=4)
    discriminator = space["build_discriminator"](2, augmented)
    choices = {"consistency": consistency, "teacher_loss": teacher_loss}
    model = space["ImprovedGAN"](generator, discriminator, **choices)
    model.compile(gan.two_rates(model, 1e-3, 2e-3))
    return model


def tiny_batches():
    return Batches(*tiny_data(), 8, pad=0, noise_size=4, steps_per_epoch=6)


def train_gan(folder, callbacks=(), **choices):
    """Train the tiny GAN for 3 epochs of 6 steps, with a checkpoint after each."""
    model = tiny_gan(**choices)
    best = keras.callbacks.EarlyStopping("fid", mode="min", patience=9, restore_best_weights=True)
    run = training.fit(
        model, tiny_batches(), epochs=3, folder=folder, callbacks=[Score(), best, *callbacks],
        verbose=0, checkpoint_seconds=0,
    )  # fmt: skip
    checkpoints.release(folder)
    return model, run


@pytest.fixture(scope="module")
def whole_gan(tmp_path_factory):
    """The GAN as an uninterrupted run leaves it, and what was kept of it on the way."""
    kept = Keep()
    return *train_gan(tmp_path_factory.mktemp("gan"), callbacks=[kept]), kept


def test_both_networks_learn_the_teacher_does_not_and_the_best_average_is_kept(whole_gan):
    model, run, kept = whole_gan
    history = run["history"]
    assert history.keys() == {"loss", "d_loss", "g_loss", "fid"}
    both = np.add(history["d_loss"], history["g_loss"])
    np.testing.assert_allclose(history["loss"], both, rtol=1e-4)
    teachers = arrays(model.teacher_loss.teacher), arrays(tiny_gan().teacher_loss.teacher)
    for one, other in (teachers, (arrays(model.average.network), kept.average)):
        assert all(map(np.array_equal, one, other))
    untrained = tiny_gan()
    for name in ("generator", "discriminator"):
        both = [getattr(gan, name).trainable_weights for gan in (model, untrained)]
        assert not any(np.array_equal(new, old) for new, old in zip(*both, strict=True)), name
    pairs = zip(arrays(model.average.network), arrays(model.generator), strict=True)
    differences = [np.abs(average - current).max() for average, current in pairs]
    assert 0 < max(differences) < 1


def test_neither_loss_reaches_the_other_network():
    import tensorflow as tf

    model = tiny_gan(augmented=False)
    (images, noise), one_hot = tiny_batches()[0]
    images, noise, one_hot = tf.constant(images), tf.constant(noise), tf.constant(one_hot)
    labels = tf.argmax(one_hot, axis=1)
    networks = model.generator.trainable_variables, model.discriminator.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        g_loss = model.generator_loss(model.generator([noise, labels], training=True), labels)
        model.generator_loss = lambda fake, label: 0.0
        d_loss = model.compute_loss((images, noise), one_hot)
    for loss, learning in ((g_loss, 0), (d_loss, 1)):
        assert all(each is not None for each in tape.gradient(loss, networks[learning]))
        assert all(each is None for each in tape.gradient(loss, networks[1 - learning]))


def test_bfloat16_rounds_neither_the_discriminators_weights_nor_the_features(policy):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = tiny_gan()
    layers = model.discriminator.layers
    normalizing = [each for each in layers if isinstance(each, keras.layers.SpectralNormalization)]
    assert {each.compute_dtype for each in normalizing} == {"float32"}
    assert {each.dtype for each in model.teacher_loss.teacher.outputs} == {"float32"}


@pytest.mark.parametrize(("columns", "is_penalised"), [(32, False), (1, True)])
def test_a_discriminator_is_penalised_if_an_image_and_its_copy_differ(columns, is_penalised):
    """It scores the brightest pixel of the first columns; over all columns, none is shifted out."""
    seen, model = [], tiny_gan()

    def score(images):
        return images[:, :, :columns].max(axis=(1, 2, 3))

    def discriminator(inputs, training):
        seen.append([np.array(each) for each in inputs])
        return keras.ops.convert_to_tensor(score(seen[-1][0])[:, None])

    real, fake = np.random.default_rng(0).random((2, 8, 32, 32, 3)).astype("float32") / 2
    for images in (real, fake):
        images[:, 16, 16] = 1 - np.arange(8)[:, None] / 10
    losses = []
    model.discriminator = discriminator
    for model.consistency in (0.0, 1.0, 2.0):
        model.seed = keras.random.SeedGenerator(0)  # the same copies each time
        losses.append(float(model.discriminator_loss(real, fake, np.arange(8))))
    (whole, _), (halves, labels), _ = seen
    assert len(whole) == len(halves) == 16  # no more images than without copies
    assert labels.tolist() == 4 * [0, 1, 2, 3]
    np.testing.assert_array_equal(halves[[0, 3, 8, 11]], [real[0], real[3], fake[0], fake[3]])
    pairs = score(halves).reshape(2, 2, 4)
    penalty = np.mean((pairs[:, 0] - pairs[:, 1]) ** 2)
    hinge = np.mean(1 - score(halves)[:8]) + np.mean(1 + score(halves)[8:])
    plain = np.mean(1 - score(real)) + np.mean(1 + score(fake))
    assert (penalty > 1e-3) == is_penalised
    assert losses == pytest.approx([plain, hinge + penalty, hinge + 2 * penalty], rel=1e-4)


@pytest.mark.slow
def test_generator_and_discriminator_learn_at_their_own_rates():
    """Adam's first step moves a weight by the learning rate, whatever its gradient."""
    model = tiny_gan()
    networks = model.generator, model.discriminator
    biases = [next(w for w in each.trainable_weights if w.name == "bias") for each in networks]
    before = [np.array(bias) for bias in biases]
    model.train_on_batch(*tiny_batches()[0])
    for bias, old, rate in zip(biases, before, (1e-3, 2e-3), strict=True):
        assert np.abs(np.array(bias) - old).max() == pytest.approx(rate, rel=0.01)


@pytest.mark.slow
def test_a_gan_killed_at_random_moments(tmp_path, whole_gan):
    kill_at_random_moments(tmp_path / "run", "test_gan", "train_gan")
    assert_same(train_gan(tmp_path / "run"), whole_gan)


def fingerprint_of(**choices):
    model = tiny_gan(**choices)
    model.optimizer.build(model.trainable_variables)
    return fingerprint.of_training_run(model, tiny_batches(), 3)


CHOICES = {
    "model.consistency is 2.0, was 1.0": {"consistency": 2.0},
    "model.teacher_loss.guidance is 0.4, was 0.5": {"guidance": 0.4},
    "model.teacher_loss.scale is 50.0, was 100.0": {"moments": {"scale": 50.0}},
    "first weights changed": {"moments": {"means": np.zeros((100, 32))}},
}
LINES = {
    "difference = ops.mean(ops.square(": "difference = ops.mean(ops.abs(",
    "x = layers.LeakyReLU(0.1)(x)": "x = layers.LeakyReLU(0.3)(x)",
    "    return hinge_loss(scores) + ": "    return hinge_loss(2 * scores) + ",
    "self.average.update(self.generator)": "self.average.update(self.average.network)",
}


def test_changing_one_setting_or_line_of_a_gan_makes_it_another_run(monkeypatch):
    """A comment changes nothing, and one line in any cell that the model uses changes the run."""
    before, tagged = fingerprint_of(), cells.tagged
    assert "unreadable" not in before
    for words, choices in CHOICES.items():
        assert words in fingerprint.difference(fingerprint_of(**choices), before, limit=9)

    def is_another_run(old, new):
        def edit(notebook, tag):
            return [source.replace(old, new) for source in tagged(notebook, tag)]

        assert sum(old in source for source in tagged("gan_synthetic_images", "define")) == 1
        monkeypatch.setattr(cells, "tagged", edit)
        return fingerprint.key(fingerprint_of()) != fingerprint.key(before)

    for line, other in LINES.items():
        assert is_another_run(line, other)
    assert not is_another_run(line, f"{line}  # a note\n")
