"""A long-tailed training split: its tail filled up with GAN images, left as it is, or met by logit adjustment."""

import dataclasses

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


def filling(labels, generated_labels):
    """Return sorted indices of generated images that bring each class up to the number of the most frequent one, or near it."""
    missing = np.bincount(labels, minlength=100).max() - np.bincount(labels, minlength=100)
    return np.sort(np.concatenate([np.flatnonzero(generated_labels == label)[: missing[label]] for label in range(100)]))


def prepare(arm, seed, materials):
    """Return the model that is trained, the network that is measured, and the batches."""
    scale, kind = materials.scale, arm.options["kind"]
    images, labels = materials.photographs(seed, arm.real, arm.fraction)
    parts = [Part(images, one_hot(labels, scale.label_smoothing), scale.batch_size)]
    if kind == "filled":
        generated, generated_labels = mixed.gan(arm, seed, materials)
        fill = filling(labels, generated_labels)
        count = round(scale.batch_size * len(fill) / (len(fill) + len(labels)))  # each image as often as any other
        filled = Part(generated[fill], one_hot(generated_labels[fill], scale.label_smoothing), count, is_real=False)
        parts = [dataclasses.replace(parts[0], count=scale.batch_size - count), filled]
    network = training.build(scale, images, seed)
    frequencies = np.bincount(labels, minlength=100) / len(labels)
    model = Adjusted(network, frequencies) if kind == "adjusted" else network
    return model, network, Mixture(parts, seed, training.steps_an_epoch(arm, scale), scale.cutmix)
