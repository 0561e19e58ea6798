"""Adam on a fused kernel, Muon, and the one-cycle learning rate schedule."""

import keras
from keras import ops

from core import layers

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@keras.saving.register_keras_serializable("core")
class Adam(keras.optimizers.Adam):
    """Keras's Adam on TensorFlow's fused kernel; only kernels and embeddings have weight decay.

    If a batch uses an embedding vector twice, its gradients are added before they are squared, as
    on Keras's other backends. Keras's own Adam squares each of them on TensorFlow.
    """

    def __init__(self, learning_rate=0.001, **arguments):
        super().__init__(learning_rate, **arguments)
        neither_word = r"^(?!.*(kernel|embeddings))"
        self.exclude_from_weight_decay(var_names=[neither_word])

    def update_step(self, gradient, variable, learning_rate):
        if not layers.on_tensorflow() or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        first_moment, second_moment = self._momentums[index].value, self._velocities[index].value
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=first_moment.handle, v=second_moment.handle,
            beta1=self.beta_1, beta1_power=tf.pow(self.beta_1, step),
            beta2=self.beta_2, beta2_power=tf.pow(self.beta_2, step), epsilon=self.epsilon,
            lr=tf.cast(learning_rate, variable.dtype), grad=tf.convert_to_tensor(gradient),
        )  # fmt: skip


@keras.saving.register_keras_serializable("core")
class Muon(keras.optimizers.SGD):
    """Orthogonalised momentum for convolutions (Jordan et al., 2024); SGD for all other weights.

    The momentum of a kernel, as a matrix (height * width * inputs, outputs), is orthogonalised, so
    that all singular values of the update are near 1. The updated kernel is scaled to the norm
    sqrt(outputs), which changes no outputs if batch normalisation follows each convolution. The
    learning rate is therefore the size of an update relative to the kernel, and weight decay is not
    needed. Other weights use `ratio` times the learning rate.
    """

    def __init__(self, learning_rate=0.025, momentum=0.9, nesterov=True, ratio=4.0, **arguments):
        super().__init__(learning_rate, float(momentum), nesterov, **arguments)
        self.ratio = ratio

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if len(variable.shape) != 4:
            return super().update_step(gradient, variable, self.ratio * learning_rate)
        if self.momentum:
            average = self.momentums[self._get_variable_index(variable)]
            self.assign(average, self.momentum * average + gradient)
            gradient = gradient + self.momentum * average if self.nesterov else average
        outputs = variable.shape[-1]
        direction = orthogonalize(ops.reshape(gradient, (-1, outputs)))
        kernel = variable - learning_rate * ops.reshape(direction, variable.shape)
        norm = ops.maximum(ops.norm(ops.reshape(kernel, (-1,))), 1e-7)
        self.assign(variable, kernel * (outputs**0.5 / norm))

    def get_config(self):
        return super().get_config() | {"ratio": self.ratio}


def orthogonalize(matrix):
    """Return `matrix` (rows, columns) with its singular values moved close to 1.

    Computes in bfloat16 if the dtype policy does, and otherwise in float32.
    """
    is_bfloat16 = keras.config.dtype_policy().compute_dtype == "bfloat16"
    x = ops.cast(matrix / (ops.norm(matrix) + 1e-7), "bfloat16" if is_bfloat16 else "float32")
    is_wide = x.shape[0] < x.shape[1]
    x = ops.transpose(x) if is_wide else x
    for _ in range(5):  # Newton-Schulz steps, with the coefficients of Jordan et al. (2024)
        gram = ops.matmul(ops.transpose(x), x)
        x = 3.4445 * x + ops.matmul(x, -4.775 * gram + 2.0315 * ops.matmul(gram, gram))
    return ops.cast(ops.transpose(x) if is_wide else x, matrix.dtype)


@keras.saving.register_keras_serializable("core")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises linearly to `peak` in `warmup` (0 to 1) of `steps`, then falls linearly."""

    def __init__(self, peak: float, steps: int, warmup: float = 0.2):
        self.peak, self.steps, self.warmup = peak, steps, warmup

    def __call__(self, step):
        number = ops.cast(step, "float32") + 1  # steps are counted from 1 here
        rising = max(1, round(self.warmup * self.steps))
        falling = self.steps + 1 - rising  # so that the last step still has a rate above zero
        fall = ops.clip((self.steps + 1 - number) / falling, 0.0, 1.0)
        return self.peak * ops.minimum(number / rising, fall)

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup}
