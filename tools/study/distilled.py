"""Distillation by function matching: teacher and student see the same cropped and mixed image (Beyer et al., 2022)."""

import keras
from keras import ops

from tools.study import mixed


class Distillation(keras.Model):
    """A student that learns a teacher's probabilities, both at a temperature; labels are not looked at."""

    def __init__(self, student, teacher, temperature):
        super().__init__(name="distillation")
        self.student, self.teacher, self.temperature = student, teacher, temperature
        self.teacher.trainable = False

    def call(self, images, training=False):
        return self.student(images, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        target = softened(self.teacher(x, training=False), self.temperature)
        learned = softened(y_pred, self.temperature)
        divergence = ops.sum(ops.exp(target) * (target - learned), axis=-1)
        return self.temperature**2 * ops.mean(divergence)  # gradients of the same size at each temperature (Hinton et al., 2015)


def softened(probabilities, temperature):
    """Return log-probabilities (n, classes) at a temperature, of probabilities at temperature 1."""
    logits = ops.log(ops.maximum(ops.cast(probabilities, "float32"), 1e-10))
    return ops.log_softmax(logits / temperature, axis=-1)


def prepare(arm, seed, materials):
    """Return the model that is trained, the student that is measured, and the batches."""
    student, _, batches = mixed.prepare(arm, seed, materials)
    temperature = arm.options.get("temperature", materials.scale.temperature)
    return Distillation(student, materials.teacher(arm.fraction), temperature), student, batches
