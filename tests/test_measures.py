"""Each measure on cases whose answer is known."""

import keras
import numpy as np
import pytest
import scipy.stats

from core import measures


class Constant:
    """A classifier that gives every image the probabilities it was made with."""

    def __init__(self, *probabilities):
        self.probabilities = np.array(probabilities)

    def predict(self, images, **_):
        return np.tile(self.probabilities, (len(images), 1))


def clusters(per_class=40, classes=5, dimensions=8, seed=0):
    """Features (n, d) around one centre a class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    return rng.normal(0, 10, (classes, dimensions))[labels] + rng.normal(size=(len(labels), dimensions)), labels


def test_scores_of_known_probabilities():
    probabilities = np.full((4, 10), 0.05)
    probabilities[np.arange(4), [0, 1, 2, 3]] = 0.55
    measured = measures.scores(probabilities, np.array([0, 1, 2, 9]))
    assert measured["test_accuracy"] == 0.75
    assert measured["test_loss"] == pytest.approx(-(3 * np.log(0.55) + np.log(0.05)) / 4)
    assert measured["test_by_class"][:4] == [1, 1, 1, 0]
    order = np.tile(np.arange(10) / 45, (10, 1))
    assert measures.scores(order, np.arange(10))["test_top5"] == 0.5


def test_a_mirror_image_s_vote_counts_in_a_number_of_its_own():
    """A network that looks at the left column alone, on images whose class their right column shows."""

    class OneEyed:
        def predict(self, images, **_):
            return np.eye(10)[images[:, 0, 0, 0]] * 0.9 + 0.01 * (images[:, 0, 0, 0] == 0)[:, None]

    labels = np.arange(1, 9)
    images = np.zeros((8, 4, 4, 3), np.uint8)
    images[:, :, -1] = labels[:, None, None]
    images[:4, :, 0] = labels[:4, None, None]

    class Data:
        x_train = x_test = images
        y_train = y_test = labels

    measured, probabilities = measures.evaluate(OneEyed(), Data, np.arange(4), np.arange(8))
    assert (measured["train_accuracy"], measured["val_accuracy"], measured["test_accuracy"]) == (1, 0.5, 0.5)
    assert measured["test_flip_accuracy"] == 0.5  # of the others the straight image says 0 as loudly, and comes first
    assert probabilities.shape == (8, 10)
    images[4:, :, 1:3] = labels[4:, None, None, None]
    OneEyed.predict = lambda self, x, **_: np.eye(10)[x[:, 0, 0, 0]] * np.where(x[:, :1, 0, 0] == 0, 0.4, 0.9)
    assert measures.evaluate(OneEyed(), Data, np.arange(4), np.arange(8))[0]["test_flip_accuracy"] == 1


def test_frechet_distance_of_shifted_and_scaled_gaussians():
    features = np.random.default_rng(0).normal(size=(5000, 6))
    assert measures.frechet_distance(features, features) == pytest.approx(0, abs=1e-8)
    assert measures.frechet_distance(features, features + 2) == pytest.approx(6 * 4)
    variances = features.var(0, ddof=1).sum()
    moved = (features - features.mean(0)) * 3 + features.mean(0)
    assert measures.frechet_distance(features, moved) == pytest.approx(variances * (3 - 1) ** 2)


def test_frechet_distance_of_two_gaussians_in_closed_form():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (200_000, 2)), rng.normal((3, 0), (2, 1), (200_000, 2))
    assert measures.frechet_distance(a, b) == pytest.approx(3**2 + (2 - 1) ** 2, rel=0.02)


def test_frechet_distance_of_features_in_bfloat16():
    """A sum of bfloat16 numbers, taken in bfloat16, no longer grows after a few hundred of them."""
    features = np.random.default_rng(0).uniform(1, 2, (2, 5000, 3))
    rounded = [keras.ops.convert_to_numpy(keras.ops.cast(each, "bfloat16")) for each in features]
    rounded[1] += rounded[1]
    exact = measures.frechet_distance(*(each.astype("float64") for each in rounded))
    assert measures.frechet_distance(*rounded) == pytest.approx(exact)


def test_frechet_distance_sees_a_collapsed_class():
    features, labels = clusters()
    collapsed = np.where((labels == 2)[:, None], features[labels == 2][0], features)
    assert measures.frechet_distance(features, collapsed) > 10 * abs(measures.frechet_distance(features, features))


def test_accuracy_is_the_share_named_rightly():
    assert measures.accuracy(Constant(0.1, 0.7, 0.2), np.zeros((4, 2)), np.array([1, 1, 1, 0])) == 0.75


def test_class_accuracy_of_right_shuffled_and_absent_classes():
    labels = np.repeat(np.arange(4), 25)
    assert measures.class_accuracy(labels, labels, 5).tolist() == [1, 1, 1, 1, 0]
    shuffled = np.random.default_rng(0).permutation(labels)
    assert 0.1 < measures.class_accuracy(shuffled, labels, 4).mean() < 0.4
    assert measures.class_accuracy((labels + 1) % 4, labels, 4).tolist() == [0, 0, 0, 0]


def test_pair_distances_of_known_points():
    features = np.array([[0.0, 0], [3, 4], [6, 8], [1, 1], [1, 1]])
    assert measures.pair_distances(features, np.array([0, 0, 0, 7, 7])) == pytest.approx([(5 + 5 + 10) / 3, 0])


def test_diversity_of_identical_scaled_and_collapsed_sets():
    features, labels = clusters()
    real = measures.pair_distances(features, labels)
    means = np.array([features[labels == label].mean(0) for label in range(5)])[labels]
    assert measures.pair_distances(means + (features - means) / 2, labels) == pytest.approx(real / 2)
    collapsed = np.where((labels == 3)[:, None], features[labels == 3][0], features)
    ratio = measures.pair_distances(collapsed, labels) / real
    assert ratio == pytest.approx([1, 1, 1, 0, 1], abs=1e-6)


def test_diversity_sees_shuffled_labels():
    features, labels = clusters()
    shuffled = np.random.default_rng(0).permutation(labels)
    assert measures.pair_distances(features, shuffled).mean() > 2 * measures.pair_distances(features, labels).mean()


@pytest.mark.parametrize("chunk", [7, 100, 1000])
def test_nearest_finds_copies_at_distance_zero(chunk):
    references = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
    order = np.random.default_rng(1).permutation(100)
    distances, indices = measures.nearest(references[order], references, chunk)
    assert indices.tolist() == order.tolist()
    assert distances.tolist() == [0] * 100


def test_nearest_is_the_euclidean_distance():
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(20, 5)), rng.normal(size=(60, 5))
    every = np.linalg.norm(queries[:, None] - references, axis=2)
    distances, indices = measures.nearest(queries, references, chunk=11)
    assert distances == pytest.approx(every.min(1), rel=1e-5)
    assert indices.tolist() == every.argmin(1).tolist()


def test_memorised_share_of_new_and_copied_images():
    rng = np.random.default_rng(0)
    training, unseen, new = (rng.normal(size=(n, 16)) for n in (500, 2000, 2000))
    real = measures.nearest(unseen, training)[0]
    assert measures.memorised_share(measures.nearest(new, training)[0], real) == pytest.approx(0.01, abs=0.007)
    half_copied = np.concatenate([new[:250], training[:250] + 1e-3])
    assert measures.memorised_share(measures.nearest(half_copied, training)[0], real) == pytest.approx(0.5, abs=0.02)


def test_the_interval_of_a_mean_is_student_s():
    """Closed cases: two values, whose quantile is 12.706; and scipy's own interval."""
    mean, half = measures.mean_and_interval([1.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(12.706, abs=1e-3)  # the standard error is 1
    values = np.random.default_rng(0).normal(size=7)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = measures.mean_and_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
