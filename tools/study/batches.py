"""The batches of the study: so many images of each part, cropped and flipped, and mixed as a whole or each part apart."""

import dataclasses
import functools

import keras
import numpy as np

from core.batches import crop_and_flip, cutmix


@dataclasses.dataclass(frozen=True)
class Part:
    """Images `uint8` (n, 32, 32, 3) with labels `float32` (n, 100), of which each batch holds `count`.

    `change`, where there is one, takes images and a random generator and returns other images, anew each time.
    """

    images: np.ndarray
    labels: np.ndarray
    count: int
    is_real: bool = True
    change: object = None

    def take(self, seed, position):
        """Return images and labels of the batch at `position`, from 0: each image is seen as often as any other, or once more."""
        n, first = len(self.images), position * self.count
        passes = range(first // n, (first + self.count - 1) // n + 1)
        order = np.concatenate([order_of_pass((*seed, number), n) for number in passes])
        chosen = order[first % n :][: self.count]
        return self.images[chosen], self.labels[chosen]


@functools.lru_cache(16)  # a pass over 45,000 images lasts for many batches
def order_of_pass(seed, n):
    """Return the order (n,) of one pass over n images; it depends on `seed`, a tuple of numbers, alone."""
    return np.random.default_rng(seed).permutation(n)


class Mixture(keras.utils.PyDataset):
    """Batches that hold a fixed number of images of each part; they depend on (seed, epoch, step) alone, like core's.

    A batch is shuffled, so that with few images too the partners of CutMix are others each time. `apart`: each part is shuffled
    and mixed by itself, and the parts stay in their order.
    """

    def __init__(self, parts, seed, steps, cutmix=0.0, pad=4, apart=False):
        super().__init__()
        self.parts, self.seed, self.steps = [part for part in parts if part.count], seed, steps
        self.cutmix, self.pad, self.apart = cutmix, pad, apart
        self.epoch, self.start = 0, 0

    def __len__(self):
        return self.steps - self.start

    def __getitem__(self, step):
        position = max(self.epoch - 1, 0) * self.steps + self.start + step  # epochs count from 1
        rng = np.random.default_rng((self.seed, position))
        drawn = [changed(part, part.take((self.seed, number), position), rng) for number, part in self.parts_at(position)]
        groups = drawn if self.apart else [joined(drawn)]
        return joined([self.augmented(*group, rng) for group in groups])

    def on_epoch_end(self):
        self.epoch, self.start = self.epoch + 1, 0

    def parts_at(self, position):
        """Return the parts that the batch at `position` is made of, each with its number."""
        return list(enumerate(self.parts))

    def augmented(self, images, labels, rng):
        """Shuffle, crop and flip images, and mix them with probability `cutmix`."""
        order = rng.permutation(len(images))
        images, labels = crop_and_flip(images[order], rng, self.pad), labels[order]
        return cutmix(images, labels, rng) if rng.random() < self.cutmix else (images, labels)

    def exposures(self, epochs):
        """Return how many real images and how many others a training of so many epochs sees, each as often as it is seen."""
        counts = {True: 0, False: 0}
        for position in range(self.steps * epochs):
            for _, part in self.parts_at(position):
                counts[part.is_real] += part.count
        return counts[True], counts[False]


def changed(part, group, rng):
    """Return images and labels of a part, the images changed where the part asks for it."""
    return (part.change(group[0], rng), group[1]) if part.change else group


def joined(groups):
    """Return groups of images and labels as one."""
    return tuple(np.concatenate(arrays) for arrays in zip(*groups, strict=True))


def one_hot(labels, smoothing=0.0):
    """Return labels (n,) as `float32` (n, 100), of which `smoothing` (0 to 1) is spread over all classes."""
    return (np.eye(100, dtype="float32") * (1 - smoothing) + smoothing / 100).astype("float32")[labels]
