"""Each measure compared with its plain definition, or on cases whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
from ml_dtypes import bfloat16

from core import metrics

rng = np.random.default_rng(0)
FEATURES = rng.normal(0, [1, 2, 5, 10], (200, 4))


def test_scores_of_known_probabilities():
    probabilities = np.full((4, 10), 0.05)
    probabilities[np.arange(4), [0, 1, 2, 3]] = 0.55
    measured = metrics.scores(probabilities, np.array([0, 1, 2, 9]))
    assert measured["test_accuracy"] == 0.75
    assert measured["test_loss"] == pytest.approx(-(3 * np.log(0.55) + np.log(0.05)) / 4)
    assert measured["test_by_class"] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    increasing = np.tile(np.arange(10) / 45, (10, 1))
    assert metrics.scores(increasing, np.arange(10))["test_top5"] == 0.5


def test_accuracies_of_a_network_that_sees_the_left_column_alone():
    """The second image shows its class on the right only, so its mirror image decides."""
    images = np.array([[0, 0], [2, 1]]).reshape(2, 1, 2, 1)
    certain = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    model = SimpleNamespace(predict=lambda images, **_: certain[images[:, 0, 0, 0]])
    labels = np.array([0, 1])
    data = SimpleNamespace(x_train=images, y_train=labels, x_test=images, y_test=labels)
    measured, probabilities = metrics.evaluate(model, data, np.array([0]), np.array([0, 1]))
    names = ("train_accuracy", "val_accuracy", "test_accuracy", "test_flip_accuracy")
    assert [measured[name] for name in names] == [1, 0.5, 0.5, 1]
    assert probabilities.tolist() == [[0.9, 0.1], [0.6, 0.4]]


def test_frechet_distance_is_its_definition_even_in_bfloat16():
    """A sum taken in bfloat16 stops growing after a few hundred numbers."""
    rounded = rng.uniform(1, 2, (5000, 3)).astype(bfloat16)
    for a, b in ((FEATURES, FEATURES[::2] * 2 + 1), (rounded, rounded + rounded)):
        exact_a, exact_b = a.astype("float64"), b.astype("float64")
        covariances = np.cov(exact_a.T), np.cov(exact_b.T)
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        expected = ((exact_a.mean(0) - exact_b.mean(0)) ** 2).sum()
        expected += np.trace(covariances[0] + covariances[1] - 2 * root)
        assert metrics.frechet_distance(a, b) == pytest.approx(expected)
        assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_pair_distances_and_memorised_share_of_known_numbers():
    points = np.array([[0.0, 0], [3, 4], [6, 8], [1, 1], [1, 1], [5, 5]])
    measured = metrics.pair_distances(points, np.array([0, 0, 0, 7, 7, 9]))
    assert measured == pytest.approx([(5 + 5 + 10) / 3, 0, 0])  # 0 if collapsed or alone
    unseen = np.arange(1001.0)  # its 1% quantile is 10
    assert metrics.memorised_share(np.array([0, 5, 9.9, 10.1, 700]), unseen) == 0.6


@pytest.mark.parametrize("chunk", [7, 60, 1000])
def test_nearest_is_the_smallest_euclidean_distance(chunk):
    references = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)
    queries = np.concatenate([references[::-1], references[:20] // 2])
    differences = queries[:, None].astype(float) - references
    every = np.sqrt((differences**2).sum((2, 3, 4)))
    distances, indices = metrics.nearest(queries, references, chunk)
    assert distances == pytest.approx(every.min(1), rel=1e-5)
    assert indices.tolist() == every.argmin(1).tolist()
    assert distances[:60].tolist() == [0] * 60  # copies
