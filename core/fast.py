"""Layers, Adam and memory on TensorFlow's fused kernels: the same numbers but for rounding, sooner.

One number differs by more: the moving variance of batch normalisation is over n - 1 pixels, as TensorFlow has it; Keras takes n.
"""

import ctypes
import os
import platform

import keras

from core import devices

ENABLED = True  # False: every name below is Keras's own; decided when a network is built or first called


def _on_tensorflow():
    return ENABLED and keras.backend.backend() == "tensorflow"


@keras.saving.register_keras_serializable("cifar100-gan")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer on TensorFlow's fused kernel, which Keras 3 does not use: whole steps are 1.2 times faster."""

    def call(self, inputs, training=None, mask=None):
        if not _on_tensorflow() or self.synchronized or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        training = bool(training and self.trainable)
        statistics = (tf.zeros([0]), tf.zeros([0])) if training else (self.moving_mean, self.moving_variance)
        gamma = self.gamma if self.scale else tf.ones(inputs.shape[-1])
        beta = self.beta if self.center else tf.zeros(inputs.shape[-1])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=statistics[0], variance=statistics[1],
            epsilon=self.epsilon, is_training=training,
        )  # fmt: skip
        if training:
            context = tf.distribute.get_replica_context()
            if context.num_replicas_in_sync > 1:  # else each device would keep moving averages of its own
                mean, variance = context.all_reduce(tf.distribute.ReduceOp.MEAN, [mean, variance])
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable("cifar100-gan")
class Conv2D(keras.layers.Conv2D):
    """Keras's layer, made faster for TensorFlow on a CPU; its numbers are the same but for rounding.

    Where an operation has one core (on two, see core/__init__.py), the forward pass takes the two halves of a batch side by side;
    the two gradients are side by side anyway. In bfloat16, the gradient of wide 3x3 kernels at 8x8 and smaller is nine
    matrix products: there oneDNN's own takes two to three times as long.
    """

    def convolution_op(self, inputs, kernel):
        if not _is_plain(self) or self.groups > 1:
            return super().convolution_op(inputs, kernel)
        images, strides = _pixels_read(inputs, self.kernel_size, self.strides)
        return _convolve(images, keras.ops.cast(kernel, self.compute_dtype), strides, self.padding.upper())


def _pixels_read(images, kernel_size, strides):
    """Return the pixels that a convolution reads, and its strides over them: a 1x1 kernel passes over those between.

    Its gradient on oneDNN, given all pixels of few channels, ends the process where there is no AVX-512 (TensorFlow 2.21).
    """
    return (images[:, :: strides[0], :: strides[1]], (1, 1)) if tuple(kernel_size) == (1, 1) else (images, strides)


def _convolve(images, kernel, strides, padding):
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(images, kernel):
        def gradients(upstream):
            arguments = {"out_backprop": upstream, "strides": (1, *strides, 1), "padding": padding}
            back = tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(images), filter=kernel, **arguments)
            if _products_are_faster(images, kernel, strides, padding):
                return back, _kernel_gradient(images, kernel, upstream)
            return back, tf.raw_ops.Conv2DBackpropFilter(input=images, filter_sizes=tf.shape(kernel), **arguments)

        return _in_halves(lambda part: tf.nn.conv2d(part, kernel, strides, padding), images), gradients

    return convolve(images, kernel)


def _is_plain(layer):
    """Whether a layer is an ordinary convolution that TensorFlow computes on a CPU."""
    plain = layer.dilation_rate == (1, 1) and layer.data_format == "channels_last"
    return plain and _on_tensorflow() and not devices.has_gpu()


