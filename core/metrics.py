"""Metrics for classifiers and for GAN images."""

import keras
import numpy as np
import scipy.special
from scipy.spatial.distance import pdist

from core.cifar100 import Dataset


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Return test accuracy, top-5 accuracy, loss (nats) and accuracy per class, as in records.

    `probabilities` are (n, classes) and `labels` `int` (n,). Accuracies lie between 0 and 1.
    """
    true_probability = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities > true_probability[:, None]).sum(1)
    predicted = probabilities.argmax(1)
    return {
        "test_accuracy": float((predicted == labels).mean()),
        "test_top5": float((rank < 5).mean()),
        "test_loss": float(-np.log(np.maximum(true_probability, 1e-7)).mean()),
        "test_by_class": class_accuracy(predicted, labels, probabilities.shape[1]).tolist(),
    }


def evaluate(model: keras.Model, data: Dataset, train: np.ndarray, validation: np.ndarray) -> tuple:
    """Return a trained classifier's scores and its test probabilities (n, classes).

    `train` and `validation` are indices of training images; of `train`, the first 10,000 are used.
    For `test_flip_accuracy`, the probabilities of each image and its mirror image are added. This
    reads the test images, so call it only once, at the end.
    """
    train = train[:10_000]
    original = model.predict(data.x_test, batch_size=500, verbose=0)
    flipped = model.predict(data.x_test[:, :, ::-1], batch_size=500, verbose=0)
    measured = {
        "train_accuracy": accuracy(model, data.x_train[train], data.y_train[train]),
        "val_accuracy": accuracy(model, data.x_train[validation], data.y_train[validation]),
        "test_flip_accuracy": float(((original + flipped).argmax(1) == data.y_test).mean()),
    }
    return measured | scores(original, data.y_test), original


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction (0 to 1) of `images` that a model classifies correctly."""
    return float((model.predict(images, batch_size=500, verbose=0).argmax(1) == labels).mean())


def class_accuracy(predicted: np.ndarray, labels: np.ndarray, classes: int = 100) -> np.ndarray:
    """Return the accuracy (0 to 1) per class, (classes,), given predicted and true labels (n,)."""
    correct = np.bincount(labels, predicted == labels, minlength=classes)
    return correct / np.maximum(np.bincount(labels, minlength=classes), 1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance between two sets of features (n, d) (Heusel et al., 2017)."""
    # Long sums in float32 or bfloat16 lose precision.
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    products = np.linalg.eigvalsh(root @ covariance_b @ root)
    trace = np.trace(covariance_a + covariance_b) - 2 * np.sqrt(np.clip(products, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + trace)


def pair_distances(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean Euclidean distance between two images of a class, for each class in `labels`.

    `features` are (n, d) and `labels` (n,). A class with a single image has a distance of 0.
    """
    pairs = [pdist(np.asarray(features[labels == label], "float64")) for label in np.unique(labels)]
    return np.array([distances.mean() if len(distances) else 0.0 for distances in pairs])


def nearest(queries: np.ndarray, references: np.ndarray, chunk: int = 5000) -> tuple:
    """Return each query's Euclidean distance to its nearest reference, and the index of that one.

    `queries` are (n, ...) and `references` (m, ...). Both results have the shape (n,).
    """
    queries = queries.reshape(len(queries), -1).astype("float32")
    references = references.reshape(len(references), -1)
    best, index = np.full(len(queries), np.inf), np.zeros(len(queries), int)
    for start in range(0, len(references), chunk):
        part = references[start : start + chunk].astype("float32")
        squares = (part**2).sum(1) - 2 * queries @ part.T  # squared distances minus |query|²
        found, smallest = squares.argmin(1), squares.min(1)
        index = np.where(smallest < best, start + found, index)
        best = np.minimum(smallest, best)
    return np.linalg.norm(queries - references[index].astype("float32"), axis=1), index


def memorised_share(generated_distances: np.ndarray, real_distances: np.ndarray) -> float:
    """Return the fraction of generated distances below the 1% quantile of the real ones.

    These are the distances (n,) from generated images, and from real images that were not used for
    training, to the nearest training image. If nothing was memorised, the fraction is about 0.01.
    """
    return float((np.asarray(generated_distances) < np.quantile(real_distances, 0.01)).mean())


def mean_and_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of two or more values, and half the width of its confidence interval.

    The interval is based on Student's t distribution. `confidence` lies between 0 and 1.
    """
    values = np.asarray(values, "float64")
    quantile = scipy.special.stdtrit(len(values) - 1, (1 + confidence) / 2)
    return float(values.mean()), float(quantile * values.std(ddof=1) / len(values) ** 0.5)
