"""A long-tailed training split: filled up with GAN images or duplicates, left as it is, or met by logit adjustment."""

import keras
import numpy as np
from keras import ops

from tools.study import mixed, training
from tools.study.batches import Mixture, Part, one_hot


class Adjusted(keras.Model):
    """A network whose logits learn what the classes' frequencies do not say (logit adjustment, Menon et al., 2021)."""

    def __init__(self, network, frequencies):
        super().__init__(name="adjusted")
        self.network, self.frequencies = network, [float(value) for value in frequencies]

    def call(self, images, training=False):
        return self.network(images, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        frequent = y_pred * ops.convert_to_tensor(self.frequencies, "float32")  # softmax of the logits plus log frequencies
        return ops.mean(keras.losses.categorical_crossentropy(y, frequent / ops.sum(frequent, axis=-1, keepdims=True)))


def missing(labels):
    """Return how many images (100,) each class has less than the most frequent one."""
    counts = np.bincount(labels, minlength=100)
    return counts.max() - counts


def filling(labels, generated_labels):
    """Return sorted indices of generated images that bring each class up to the number of the most frequent one, or near it."""
    wanted = missing(labels)
    return np.sort(np.concatenate([np.flatnonzero(generated_labels == label)[: wanted[label]] for label in range(100)]))


def repeating(labels):
    """Return sorted indices of the images themselves, of which as many are taken, each of a class as often as any other."""
    wanted = missing(labels)
    return np.sort(np.concatenate([np.resize(np.flatnonzero(labels == label), wanted[label]) for label in range(100)]))


def fill_up(arm, seed, materials, images, labels):
    """Return the images and labels that fill up the tail, and whether they are real: empty where nothing does."""
    if arm.options["kind"] == "filled":
        generated, generated_labels = mixed.gan(arm, seed, materials)
        fill = filling(labels, generated_labels)
        return generated[fill], generated_labels[fill], False
    fill = repeating(labels) if arm.options["kind"] == "repeated" else slice(0)
    return images[fill], labels[fill], True


def prepare(arm, seed, materials):
    """Return the model that is trained, the network that is measured, and the batches."""
    scale = materials.scale
    images, labels = materials.photographs(seed, arm.real, arm.fraction)
    more, more_labels, is_real = fill_up(arm, seed, materials, images, labels)
    count = round(scale.batch_size * len(more) / (len(more) + len(labels)))  # each image as often as any other
    parts = [
        Part(images, one_hot(labels, scale.label_smoothing), scale.batch_size - count),
        Part(more, one_hot(more_labels, scale.label_smoothing), count, is_real),
    ]
    network = training.build(scale, images, seed)
    frequencies = np.bincount(labels, minlength=100) / len(labels)
    model = Adjusted(network, frequencies) if arm.options["kind"] == "adjusted" else network
    return model, network, Mixture(parts, seed, training.steps_an_epoch(arm, scale), scale.cutmix)
