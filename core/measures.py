"""Measures of a classifier and of a GAN's images: arrays in, numbers out."""

import keras
import numpy as np
import scipy.special
from scipy.spatial.distance import pdist

from core.cifar100 import Dataset


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Return accuracy, top-5, loss (nats) and accuracy per class of probabilities (n, classes)."""
    of_label = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities > of_label[:, None]).sum(1)
    predicted = probabilities.argmax(1)
    return {
        "test_accuracy": float((predicted == labels).mean()),
        "test_top5": float((rank < 5).mean()),
        "test_loss": float(-np.log(np.maximum(of_label, 1e-7)).mean()),
        "test_by_class": class_accuracy(predicted, labels, probabilities.shape[1]).tolist(),
    }


def evaluate(model: keras.Model, data: Dataset, train: np.ndarray, validation: np.ndarray) -> tuple:
    """Return a finished classifier's scores and its test probabilities (n, classes).

    Of the indices `train`, 10,000 are used. For test_flip_accuracy, each image and its mirror image
    vote. This reads the test split: call it once, at the end.
    """
    train = train[:10_000]
    straight = model.predict(data.x_test, batch_size=500, verbose=0)
    mirrored = model.predict(data.x_test[:, :, ::-1], batch_size=500, verbose=0)
    measured = {
        "train_accuracy": accuracy(model, data.x_train[train], data.y_train[train]),
        "val_accuracy": accuracy(model, data.x_train[validation], data.y_train[validation]),
        "test_flip_accuracy": float(((straight + mirrored).argmax(1) == data.y_test).mean()),
    }
    return measured | scores(straight, data.y_test), straight


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share (0 to 1) of `images` that a classifier classifies correctly."""
    return float((model.predict(images, batch_size=500, verbose=0).argmax(1) == labels).mean())


def class_accuracy(predicted: np.ndarray, labels: np.ndarray, classes: int = 100) -> np.ndarray:
    """Return the accuracy (0 to 1) per class, (classes,), given predicted and true labels (n,)."""
    correct = np.bincount(labels, predicted == labels, minlength=classes)
    return correct / np.maximum(np.bincount(labels, minlength=classes), 1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features (n, d) (Heusel et al., 2017)."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")  # sums in bfloat16 stop growing
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    products = np.linalg.eigvalsh(root @ covariance_b @ root)
    trace = np.trace(covariance_a + covariance_b) - 2 * np.sqrt(np.clip(products, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + trace)


def pair_distances(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean distance of all pairs of features (n, d) of each class; 0 for one image."""
    pairs = [pdist(np.asarray(features[labels == label], "float64")) for label in np.unique(labels)]
    return np.array([distances.mean() if len(distances) else 0.0 for distances in pairs])


def nearest(queries: np.ndarray, references: np.ndarray, chunk: int = 5000) -> tuple:
    """Return each query's Euclidean distance (n,) to the nearest reference, and its index (n,)."""
    queries = queries.reshape(len(queries), -1).astype("float32")
    references = references.reshape(len(references), -1)
    best, index = np.full(len(queries), np.inf), np.zeros(len(queries), int)
    for start in range(0, len(references), chunk):
        part = references[start : start + chunk].astype("float32")
        squares = (part**2).sum(1) - 2 * queries @ part.T  # each query's own square is left out
        found, smallest = squares.argmin(1), squares.min(1)
        index = np.where(smallest < best, start + found, index)
        best = np.minimum(smallest, best)
    return np.linalg.norm(queries - references[index].astype("float32"), axis=1), index


def memorised_share(generated: np.ndarray, real: np.ndarray) -> float:
    """Return the share of distances below the 1 % quantile of those of images never seen, `real`.

    The distances are those to the nearest training images. Without copies, it is about 0.01.
    """
    return float((np.asarray(generated) < np.quantile(real, 0.01)).mean())


def mean_and_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of two or more values, and half the width of its interval (Student's t)."""
    values = np.asarray(values, "float64")
    quantile = scipy.special.stdtrit(len(values) - 1, (1 + confidence) / 2)
    return float(values.mean()), float(quantile * values.std(ddof=1) / len(values) ** 0.5)
