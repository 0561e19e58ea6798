"""What a training runs on: device, precision, fast layers and optimiser, TensorFlow's strategy for several GPUs or machines."""

import contextlib
import ctypes
import functools
import json
import os
import platform
import time
from pathlib import Path

import keras

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def has_gpu():
    """Whether the backend sees a GPU."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def device():
    """Return the device in words: the GPU's name, or the processor's with the number of cores."""
    return _gpu_name() if has_gpu() else _processor_name()


def _gpu_name():
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name()
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    import tensorflow as tf

    return tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])["device_name"]


def _processor_name():
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    features = [word for word in ("avx2", "avx512f", "amx_bf16") if word in text]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor()} ({', '.join(features)})"


def set_precision(precision="auto"):
    """Set Keras's dtype policy and return its name. "auto" times a convolution: bfloat16 if 1.3 times faster.

    On current GPUs it is, on Xeons with AMX and on processors with AVX-512's bfloat16; on other CPUs it is many times slower.
    Several machines have to agree, so there "auto" is bfloat16 on a GPU and float32 without.
    """
    if precision == "auto" and is_multi_worker():
        precision = "mixed_bfloat16" if has_gpu() else "float32"
    if precision == "auto":
        turns = [(_convolution_seconds("float32"), _convolution_seconds("bfloat16")) for _ in range(8)]
        float32, bfloat16 = map(min, zip(*turns, strict=True))  # in turns: what else runs here slows both down
        precision = "mixed_bfloat16" if bfloat16 * 1.3 < float32 else "float32"
    keras.config.set_dtype_policy(precision)
    return precision


def _convolution_seconds(dtype):
    n, channels = (1024, 256) if has_gpu() else (64, 64)  # enough work that a GPU's launch does not count
    images, kernel = keras.ops.ones((n, 16, 16, channels), dtype), keras.ops.ones((3, 3, channels, channels), dtype)
    start = time.perf_counter()
    for _ in range(3):
        result = keras.ops.conv(images, kernel, padding="same")
    keras.ops.convert_to_numpy(keras.ops.cast(result[0, 0, 0, 0], "float32"))  # waits for a GPU
    return time.perf_counter() - start


@keras.saving.register_keras_serializable("cifar100-gan")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer on TensorFlow's fused kernel, which Keras 3 does not use: whole steps are 1.2 times faster."""

    def call(self, inputs, training=None, mask=None):
        if keras.backend.backend() != "tensorflow" or self.synchronized or len(inputs.shape) != 4:
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

    Where an operation has one core (on two, see utils.py), the forward pass takes the two halves of a batch side by side;
    the two gradients are side by side anyway. In bfloat16, the gradient of wide 3x3 kernels at 8x8 and smaller is nine
    matrix products: there oneDNN's own takes two to three times as long.
    """

    def convolution_op(self, inputs, kernel):
        if not _is_plain(self) or self.groups > 1:
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, keras.ops.cast(kernel, self.compute_dtype), self.strides, self.padding.upper())


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
    return plain and keras.backend.backend() == "tensorflow" and not has_gpu()


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
            back = tf.nn.conv2d(upstream, kernel, **arguments)
            return back, tf.raw_ops.Conv2DBackpropFilter(
                input=upstream, filter_sizes=tf.shape(kernel), out_backprop=images, **arguments
            )

        return _in_halves(transposed, images), gradients

    return convolve(images, kernel)


@keras.saving.register_keras_serializable("cifar100-gan")
class Adam(keras.optimizers.Adam):
    """Keras's optimiser on TensorFlow's fused kernel: one pass over each weight where Keras 3 makes some ten.

    A step of a small network is 4 to 7 % faster. The same formula but for an embedding's gradients, of which Keras (on
    TensorFlow) squares each where an index comes twice: here they are added up first, as on its other backends.
    """

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
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
    """Lets a step have the memory that the one before has freed: with TensorFlow on Linux up to 1.2 times faster.

    TensorFlow feeds `fit` from a generator, and then has glibc map each array of 128 KB and more anew, against a leak of
    Python 3.11 (`ApplyPython311MemoryPatch` in its source): every page of it is a fault. This takes that back.
    """

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0 and platform.libc_ver()[0] == "glibc":  # by now TensorFlow has done it
            mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # numbers of glibc's malloc.h
            mallopt(mmap_threshold, 2**30)
            mallopt(trim_threshold, 2**31 - 1)


@functools.cache
def strategy():
    """Return what the notebooks train under: it has `scope()` and `num_replicas_in_sync`.

    MultiWorkerMirroredStrategy where the environment variable TF_CONFIG names this process as one of several workers
    (it then waits for the others), MirroredStrategy with two GPUs or more, else TensorFlow's default, which changes
    nothing. Call it before any other operation of TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        return _OneDevice()
    import tensorflow as tf

    if is_multi_worker():
        return _multi_worker_strategy()
    return tf.distribute.MirroredStrategy() if len(tf.config.list_physical_devices("GPU")) > 1 else tf.distribute.get_strategy()


class _OneDevice:
    """The default strategy of the backends that have none."""

    num_replicas_in_sync = 1
    scope = contextlib.nullcontext


def _multi_worker_strategy():
    import tensorflow as tf

    class MultiWorker(tf.distribute.MultiWorkerMirroredStrategy):
        """TensorFlow's strategy, with what Keras 3 asks of `reduce` and it does not do (Keras issue 20585).

        Keras reduces whole structures, batches of `uint8` of which it wants only the shape, and the mean of scalars along
        an axis.
        """

        def reduce(self, reduce_op, value, axis=None):
            def reduce_one(part):
                local = self.experimental_local_results(part)[0]
                if local.dtype == tf.uint8:
                    return local
                return super(MultiWorker, self).reduce(reduce_op, part, axis if local.shape.rank else None)

            return tf.nest.map_structure(reduce_one, value)

    return MultiWorker()


def is_multi_worker():
    """Whether TF_CONFIG names this process as one of several workers."""
    return len(_cluster_task()[0]) > 1


def is_chief():
    """Whether this process writes results: the first worker, or the only one."""
    return _cluster_task()[1] == 0


def _cluster_task():
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    return config.get("cluster", {}).get("worker", []), config.get("task", {}).get("index", 0)
