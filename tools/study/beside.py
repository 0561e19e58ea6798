"""GAN images on top of a full batch of real ones, with a smaller loss and batch-norm statistics of their own."""

import keras
from keras import ops

from core import fast
from tools.study import mixed, training
from tools.study.batches import Mixture


class Beside(keras.Model):
    """A network and its double for the other images, which shares all but batch normalisation (AdvProp, Xie et al., 2020).

    The first `real` images of a batch go through the network, the others through the double. One of the others counts `weight`
    (0 to 1) in the loss, which is a mean, so that it is as large as without them.
    """

    def __init__(self, network, real, weight):
        super().__init__(name="beside")
        self.network, self.real, self.weight = network, real, weight
        self.double = keras.models.clone_model(network, clone_function=own_statistics)

    def call(self, images, training=False):
        if not training:
            return self.network(images, training=False)
        parts = self.network(images[: self.real], training=True), self.double(images[self.real :], training=True)
        return ops.concatenate(parts)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        losses = keras.losses.categorical_crossentropy(y, y_pred)
        real, others = losses[: self.real], losses[self.real :]
        total = ops.sum(real) + self.weight * ops.sum(others)
        return total / (self.real + self.weight * ops.cast(ops.shape(others)[0], "float32"))


def own_statistics(layer):
    """Return a layer itself or, of a batch normalisation, a new one like it."""
    is_normalization = isinstance(layer, fast.BatchNormalization)
    return type(layer).from_config(layer.get_config()) if is_normalization else layer


def prepare(arm, seed, materials):
    """Return the model that is trained, the network that is measured, and the batches."""
    scale = materials.scale
    real = mixed.real_part(arm, seed, materials, scale.batch_size)
    extra = mixed.extra_part(arm, seed, materials, round(arm.share * scale.batch_size))
    network = training.build(scale, real.images, seed)
    batches = Mixture([real, extra], seed, training.steps_an_epoch(arm, scale), scale.cutmix, apart=True)
    return Beside(network, real.count, arm.options["weight"]), network, batches
