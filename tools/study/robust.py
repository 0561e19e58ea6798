"""Adversarial training (Madry et al., 2018) with a share of GAN images in each batch (Gowal et al., 2021)."""

import functools

import keras
import numpy as np
from keras import ops

import utils
from tools.study import mixed
from tools.study.batches import Mixture


class Robust(keras.Model):
    """A network that is trained on attacked images; it is given images 0 to 255 and their labels (n, 100)."""

    def __init__(self, network, radius, attack_steps, seed):
        super().__init__(name="robust", dtype="float32")  # which keeps the labels as they are
        self.network, self.radius, self.attack_steps = floating(network), radius, attack_steps
        self.seed = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        images, labels = ops.cast(inputs[0], "float32"), inputs[1]
        if training:
            start = keras.random.uniform(ops.shape(images), -self.radius, self.radius, seed=self.seed)
            images = attacked(self.network, images, labels, self.radius, self.attack_steps, start)
        return self.network(images, training=training)


class Labelled(Mixture):
    """Batches that show a network the labels too."""

    def __getitem__(self, step):
        images, labels = super().__getitem__(step)
        return (images, labels), labels


def floating(network):
    """Return a chain of a network's own layers with an input of `float32`, which a gradient can pass.

    It is normalised in `float32`: in bfloat16 a grey level has no fractions.
    """
    image, first = keras.Input(network.input_shape[1:], dtype="float32"), network.layers[1]
    x = keras.layers.Normalization(mean=first.input_mean, variance=first.input_variance, dtype="float32")(image)
    for layer in network.layers[2:]:
        x = layer(x)
    return keras.Model(image, x)


def attacked(network, images, labels, radius, steps, start):
    """Return images `float32` 0 to 255, each within `radius` of its own, where the loss is high (PGD)."""

    def loss(attempt):
        return ops.sum(keras.losses.categorical_crossentropy(labels, network(attempt, training=False)))

    low, high = ops.maximum(images - radius, 0.0), ops.minimum(images + radius, 255.0)
    current = ops.clip(images + start, low, high)
    for _ in range(steps):
        current = ops.clip(current + 2.5 * radius / steps * ops.sign(gradient(loss, current)), low, high)
    return ops.stop_gradient(current)


def gradient(function, images):
    """Return the gradient of a function of images; Keras has none of its own. On TensorFlow or JAX."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(images)
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        result = function(images)
    return tape.gradient(result, images)


def compiled(function):
    """Return a function that TensorFlow or JAX computes as a whole."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function)


def robust_accuracy(network, images, labels, radius, steps, restarts, seed=0):
    """Return the share (0 to 1) of images `uint8` (n, 32, 32, 3) that a network names rightly after each of several attacks."""
    chain = floating(network)
    attack = compiled(functools.partial(attacked, chain, radius=radius, steps=steps))
    rng, survived = np.random.default_rng(seed), np.ones(len(images), bool)
    for _ in range(restarts):
        for first in range(0, len(images), 250):
            part = slice(first, first + 250)
            start = rng.uniform(-radius, radius, images[part].shape).astype("float32")
            attempt = attack(images[part].astype("float32"), np.eye(100, dtype="float32")[labels[part]], start=start)
            survived[part] &= np.asarray(chain(attempt, training=False)).argmax(1) == labels[part]
    return float(survived.mean())


def prepare(arm, seed, materials):
    """Return the model that is trained, the network that is measured, and the batches."""
    network, _, plain = mixed.prepare(arm, seed, materials)
    batches = Labelled(plain.parts, seed, plain.steps, plain.cutmix)
    return Robust(network, arm.options["radius"], arm.options["steps"], seed), network, batches


def measure(arm, network, data, scale):
    """Return the robust accuracy on the first validation and test images, under an attack with more steps and restarts."""
    attack = arm.options["radius"], arm.options["last_steps"], arm.options["restarts"]
    chosen, (_, validation) = slice(scale.attack_images), utils.split(data.y_train)
    held_out = validation[chosen]
    return {
        "robust_val_accuracy": robust_accuracy(network, data.x_train[held_out], data.y_train[held_out], *attack),
        "robust_accuracy": robust_accuracy(network, data.x_test[chosen], data.y_test[chosen], *attack),
    }
