"""The batches of a training: order, crop and flip, TrivialAugment, CutMix. They depend on (seed, epoch, step) alone."""

import concurrent.futures

import keras
import numpy as np

from core import devices
from core.augment import trivial_augment

AHEAD = 2  # batches that are made while a GPU trains: with JAX and PyTorch `fit` waits for each step, the GPU then for a batch
_threads = concurrent.futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="batches")


class Batches(keras.utils.PyDataset):
    """Shuffled batches of `uint8` images and one-hot labels, cropped and flipped at random.

    The order depends on (seed, epoch) alone and the augmentation on (seed, epoch, step) alone, so that a training taken up
    again at any step sees the same data. All batches are full: the order wraps round. The next ones are made in threads.
    `pad` is the largest shift of a crop in pixels, `cutmix` the probability (0 to 1) that a batch is mixed, `trivial` whether
    each image is changed by TrivialAugment, `noise` the size of a normal vector that comes with each image (a GAN's), `steps`
    the number of batches an epoch, `start` the first one of the current epoch. Epochs count from 1: `fit` advances the number
    before the first one too.
    """

    def __init__(self, images, labels, batch_size, seed=0, pad=4, cutmix=0.0, trivial=False, noise=0, steps=None, classes=100):
        super().__init__()
        self.cutmix, self.trivial, self.noise = cutmix, trivial, noise
        self.images, self.labels, self.batch_size, self.seed, self.pad = images, labels, batch_size, seed, pad
        self.steps, self.classes = steps or -(-len(images) // batch_size), classes
        self.epoch, self.start, self._order, self._made = 0, 0, (None, None), {}
        self._ahead = AHEAD if devices.has_gpu() else 0

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if not name.startswith("_"):
            super().__setattr__("_made", {})  # they were made with another setting

    def __len__(self):
        return self.steps - self.start

    def __getitem__(self, step):
        first = self.start + step
        if not self._ahead:
            return self._make(self.epoch, first)
        places = [(self.epoch, each) for each in range(first, max(first + 1, min(first + 1 + self._ahead, self.steps)))]
        made = {place: self._made.get(place) or _threads.submit(self._make, *place) for place in places}
        batch = made.pop(places[0])
        self._made = made
        return batch.result()

    def _make(self, epoch, step):
        order = self._order
        if order[0] != epoch:  # a local name, as another thread may be in another epoch
            self._order = order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        chosen = np.take(order[1], range(step * self.batch_size, (step + 1) * self.batch_size), mode="wrap")
        rng = np.random.default_rng((self.seed, epoch, step))
        images = crop_and_flip(self.images[chosen], rng, self.pad)
        images = trivial_augment(images, rng) if self.trivial else images
        labels = np.eye(self.classes, dtype="float32")[self.labels[chosen]]
        if self.cutmix and rng.random() < self.cutmix:
            images, labels = cutmix(images, labels, rng)
        inputs = (images, rng.standard_normal((self.batch_size, self.noise), "float32")) if self.noise else images
        return inputs, labels

    def on_epoch_end(self):
        self.epoch, self.start = self.epoch + 1, 0


def crop_and_flip(images, rng, pad=4):
    """Shift each image by up to `pad` pixels (mirrored at the edge) and flip half of them, the whole batch at once."""
    n, height, width, channels = images.shape
    top, left = rng.integers(0, 2 * pad + 1, (2, n))[:, :, None]
    flipped = rng.random(n)[:, None] < 0.5
    rows, columns = (np.pad(np.arange(size), pad, mode="reflect") for size in (height, width))
    rows, columns = rows[top + np.arange(height)], columns[left + np.arange(width)]
    columns = np.where(flipped, columns[:, ::-1], columns)
    position = ((np.arange(n)[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
    pixels = images.reshape(-1, channels).view(f"V{channels * images.itemsize}")  # a pixel moves as one item: 4 times faster
    return pixels.take(position).view(images.dtype).reshape(images.shape)


def cutmix(images, labels, rng):
    """Paste a rectangle of another image of the batch into each; labels are shared by area (Yun et al., 2019, section 3.1).

    The rectangle is the same for the whole batch, its area uniform before the edges cut it, its middle anywhere.
    """
    height, width = images.shape[1:3]
    side = rng.random() ** 0.5
    corners = []
    for size in (height, width):
        middle, half = rng.integers(size), round(size * side) / 2
        corners.append(slice(max(0, round(middle - half)), min(size, round(middle + half))))
    mixed = images.copy()  # the batch's order is random, so the neighbour is a random partner
    mixed[:, *corners] = np.roll(images, 1, axis=0)[:, *corners]
    share = mixed[0, *corners, 0].size / (height * width)
    return mixed, (1 - share) * labels + np.float32(share) * np.roll(labels, 1, axis=0)
