"""Batches of images: order, crop and flip, TrivialAugment, CutMix and noise."""

import functools
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from core import devices
from core.augment import trivial_augment
from core.streams import random_stream

AHEAD = 2  # batches made while a GPU trains


class Batches(keras.utils.PyDataset):
    """Shuffled batches of randomly cropped and flipped `uint8` images and one-hot labels.

    Images are (n, height, width, 3), labels `int` (n,). `pad` is the largest shift of a crop in
    pixels, `cutmix` the probability (0 to 1) that CutMix mixes a batch, and `noise_size` the length
    of the normal vector that a GAN needs for each image. By default, an epoch shows every image.

    The order depends on (seed, epoch) alone and the rest on (seed, epoch, step) alone, so a resumed
    run sees the same data. All batches are full: the order wraps round. `epoch` counts from 1, as
    Keras's `fit` calls `on_epoch_end` before the first epoch too. While a GPU trains, threads make
    the next batches; Keras's own `workers` would mix up the epochs under PyTorch and JAX.
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
            self._made = {}  # those made ahead, by epoch and step, had the old setting

    def __getstate__(self):
        """Return the settings, which help to define a training run; its progress does not."""
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
    """Shift each image by up to `pad` pixels, mirrored at the edge, and flip half of the images."""
    n, height, width, channels = images.shape
    top, left = rng.integers(0, 2 * pad + 1, (2, n, 1))
    rows = np.pad(np.arange(height), pad, mode="reflect")[top + np.arange(height)]
    columns = np.pad(np.arange(width), pad, mode="reflect")[left + np.arange(width)]
    columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    places = ((np.arange(n)[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
    pixels = images.reshape(-1, channels).view(f"V{channels * images.itemsize}")  # 4 times faster
    return pixels.take(places).view(images.dtype).reshape(images.shape)


def cutmix(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple:
    """Paste a part of another image into each, and share labels by area (Yun et al., 2019, 3.1)."""
    height, width = images.shape[1:3]
    side = rng.random() ** 0.5
    corners = []
    for size in (height, width):
        centre, half = rng.integers(size), round(size * side) / 2
        corners.append(slice(max(0, round(centre - half)), min(size, round(centre + half))))
    mixed = images.copy()  # the order is random, so the neighbour is a random partner
    mixed[:, *corners] = np.roll(images, 1, axis=0)[:, *corners]
    share = mixed[0, *corners, 0].size / (height * width)
    return mixed, (1 - share) * labels + np.float32(share) * np.roll(labels, 1, axis=0)
