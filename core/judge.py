"""Evaluation of a GAN's images: classifiers that judge them, scores, and figures."""

from collections.abc import Sequence
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import seaborn
from keras import layers
from matplotlib.figure import Figure

from core import devices, metrics, training
from core.batches import Batches
from core.files import atomic_write
from core.gan import generate
from core.interactive import LiveFigure
from core.layers import BatchNormalization, Conv2D
from core.optimizers import Adam


def build_classifier(channels: int) -> keras.Model:
    """Return a small 100-class classifier for float images (n, 32, 32, 3) from 0 to 255.

    `channels` is the width of the first convolution. The scores of GAN images are computed from the
    outputs of the layer "features".
    """
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    for width in (channels, 2 * channels, 4 * channels):
        x = Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(BatchNormalization()(x))
        x = layers.AveragePooling2D(2)(x)
    features = layers.Flatten(name="features", dtype="float32")(layers.AveragePooling2D(2)(x))
    classes = layers.Dense(100, activation="softmax", dtype="float32")(features)
    return keras.Model(image, classes)


def train_classifier(
    images: np.ndarray, labels: np.ndarray, folder: Path, epochs: int, seed: int, channels: int = 32
) -> keras.Model:
    """Train a classifier on `uint8` images (n, 32, 32, 3); `folder` is for its checkpoints."""
    strategy = devices.strategy()
    batches = Batches(images, labels, 64 * strategy.num_replicas_in_sync, seed=seed)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(batches))
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = build_classifier(channels)
        model.compile(Adam(rate), "categorical_crossentropy", metrics=["accuracy"])
    training.fit(model, batches, epochs=epochs, folder=folder)
    return model


class Judge:
    """Scores generated images by comparing them with real ones in a classifier's features.

    The real images, `uint8` (n, 32, 32, 3) with `int` labels (n,), must not be among those that the
    classifier was trained on.
    """

    def __init__(self, classifier: keras.Model, images: np.ndarray, labels: np.ndarray):
        outputs = [classifier.get_layer("features").output, classifier.output]
        self.network = keras.Model(classifier.inputs, outputs)
        self.features, predicted = self.classify(images)
        self.distance = metrics.pair_distances(self.features, labels).mean()
        self.accuracy = float(np.mean(predicted == labels))  # on the real images, 0 to 1

    def classify(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features (n, d) and predicted labels (n,) of `uint8` images (n, 32, 32, 3)."""
        features, probabilities = self.network.predict(images, batch_size=500, verbose=0)
        return features, probabilities.argmax(axis=1)

    def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the scores of `uint8` images (n, 32, 32, 3), generated for `labels` (n,).

        `fid` is the Fréchet distance to the real images in the features of this classifier, not of
        Inception. `gan_test` is the fraction (0 to 1) that is classified as the requested class
        (Shmelkov et al., 2018), and `diversity` the mean feature distance between two images of a
        class, divided by that of real images.
        """
        features, predicted = self.classify(images)
        return {
            "fid": metrics.frechet_distance(self.features, features),
            "gan_test": float(np.mean(predicted == labels)),
            "diversity": float(metrics.pair_distances(features, labels).mean() / self.distance),
        }


class Scorer(keras.callbacks.Callback):
    """Adds a judge's scores of 5,000 generated images to the logs that early stopping monitors."""

    def __init__(self, judge: Judge, seed: int):
        super().__init__()
        self.judge, self.seed = judge, seed

    def on_epoch_end(self, epoch, logs=None):
        labels = np.repeat(np.arange(100), 50)
        images = generate(self.model.average.network, labels, self.seed, stream="score")
        logs |= self.judge.score(images, labels)


class EpochPictures(LiveFigure):
    """After each epoch, generates one image per label from the same noise and saves the images.

    In Jupyter, a figure shows them during training. `training.fit` sets `folder`, in which they are
    saved.
    """

    def __init__(self, labels: np.ndarray, class_names: Sequence[str], seed: int):
        super().__init__(lambda history: self.figure())
        self.labels, self.seed = labels, seed
        self.names = [class_names[label].replace(" ", "\n") for label in labels]

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if not self.history and devices.is_chief():  # the run starts from the first epoch
            for path in self.folder.glob("pictures-*.npy"):
                path.unlink()

    def on_epoch_end(self, epoch, logs=None):
        images = generate(self.model.average.network, self.labels, self.seed, stream="epochs")
        if devices.is_chief():
            with atomic_write(self.folder / f"pictures-{epoch + 1:05d}.npy") as file:
                np.save(file, images)
        super().on_epoch_end(epoch, logs)

    def figure(self, max_rows: int = 8) -> Figure:
        """Return a figure with one row of images per epoch, for at most `max_rows` epochs."""
        paths = sorted(self.folder.glob("pictures-*.npy"))
        indices = np.unique(np.linspace(0, len(paths) - 1, min(max_rows, len(paths))).astype(int))
        shown = [paths[index] for index in indices]
        rows = [np.concatenate(list(np.load(path)), axis=1) for path in shown]
        epochs = [f"epoch {int(path.stem.removeprefix('pictures-'))}" for path in shown]
        size = 0.85 * len(self.labels) + 1, 0.85 * len(rows) + 0.8
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        axis.imshow(np.concatenate(rows))
        axis.set_xticks(16 + 32 * np.arange(len(self.names)), self.names, fontsize=8)
        axis.set_yticks(16 + 32 * np.arange(len(rows)), epochs)
        axis.tick_params(length=0)
        return figure


def draw_history(history: dict[str, list]) -> Figure:
    """Return a figure of a GAN's losses and scores by epoch; `history` has one list per metric."""
    panels = {
        "loss (epoch mean)": {"discriminator": "d_loss", "generator": "g_loss"},
        "Fréchet distance": {"to the validation images": "fid"},
        "fraction or ratio": {"GAN-test": "gan_test", "diversity": "diversity"},
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, (ylabel, curves) in zip(axes, panels.items(), strict=True):
        axis.set_prop_cycle(color=seaborn.color_palette("colorblind"))
        for label, name in curves.items():
            axis.plot(range(1, len(history[name]) + 1), history[name], "o-", ms=4, label=label)
        axis.set(xlabel="epoch", ylabel=ylabel)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.legend(fontsize=8)
    return figure


def find_nearest(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's distance (n,) to its nearest reference, and the reference's index (n,).

    The distance is Euclidean, of the image or its mirror image, whichever is closer.
    """
    original = metrics.nearest(images, references)
    flipped = metrics.nearest(images[:, :, ::-1], references)
    closer = original[0] <= flipped[0]
    return np.where(closer, original[0], flipped[0]), np.where(closer, original[1], flipped[1])
