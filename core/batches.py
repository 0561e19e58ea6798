"""Batches of training images: shuffling, crop and flip, TrivialAugment, CutMix, GAN noise."""

import functools
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from core import devices
from core.augment import trivial_augment
from core.streams import random_stream

AHEAD = 2  # batches that are prepared in advance while a GPU trains


class Batches(keras.utils.PyDataset):
    """Shuffled batches of randomly cropped and flipped images with one-hot labels.

    `images` are `uint8` (n, height, width, 3) and `labels` are `int` (n,). `pad` is the largest
    shift in pixels, and `cutmix` the probability (0 to 1) that CutMix is applied to a batch. With
    `trivial_augment`, each image also gets one random operation. A batch is `(images, labels)` or,
    for a GAN with `noise_size` > 0, `((images, noise), labels)`, where the noise is normal, of
    shape (batch_size, noise_size). All batches are full: when an epoch runs out of images, it
    continues with the first ones in its order. By default, an epoch shows every image at least
    once.

    The order depends only on (seed, epoch), and everything else only on (seed, epoch, step), so a
    resumed run sees the same data. `epoch` counts from 1, because Keras's `fit` also calls
    `on_epoch_end` before the first epoch. While a GPU trains, threads prepare the next batches;
    Keras's own `workers` would mix up the epochs under PyTorch and JAX.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int = 0, pad: int = 4,
        cutmix: float = 0.0, trivial_augment: bool = False, noise_size: int = 0,
        steps_per_epoch: int | None = None, classes: int = 100,
    ):  # fmt: skip
        super().__init__()
        self.images, self.labels, self.batch_size, self.seed = images, labels, batch_size, seed
        self.pad, self.cutmix, self.trivial_augment = pad, cutmix, trivial_augment
        self.noise_size, self.classes = noise_size, classes
        self.steps_per_epoch = steps_per_epoch or -(-len(images) // batch_size)
        self.epoch = 0
        self._threads = ThreadPoolExecutor(AHEAD) if devices.has_gpu() else None

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if not name.startswith("_"):
            self._made = {}  # discard the batches, by (epoch, step), made with the old setting

    def __getstate__(self):
        """Return the settings, which are part of what defines a training run, but no progress."""
        state = super().__getstate__().items()
        return {name: value for name, value in state if name[0] != "_" and name != "epoch"}

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, step):
        epoch, made = self.epoch, self._made
        if self._threads is None:
            return self._make(epoch, step)
        places = [(epoch, each) for each in range(step, min(step + 1 + AHEAD, len(self)))]
        made = {at: made.get(at) or self._threads.submit(self._make, *at) for at in places}
        batch = made.pop((epoch, step))
        self._made = made
        return batch.result()

    def _make(self, epoch, step):
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = _order(self.seed, epoch, len(self.images)).take(places, mode="wrap")
        rng = random_stream("augmentation", self.seed, epoch, step)
        images = crop_and_flip(self.images[chosen], rng, self.pad)
        images = trivial_augment(images, rng) if self.trivial_augment else images
        labels = np.eye(self.classes, dtype="float32")[self.labels[chosen]]
        rng = random_stream("cutmix", self.seed, epoch, step)
        if rng.random() < self.cutmix:
            images, labels = cutmix(images, labels, rng)
        if self.noise_size == 0:
            return images, labels
        noise = random_stream("noise", self.seed, epoch, step)
        return (images, noise.standard_normal((len(images), self.noise_size), "float32")), labels

    def on_epoch_end(self):
        self.epoch += 1


@functools.lru_cache(maxsize=2)
def _order(seed, epoch, n):
    return random_stream("order", seed, epoch).permutation(n)


def crop_and_flip(images: np.ndarray, rng: np.random.Generator, pad: int = 4) -> np.ndarray:
    """Return images (n, height, width, channels), each shifted at random, and about half flipped.

    An image is shifted by up to `pad` pixels along each axis, and reflected at its edges.
    """
    n, height, width, channels = images.shape
    top, left = rng.integers(0, 2 * pad + 1, (2, n, 1))
    rows = np.pad(np.arange(height), pad, mode="reflect")[top + np.arange(height)]
    columns = np.pad(np.arange(width), pad, mode="reflect")[left + np.arange(width)]
    columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    places = ((np.arange(n)[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
    # Copying each pixel as a single element is four times as fast.
    pixels = images.reshape(-1, channels).view(f"V{channels * images.itemsize}")
    return pixels.take(places).view(images.dtype).reshape(images.shape)


def cutmix(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple:
    """Return images and labels mixed by CutMix (Yun et al., 2019, section 3.1).

    Images are (n, height, width, channels), labels `float32` (n, classes). The same rectangle of
    each image is replaced by that of the image before it, and labels are mixed by area.
    """
    height, width = images.shape[1:3]
    side = rng.random() ** 0.5
    corners = []
    for size in (height, width):
        centre, half = rng.integers(size), round(size * side) / 2
        corners.append(slice(max(0, round(centre - half)), min(size, round(centre + half))))
    mixed = images.copy()  # images are shuffled, so the neighbour is random
    mixed[:, *corners] = np.roll(images, 1, axis=0)[:, *corners]
    share = mixed[0, *corners, 0].size / (height * width)
    return mixed, (1 - share) * labels + np.float32(share) * np.roll(labels, 1, axis=0)
