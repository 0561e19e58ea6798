"""The parts that notebook 1's GAN is made of: copies, averages, moments, drawing and judging."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from test_gan import MOMENTS, arrays, tiny_gan

from core import gan, judge, metrics
from core.judge import EpochPictures, build_classifier
from tools import cells


def test_augmentation_shifts_hides_a_square_and_lets_gradients_pass():
    import tensorflow as tf

    image = np.linspace(0.1, 1, 32 * 32, dtype="float32").reshape(32, 32, 1)
    images = tf.Variable(np.broadcast_to(image, (64, 32, 32, 3)))  # all the same
    with tf.GradientTape() as tape:
        changed = gan.Augmentation()(images)
        total = keras.ops.sum(changed)
    hidden = np.array(changed == 0).all(axis=3)
    assert hidden.any(axis=(1, 2)).all()
    assert 0.15 < hidden.mean() < 0.4  # 17x17 pixels, some outside, and the edges after a shift
    shifts = np.unique(np.array(changed).round(4)[:, 16, 16, 0])
    assert len(shifts) > 20  # each image has its own; without them, there would be two values
    gradient = np.array(tape.gradient(total, images))
    assert np.isfinite(gradient).all()
    assert (gradient != 0).any(axis=(1, 2, 3)).all()


def test_copies_are_shifted_and_half_of_them_mirrored():
    images = np.random.default_rng(0).random((200, 32, 32, 3)).astype("float32")
    both = np.array(gan.with_copies(images, keras.random.SeedGenerator(0)))
    np.testing.assert_array_equal(both[:200], images)
    mirrored, offsets = [], set()
    for image, copy in zip(images, both[200:], strict=True):
        row, column = np.argwhere((copy[12:20, 12:20] > 0).all(axis=2))[0] + 12  # from within
        y, x = np.argwhere(np.isclose(image, copy[row, column]).all(axis=2))[0]
        neighbour = np.argwhere(np.isclose(image, copy[row, column + 1]).all(axis=2))[0]
        mirrored.append(neighbour[1] < x)
        offsets.add((row - y, column - (31 - x if mirrored[-1] else x)))
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.1)
    assert {offset for pair in offsets for offset in pair} == set(range(-4, 5))


def test_the_average_reaches_back_over_a_tenth_of_the_steps():
    """Weights that grow by 1 per step have an average nine tenths as large, at any time."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    average = gan.MovingAverage(network)
    for step in range(1, 401):
        network.set_weights([np.full((1, 1), step), np.full(1, step)])
        average.update(network)
        if step in (100, 400):
            np.testing.assert_allclose(arrays(average.network)[1], 0.9 * step, rtol=0.01)


MOVES = [(0.5, 0, (0, -1)), (1, 0, (0, 0)), (2, 0, (0, 1)), (1, 1, (1, 1))]


