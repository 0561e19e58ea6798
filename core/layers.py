"""Keras's layers on faster TensorFlow kernels.

Results agree with those of Keras's own layers up to rounding, except for the moving variance of
`BatchNormalization`.
"""

import os

import keras
import numpy as np

from core import devices

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

ONE_CORE_PER_OPERATION = os.environ.get("TF_NUM_INTRAOP_THREADS") == "1"  # see core/__init__.py


def on_tensorflow() -> bool:
    """Return whether the backend is TensorFlow, whose faster kernels are used here."""
    return keras.backend.backend() == "tensorflow"


@keras.saving.register_keras_serializable("core")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer on a fused kernel. Its moving variance divides by n - 1 pixels, not by n."""

    def call(self, inputs, training=None, mask=None):
        is_last_of_four = len(inputs.shape) == 4 and self.axis in (-1, 3)
        is_special = self.synchronized or self.renorm or mask is not None
        if is_special or not is_last_of_four or not on_tensorflow():
            return super().call(inputs, training=training, mask=mask)
        training = bool(training and self.trainable)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, epsilon=self.epsilon, is_training=training,
            scale=self.gamma if self.scale else tf.ones(inputs.shape[-1]),
            offset=self.beta if self.center else tf.zeros(inputs.shape[-1]),
            mean=tf.zeros([0]) if training else self.moving_mean,
            variance=tf.zeros([0]) if training else self.moving_variance,
        )  # fmt: skip
        if not training:
            return outputs
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:  # otherwise each device would keep its own averages
            mean, variance = context.all_reduce(tf.distribute.ReduceOp.MEAN, [mean, variance])
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable("core")
class Conv2D(keras.layers.Conv2D):
    """Keras's layer, made faster on a CPU with TensorFlow.

    If each operation has one core, the forward pass computes the two halves of a batch in parallel.
    In bfloat16, the gradient of 3x3 kernels with many channels on small images is computed by
    matrix products.
    """

    def convolution_op(self, inputs, kernel):
        if not _is_plain(self) or self.groups > 1:
            return super().convolution_op(inputs, kernel)
        images, strides = _skip_unread_pixels(inputs, self.kernel_size, self.strides)
        kernel = keras.ops.cast(kernel, self.compute_dtype)
        return _convolve(images, kernel, strides, self.padding.upper())


@keras.saving.register_keras_serializable("core")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """Keras's layer; like `Conv2D`, it computes the two halves of a batch in parallel."""

    def call(self, inputs):
        plain = _is_plain(self) and self.padding == "same" and self.output_padding is None
        if not plain or None in inputs.shape[1:3]:
            return super().call(inputs)
        kernel = keras.ops.cast(self.kernel, self.compute_dtype)
        outputs = _convolve_transposed(inputs, kernel, self.strides)
        return self.activation(outputs + self.bias if self.use_bias else outputs)


def _is_plain(layer):
    """Return whether a layer is undilated, channels-last and computed by TensorFlow on a CPU."""
    plain = layer.dilation_rate == (1, 1) and layer.data_format == "channels_last"
    return plain and on_tensorflow() and not devices.has_gpu()


def _skip_unread_pixels(images, kernel_size, strides):
    """Return the pixels that a convolution reads, and the strides that remain to be applied."""
    if tuple(kernel_size) != (1, 1):
        return images, strides
    # With unread pixels in its input, oneDNN's gradient crashes on processors without AVX-512.
    return images[:, :: strides[0], :: strides[1]], (1, 1)


def _convolve(images, kernel, strides, padding):
    @tf.custom_gradient
    def convolve(images, kernel):
        def gradients(upstream):
            shape = tf.shape(images)
            of_images = tf.nn.conv2d_transpose(upstream, kernel, shape, strides, padding)
            if _products_are_faster(images, kernel, strides, padding):
                return of_images, _kernel_gradient(images, kernel, upstream)
            return of_images, _backprop_filter(images, kernel, upstream, strides, padding)

        outputs = _in_halves(lambda part: tf.nn.conv2d(part, kernel, strides, padding), images)
        return outputs, gradients

    return convolve(images, kernel)


def _convolve_transposed(images, kernel, strides):
    height, width = images.shape[1] * strides[0], images.shape[2] * strides[1]

    def transposed(part):
        size = (tf.shape(part)[0], height, width, kernel.shape[2])
        return tf.nn.conv2d_transpose(part, kernel, size, strides, "SAME")

    @tf.custom_gradient
    def convolve(images, kernel):
        def gradients(upstream):
            read, steps = _skip_unread_pixels(upstream, kernel.shape[:2], strides)
            of_kernel = _backprop_filter(read, kernel, images, steps, "SAME")
            return tf.nn.conv2d(read, kernel, steps, "SAME"), of_kernel

        return _in_halves(transposed, images), gradients

    return convolve(images, kernel)


def _backprop_filter(images, kernel, upstream, strides, padding):
    return tf.raw_ops.Conv2DBackpropFilter(
        input=images, filter_sizes=tf.shape(kernel), out_backprop=upstream,
        strides=(1, *strides, 1), padding=padding,
    )  # fmt: skip


def _in_halves(convolution, images):
    """Apply `convolution` to both halves of a batch in parallel, if each operation has one core."""
    if not ONE_CORE_PER_OPERATION:
        return convolution(images)
    n = tf.shape(images)[0]
    halves = images[: tf.maximum(n // 2, 1)], images[n // 2 :]  # a single image is in both halves
    return tf.concat([convolution(half) for half in halves], 0)[:n]


def _products_are_faster(images, kernel, strides, padding):
    height, width, channels = images.shape[1:]
    is_small = None not in (height, width) and max(height, width) <= 8
    is_dense = tuple(kernel.shape[:2]) == (3, 3) and tuple(strides) == (1, 1) and padding == "SAME"
    return is_small and is_dense and channels >= 128 and images.dtype == "bfloat16"


def _kernel_gradient(images, kernel, upstream):
    """Return the gradient of a 3x3 kernel as nine products of shifted images and `upstream`."""
    height, width, channels = images.shape[1:]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    upstream = tf.reshape(upstream, [-1, upstream.shape[-1]])
    products = []
    for row, column in np.ndindex(3, 3):
        shifted = padded[:, row : row + height, column : column + width]
        shifted = tf.reshape(shifted, [-1, channels])
        products.append(tf.matmul(shifted, upstream, transpose_a=True))
    return tf.reshape(tf.stack(products), kernel.shape)
