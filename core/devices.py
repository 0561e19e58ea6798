"""What a training runs on: device, precision, and TensorFlow's strategy for several GPUs or machines."""

import contextlib
import functools
import json
import os
import platform
import time
from pathlib import Path

import keras

import core

if core.HEADLESS:
    keras.config.disable_interactive_logging()


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
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    features = [word for word in ("avx2", "avx512f", "amx_bf16") if word in text]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor()} ({', '.join(features)})"


def set_precision(precision="auto"):
    """Set Keras's dtype policy and return its name. "auto" times a convolution: bfloat16 if 1.3 times faster (GPU: 1.05).

    On current GPUs it is, on Xeons with AMX and on processors with AVX-512's bfloat16; on other CPUs it is many times slower.
    On a GPU the rest of a network gains too, as it is moved in half as many bytes.
    Several machines have to agree, so there "auto" is bfloat16 on a GPU and float32 without.
    """
    if precision == "auto" and is_multi_worker():
        precision = "mixed_bfloat16" if has_gpu() else "float32"
    if precision == "auto":
        turns = [(_convolution_seconds("float32"), _convolution_seconds("bfloat16")) for _ in range(8)]
        float32, bfloat16 = map(min, zip(*turns, strict=True))  # in turns: what else runs here slows both down
        precision = "mixed_bfloat16" if bfloat16 * (1.05 if has_gpu() else 1.3) < float32 else "float32"
    keras.config.set_dtype_policy(precision)
    return precision


def _convolution_seconds(dtype):
    n, channels = (1024, 256) if has_gpu() else (64, 64)  # enough work that a GPU's launch does not count
    images, kernel = keras.ops.ones((n, 16, 16, channels), dtype), keras.ops.ones((3, 3, channels, channels), dtype)
    _wait_for(images)
    start = time.perf_counter()
    for _ in range(3):
        result = keras.ops.conv(images, kernel, padding="same")
    _wait_for(result)
    return time.perf_counter() - start


def _wait_for(images):
    """Read one value of a tensor (n, height, width, channels): a GPU answers when all of it is there."""
    keras.ops.convert_to_numpy(keras.ops.cast(images[0, 0, 0, 0], "float32"))


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