@pytest.mark.parametrize(("scale", "shift", "signs"), MOVES)
def test_class_moments_pull_generated_features_to_the_real_ones(scale, shift, signs):
    """The directions in which the two terms move features of a given spread and shift."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(100, 16)).astype("float32")
    moments, terms = gan.ClassMoments(means, np.eye(16)), []
    for _ in range(300):
        labels = rng.integers(0, 100, 64)
        features = means[labels] + scale * rng.normal(size=(64, 16)) + shift
        one_hot = np.eye(100, dtype="float32")[labels]
        terms.append([float(term) for term in moments(features.astype("float32"), one_hot)])
    for term, noise, sign in zip(np.mean(terms[100:], axis=0), (8, 2), signs, strict=True):
        assert np.sign(term) * (abs(term) > noise) == sign


def test_real_moments_are_stored_as_weights_not_numpy_arrays():
    lesson = tiny_gan().teacher_loss
    values = [*vars(lesson).values(), *vars(lesson.moments).values()]
    assert not [value for value in values if isinstance(value, np.ndarray)]
    held = {id(variable) for variable in lesson.non_trainable_variables}
    assert {id(lesson.moments.real_means), id(lesson.moments.real_covariance)} <= held


def test_the_teacher_loss_is_the_weighted_sum_of_its_terms():
    """The covariance term grows from 0 during training; the term of the means counts at once."""
    images = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype("float32")
    labels, teacher = np.arange(8), build_classifier(2)

    def loss(step=0, **weights):
        lesson = gan.TeacherLoss(teacher, MOMENTS | {"scale": 0.1}, 10, **weights)
        lesson.step.assign(step)
        return float(lesson(images, labels))

    probabilities = teacher.predict((images + 1) * 127.5, verbose=0)[labels, labels]
    assert loss(guidance=2.0, matching=0.0) == pytest.approx(
        -2 * np.log(probabilities).mean(), rel=1e-4
    )
    means = loss(guidance=0.0, matching=1.0)
    assert means == pytest.approx(loss(step=5, guidance=0.0, matching=1.0, covariance_ratio=0.0))
    at_5, at_10 = (loss(step, guidance=0.0, matching=1.0, covariance_ratio=1.0) for step in (5, 10))
    assert abs(at_10 - means) > 1e-4
    assert at_10 - means == pytest.approx(2 * (at_5 - means), rel=1e-3)


def test_class_moments_are_those_of_the_scaled_features():
    rng, teacher = np.random.default_rng(0), build_classifier(2)
    images, labels = rng.integers(0, 256, (300, 32, 32, 3), np.uint8), np.arange(300) % 100
    moments = gan.class_moments(teacher, images, labels)
    extractor = keras.Model(teacher.inputs, teacher.get_layer("features").output)
    features = extractor.predict(images, verbose=0) / moments["scale"]
    assert features.std(axis=0).mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(moments["means"][7], features[7::100].mean(axis=0), rtol=1e-4)
    centred = features - moments["means"][labels]
    np.testing.assert_allclose(moments["covariance"], np.cov(centred.T), atol=1e-4)


def bright_generator(with_confidence_output=True):
    """A generator with one noise value, whose images are the brighter, the surer its teacher is."""
    noise, label = keras.Input((1,)), keras.Input((), dtype="int32")
    sure = keras.ops.sigmoid(noise)
    image = keras.ops.ones((1, 32, 32, 3)) * keras.ops.reshape(2 * sure - 1, (-1, 1, 1, 1))
    outputs = [image, sure[:, 0]] if with_confidence_output else image
    return keras.Model([noise, label], outputs)


def test_of_several_candidates_the_surest_is_drawn():
    labels = np.repeat(np.arange(100), 2)
    one, four, again = (gan.generate(bright_generator(), labels, 0, n) for n in (1, 4, 4))
    assert (one.shape, one.dtype) == ((200, 32, 32, 3), np.uint8)
    assert (four >= one).all()  # the first candidates are the same ones
    assert np.mean(four > one) == pytest.approx(3 / 4, abs=0.1)
    np.testing.assert_array_equal(four, again)
    np.testing.assert_array_equal(gan.generate(bright_generator(False), labels, 0, 4), one)
    assert (gan.generate(bright_generator(), labels, 1) != one).any()
    assert (gan.generate(bright_generator(), labels, 0, 1, "x") != one).any()


def test_many_images_are_generated_in_parts_which_are_the_same_images(monkeypatch):
    labels = np.arange(250) % 100
    at_once = gan.generate(bright_generator(), labels, 0, 2)
    monkeypatch.setattr(gan, "PART", 100)
    np.testing.assert_array_equal(gan.generate(bright_generator(), labels, 0, 2), at_once)


def test_a_generator_returns_how_sure_its_teacher_is():
    teacher = build_classifier(2)
    both = gan.with_confidence(tiny_gan().average.network, teacher)
    noise, labels = np.random.default_rng(0).normal(size=(100, 4)), np.arange(100)
    images, sure = both.predict([noise, labels], verbose=0)
    probabilities = teacher.predict((images + 1) * 127.5, verbose=0)
    assert sure == pytest.approx(probabilities[labels, labels], rel=1e-4)


def test_the_judge_gives_real_images_perfect_scores_and_repeated_images_no_diversity():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 32, 32, 3), np.uint8), np.arange(400) % 100
    made = judge.Judge(build_classifier(4), images, labels)
    scores = made.score(images, labels)
    assert scores == pytest.approx({"fid": 0, "gan_test": made.accuracy, "diversity": 1}, abs=1e-4)
    assert made.score(images[labels], labels)["diversity"] == pytest.approx(0, abs=1e-4)
    assert made.score(images // 8, labels)["fid"] > 0.01


def test_the_nearest_image_is_found_mirrored_too():
    references = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    queries = np.stack([references[7], references[9][:, ::-1], references[3]])
    queries[2, 0, 0, 0] ^= 1
    distances, indices = judge.find_nearest(queries, references)
    assert indices.tolist() == [7, 9, 3]
    assert distances.tolist() == [0, 0, 1]


def test_gan_train_is_measured_on_images_that_nothing_was_trained_on(monkeypatch, tmp_path):
    """The student sees as many images as there are real ones, equally many of each class."""
    asked, n = [], 9_806
    monkeypatch.setattr(metrics, "accuracy", lambda _, *what: asked.append(what) or 0.5)
    names = {
        "generator": None, "generator_sha256": "", "checkpoint_folder": tmp_path,
        "x_train": np.zeros(n), "y_train": np.zeros(n),
        "images": np.zeros(9), "labels": np.zeros(9),
        "x_validation": "validation", "y_validation": "its labels",
        "data": SimpleNamespace(x_test="test", y_test="labels of test"),
        "judge": SimpleNamespace(score=lambda *_: {"fid": 1.0}, accuracy=0.5),
        "generate": lambda generator, labels, seed, candidates, stream: labels,
        "train_classifier": lambda *arguments: arguments,
    }  # fmt: skip
    space = cells.define("gan_synthetic_images", **names)
    sources = [cell.source for cell in cells.read("gan_synthetic_images")]
    exec(next(source for source in sources if 'scores["gan_train"] =' in source), space)
    images, labels, *_ = space["student"]
    counts = np.bincount(labels, minlength=100)
    assert len(images) == counts.sum() == n
    assert counts.max() - counts.min() <= 1
    assert asked == [("validation", "its labels"), ("test", "labels of test")]


def test_pictures_of_epochs_are_those_of_this_run(tmp_path):
    """A run that starts again may leave pictures of epochs that the new run has not reached."""
    pictures = EpochPictures(np.arange(2), ["apple", "bear"], seed=0)
    pictures.folder = tmp_path
    for epoch in (2, 3):
        np.save(tmp_path / f"pictures-{epoch:05d}.npy", np.zeros((2, 32, 32, 3), "uint8"))
    pictures.history = {"loss": [1.0, 2.0, 3.0]}  # the run is resumed
    pictures.on_train_begin()
    labels = [text.get_text() for text in pictures.figure().axes[0].get_yticklabels()]
    assert labels == ["epoch 2", "epoch 3"]
    pictures.history = {}  # it starts again
    pictures.on_train_begin()
    assert not list(tmp_path.iterdir())