def _in_halves(convolution, images):
    """Apply a function to both halves of a batch, side by side, if an operation has one core; else to the whole."""
    import tensorflow as tf

    if os.environ.get("TF_NUM_INTRAOP_THREADS") != "1":
        return convolution(images)
    n = tf.shape(images)[0]
    halves = images[: tf.maximum(n // 2, 1)], images[n // 2 :]  # none is empty: of a single image, each has it
    return tf.concat([convolution(half) for half in halves], 0)[:n]


def _products_are_faster(images, kernel, strides, padding):
    height, width, channels = images.shape[1:]
    small = None not in (height, width) and max(height, width) <= 8 and channels >= 128
    return small and images.dtype == "bfloat16" and (*kernel.shape[:2], *strides, padding) == (3, 3, 1, 1, "SAME")


def _kernel_gradient(images, kernel, upstream):
    """The gradient of a 3x3 kernel: for each of its positions, the shifted images times that of the outputs."""
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    padded, flat = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), tf.reshape(upstream, [-1, upstream.shape[-1]])
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    products = [tf.matmul(tf.reshape(part, [-1, channels]), flat, transpose_a=True) for part in shifted]
    return tf.reshape(tf.stack(products), kernel.shape)


@keras.saving.register_keras_serializable("cifar100-gan")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """Keras's layer, in two halves forward like `Conv2D`."""

    def call(self, inputs):
        plain = _is_plain(self) and self.padding == "same" and self.output_padding is None
        if not plain or None in inputs.shape[1:3]:
            return super().call(inputs)
        outputs = _convolve_transposed(inputs, keras.ops.cast(self.kernel, self.compute_dtype), self.strides)
        return self.activation(outputs + self.bias if self.use_bias else outputs)


def _convolve_transposed(images, kernel, strides):
    import tensorflow as tf

    arguments = {"strides": (1, *strides, 1), "padding": "SAME"}
    height, width = (size * stride for size, stride in zip(images.shape[1:3], strides, strict=True))

    def transposed(part):
        size = (tf.shape(part)[0], height, width, kernel.shape[2])
        return tf.raw_ops.Conv2DBackpropInput(input_sizes=size, filter=kernel, out_backprop=part, **arguments)

    @tf.custom_gradient
    def convolve(images, kernel):
        def gradients(upstream):
            seen, steps = _pixels_read(upstream, kernel.shape[:2], strides)
            arguments = {"strides": (1, *steps, 1), "padding": "SAME"}
            back = tf.nn.conv2d(seen, kernel, **arguments)
            return back, tf.raw_ops.Conv2DBackpropFilter(
                input=seen, filter_sizes=tf.shape(kernel), out_backprop=images, **arguments
            )

        return _in_halves(transposed, images), gradients

    return convolve(images, kernel)


@keras.saving.register_keras_serializable("cifar100-gan")
class Adam(keras.optimizers.Adam):
    """Keras's optimiser on TensorFlow's fused kernel: one pass over each weight where Keras 3 makes some ten.

    A step of a small network is 4 to 7 % faster. The formula is the same but for embeddings. If an index occurs twice, Keras on
    TensorFlow squares each gradient; here they are added first, as on Keras's other backends.
    """

    def update_step(self, gradient, variable, learning_rate):
        if not _on_tensorflow() or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, variable.dtype)
        m, v = self._momentums[index].value, self._velocities[index].value
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=m.handle, v=v.handle, lr=tf.cast(learning_rate, variable.dtype),
            beta1_power=tf.pow(self.beta_1, step), beta2_power=tf.pow(self.beta_2, step),
            beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon, grad=tf.convert_to_tensor(gradient),
        )  # fmt: skip


class KeepMemory(keras.callbacks.Callback):
    """Lets a step reuse the memory that the step before has freed: with TensorFlow on Linux up to 1.2 times faster.

    TensorFlow feeds `fit` from a generator, and then has glibc map each array of 128 KB and more anew, against a leak of
    Python 3.11 (`ApplyPython311MemoryPatch` in its source). Each of its pages then costs a page fault. This callback reverts that
    setting.
    """

    only_watches = True

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0 and _on_tensorflow() and platform.libc_ver()[0] == "glibc":  # by now TensorFlow has done it
            mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # numbers of glibc's malloc.h
            mallopt(mmap_threshold, 2**30)
            mallopt(trim_threshold, 2**31 - 1)
