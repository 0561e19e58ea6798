"""Devices and precision: GPU or CPU, dtype policy, and TensorFlow's distribution strategies."""

import contextlib
import functools
import json
import logging
import os
import platform
import time
import types
from pathlib import Path

import keras
import numpy as np

from core.files import atomic_write

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch
elif BACKEND == "jax":
    import jax
else:
    import tensorflow as tf

    # Hide a warning for every network that a notebook rebuilds. The import resets the level.
    logging.getLogger("tensorflow").setLevel("ERROR")

keras.config.set_image_data_format("channels_last")  # whatever ~/.keras/keras.json says
keras.config.set_floatx("float32")


def hide_gpus_from_tensorflow() -> None:
    """Keep TensorFlow, if it is installed, off the GPU that another backend uses."""
    with contextlib.suppress(ImportError):
        import tensorflow

        tensorflow.config.set_visible_devices([], "GPU")


def has_gpu() -> bool:
    """Return whether the backend sees a GPU."""
    if BACKEND == "torch":
        return torch.cuda.is_available()
    if BACKEND == "jax":
        return jax.default_backend() == "gpu"
    return bool(tf.config.list_physical_devices("GPU"))


def device() -> str:
    """Return the name of the GPU or, on a CPU, its number of cores, name and features."""
    if not has_gpu():
        return _processor(Path("/proc/cpuinfo"))
    if BACKEND == "torch":
        return torch.cuda.get_device_name()
    if BACKEND == "jax":
        return jax.devices()[0].device_kind
    gpu = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(gpu)["device_name"]


def _processor(info):
    text = info.read_text(encoding="utf-8") if info.exists() else ""  # exists only on Linux
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    names.append(platform.processor() or platform.machine())
    features = [word for word in ("avx2", "avx512f", "amx_bf16") if word in text]
    words = f"{os.cpu_count()} cores, {names[0]}".removesuffix(", ")
    return f"{words} ({', '.join(features)})" if features else words


def set_precision(precision: str = "auto", folder: Path | None = None) -> str:
    """Set Keras's dtype policy to `precision` and return its name.

    "auto" chooses "mixed_bfloat16" if it makes a convolution more than 1.3 times as fast (1.05
    times on a GPU, where the rest of a network gains as well), and otherwise "float32". The
    precision is part of what defines a training run, so the choice is stored in `folder`, if given,
    and reused on the same device and backend. Several workers must agree without measuring, so for
    them "auto" is "mixed_bfloat16" on a GPU and "float32" on a CPU.
    """
    if precision == "auto" and is_multi_worker():
        precision = "mixed_bfloat16" if has_gpu() else "float32"
    elif precision == "auto":
        precision = _kept_precision(folder) if folder else _faster_precision()
    keras.config.set_dtype_policy(precision)
    return precision


def _kept_precision(folder):
    path, here = Path(folder) / "precision.json", {"device": device(), "backend": BACKEND}
    with contextlib.suppress(OSError, ValueError):  # the file is missing or damaged
        for precision in ("float32", "mixed_bfloat16"):
            if json.loads(path.read_text(encoding="utf-8")) == here | {"precision": precision}:
                return precision
    precision = _faster_precision()
    with contextlib.suppress(OSError):  # if it cannot be written, the next call measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(here | {"precision": precision}).encode())
    return precision


def _faster_precision():
    seconds = convolution_seconds()
    gain = seconds["float32"] / seconds["bfloat16"]
    return "mixed_bfloat16" if gain > (1.05 if has_gpu() else 1.3) else "float32"


def convolution_seconds() -> dict[str, float]:
    """Return the seconds of three convolutions in "float32" and "bfloat16": the best of eight."""
    dtypes = ("float32", "bfloat16")  # they take turns, as other programs may slow down either
    turns = [[_time_convolutions(dtype) for dtype in dtypes] for _ in range(8)]
    return dict(zip(dtypes, np.min(turns, axis=0).tolist(), strict=True))


def _time_convolutions(dtype):
    n, channels = (1024, 256) if has_gpu() else (64, 64)  # a GPU needs more to hide launch times
    images = keras.ops.ones((n, 16, 16, channels), dtype)
    kernel = keras.ops.ones((3, 3, channels, channels), dtype)
    _wait_for(images)
    start = time.perf_counter()
    for _ in range(3):
        outputs = keras.ops.conv(images, kernel, padding="same")
    _wait_for(outputs)
    return time.perf_counter() - start


def _wait_for(images):  # reading one value waits until a GPU has computed the whole tensor
    keras.ops.convert_to_numpy(keras.ops.cast(images[0, 0, 0, 0], "float32"))


if BACKEND != "tensorflow" and has_gpu():
    hide_gpus_from_tensorflow()


@functools.cache
def strategy() -> object:
    """Return the `tf.distribute` strategy to train under. Call this before any other operation."""
    if BACKEND != "tensorflow":
        return types.SimpleNamespace(scope=contextlib.nullcontext, num_replicas_in_sync=1)
    if is_multi_worker():
        return _multi_worker_strategy()  # waits until all workers have started
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _multi_worker_strategy():
    class MultiWorker(tf.distribute.MultiWorkerMirroredStrategy):
        """A strategy that can reduce the nested structures of Keras 3 (Keras issue 20585)."""

        def reduce(self, reduce_op, value, axis=None):
            reduce = super().reduce

            def reduce_one(part):
                local = self.experimental_local_results(part)[0]
                if local.dtype == tf.uint8:  # images; Keras only needs their shape
                    return local
                return reduce(reduce_op, part, axis if local.shape.rank else None)

            return tf.nest.map_structure(reduce_one, value)

    return MultiWorker()


def is_multi_worker() -> bool:
    """Return whether TF_CONFIG names this process as one of several workers."""
    return len(_tf_config().get("cluster", {}).get("worker", [])) > 1


def is_chief() -> bool:
    """Return whether this process writes results, because it is the first or the only worker."""
    return _tf_config().get("task", {}).get("index", 0) == 0


def _tf_config():
    return json.loads(os.environ.get("TF_CONFIG") or "{}")
