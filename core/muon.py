"""Muon: an optimiser that makes each step of a convolution orthogonal."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("cifar100-gan")
class Muon(keras.optimizers.SGD):
    """Orthogonalised momentum for convolutions (Jordan et al., 2024); Nesterov's SGD, at `ratio` times the rate, for others.

    A kernel is taken as a matrix (inputs x outputs). All singular values of its step are near 1, and the kernel is scaled to the
    norm sqrt(outputs) after it. Batch normalisation, which has to follow each convolution, undoes that scale: the learning rate
    is the size of a step relative to the kernel, and no weight decay is needed. (Keras's own Muon leaves four-dimensional
    kernels to Adam.)
    """

    def __init__(self, learning_rate=0.025, momentum=0.9, nesterov=True, ratio=4.0, **arguments):
        super().__init__(learning_rate, momentum, nesterov, **arguments)
        self.ratio = ratio

    def update_step(self, gradient, variable, learning_rate):
        learning_rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        if len(variable.shape) != 4:
            return super().update_step(gradient, variable, self.ratio * learning_rate)
        momentum = self.momentums[self._get_variable_index(variable)]
        self.assign(momentum, self.momentum * momentum + gradient)
        step = orthogonal(ops.reshape(gradient + self.momentum * momentum, (-1, variable.shape[-1])))
        kernel = variable - learning_rate * ops.reshape(step, variable.shape)
        return self.assign(
            variable, kernel * (variable.shape[-1] ** 0.5 / ops.maximum(ops.norm(ops.reshape(kernel, (-1,))), 1e-7))
        )

    def get_config(self):
        return super().get_config() | {"ratio": self.ratio}


def orthogonal(matrix):
    """Return a matrix with the singular vectors of `matrix` and singular values near 1: five steps of Newton-Schulz."""
    x = ops.cast(matrix / (ops.norm(matrix) + 1e-7), "bfloat16")
    wide = x.shape[0] < x.shape[1]
    x = ops.transpose(x) if wide else x
    for _ in range(5):
        gram = ops.matmul(ops.transpose(x), x)
        x = 3.4445 * x + ops.matmul(x, -4.775 * gram + 2.0315 * ops.matmul(gram, gram))
    return ops.cast(ops.transpose(x) if wide else x, matrix.dtype)
