"""What is measured of a classifier and of a GAN's images: arrays in, numbers out."""

import numpy as np
import scipy.special


def scores(probabilities, labels):
    """Return test_accuracy, test_top5 (fractions of 1), test_loss (nats) and test_by_class (a list of accuracies).

    `probabilities` are (n, classes), `labels` (n,).
    """
    own = probabilities[np.arange(len(labels)), labels]
    rank, named = (probabilities > own[:, None]).sum(1), probabilities.argmax(1)
    return {
        "test_accuracy": float((named == labels).mean()),
        "test_top5": float((rank < 5).mean()),
        "test_loss": float(-np.log(np.maximum(own, 1e-7)).mean()),
        "test_by_class": class_accuracy(named, labels, probabilities.shape[1]).tolist(),
    }


def evaluate(model, data, train, validation):
    """Return the accuracies of a finished model on real images, without augmentation, and its test probabilities.

    The training accuracy is that of the first 10,000 training images; test_flip_accuracy that of the mean of the probabilities of
    each test image and its mirror image. Reads the test split: call it once, at the end.
    """
    measured = {}
    for name, indices in (("train_accuracy", train[:10_000]), ("val_accuracy", validation)):
        measured[name] = accuracy(model, data.x_train[indices], data.y_train[indices])
    straight, mirrored = (model.predict(x, batch_size=500, verbose=0) for x in (data.x_test, data.x_test[:, :, ::-1]))
    measured["test_flip_accuracy"] = float(((straight + mirrored).argmax(1) == data.y_test).mean())
    return measured | scores(straight, data.y_test), straight


def accuracy(model, images, labels):
    """Return the share (0 to 1) of `images` that a classifier names rightly."""
    return float((model.predict(images, batch_size=500, verbose=0).argmax(1) == labels).mean())


def class_accuracy(predicted, labels, classes=100):
    """Return for each class the share (classes,) of its images that were given their own label."""
    right = np.bincount(labels, np.asarray(predicted) == labels, minlength=classes)
    return right / np.maximum(np.bincount(labels, minlength=classes), 1)


def frechet_distance(a, b):
    """Fréchet distance of two sets of features (n, d) taken as Gaussians (Heusel et al., 2017, section 3)."""
    a, b = (np.asarray(features, "float64") for features in (a, b))  # bfloat16 cannot add up so many
    covariances = [np.cov(features, rowvar=False) for features in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    trace = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariances[1] @ root), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * trace)


def pair_distances(features, labels):
    """Return for each class in `labels`, in order, the mean distance of all pairs of its features (n, d).

    0 where a class has collapsed to one image, or has one only. The ratio generated / real is the diversity.
    """
    means = []
    for label in np.unique(labels):
        own = np.asarray(features[labels == label], "float64")
        own = own - own.mean(0)  # the same distances, from smaller numbers
        squares = (own**2).sum(1)
        distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * own @ own.T, 0, None))
        np.fill_diagonal(distances, 0)
        means.append(distances.sum() / max(len(own) * (len(own) - 1), 1))
    return np.array(means)


def nearest(queries, references, chunk=5000):
    """Return the Euclidean distance (n,) of each query to its nearest reference, and the index (n,) of that one.

    Arrays of any shape are compared as flat vectors, `chunk` references at a time.
    """
    queries, references = (array.reshape(len(array), -1) for array in (queries, references))
    left = queries.astype("float32")
    best, index = np.full(len(left), np.inf), np.zeros(len(left), int)
    for start in range(0, len(references), chunk):
        right = references[start : start + chunk].astype("float32")
        squares = (right**2).sum(1) - 2 * left @ right.T  # the query's own square is the same for all
        found = squares.argmin(1)
        smallest = squares[np.arange(len(left)), found]
        index = np.where(smallest < best, start + found, index)
        best = np.minimum(smallest, best)
    return np.linalg.norm(left - references[index].astype("float32"), axis=1), index


def memorised_share(generated, real):
    """Return the share of `generated` distances to the training images below the 1 % quantile of the `real` ones.

    `real` are those of images the generator has never seen: a generator that copies nothing has about 0.01.
    """
    return float((np.asarray(generated) < np.quantile(real, 0.01)).mean())


def mean_and_interval(values, confidence=0.95):
    """Return the mean of two values or more, and half the width of its confidence interval (Student's t)."""
    values = np.asarray(values, "float64")
    quantile = scipy.special.stdtrit(len(values) - 1, (1 + confidence) / 2)
    return float(values.mean()), float(quantile * values.std(ddof=1) / len(values) ** 0.5)
