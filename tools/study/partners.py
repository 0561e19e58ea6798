"""CutMix with partners of the same class: GAN images or, as a control, real ones. The label stays as it is."""

import numpy as np

from core.batches import crop_and_flip, cutmix
from tools.study import mixed, training
from tools.study.batches import Mixture


class SameClass(Mixture):
    """Batches of real images in which rectangles come from `partners` `uint8` (m, 32, 32, 3), each of its image's class.

    `partner_labels` (m,) name each of the 100 classes at least once.
    """

    def __init__(self, parts, seed, steps, cutmix, partners, partner_labels):
        super().__init__(parts, seed, steps, cutmix)
        order = np.argsort(partner_labels, kind="stable")
        self.partners, self.counts = partners[order], np.bincount(partner_labels, minlength=100)

    def augmented(self, images, labels, rng):
        images = crop_and_flip(images, rng, self.pad)
        if rng.random() >= self.cutmix:
            return images, labels
        partners = crop_and_flip(self.partners[self.choose(labels.argmax(1), rng)], rng, self.pad)
        both = np.stack([partners, images], axis=1).reshape(-1, *images.shape[1:])  # cutmix pastes from the image before
        return cutmix(both, np.repeat(labels, 2, axis=0), rng)[0][1::2], labels

    def choose(self, classes, rng):
        """Return for each class in `classes` (n,) the index of a random partner that shows it."""
        first = np.cumsum(self.counts) - self.counts
        return first[classes] + rng.integers(0, self.counts[classes])


def prepare(arm, seed, materials):
    """Return the network (twice) and the batches."""
    scale = materials.scale
    part = mixed.real_part(arm, seed, materials, scale.batch_size)
    from_gan = arm.source == "gan"
    partners = mixed.gan(arm, seed, materials) if from_gan else materials.photographs(seed, arm.real, arm.fraction)
    network = training.build(scale, part.images, seed)
    return network, network, SameClass([part], seed, training.steps_an_epoch(arm, scale), scale.cutmix, *partners)
