"""Save networks in files that plain Keras can load, with its own layers and float16 weights."""

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import keras
import numpy as np

from core import layers
from core.cifar100 import DataError
from core.files import atomic_write

WEIGHTS = "model.weights.h5"  # inside a .keras file, which is a zip archive
CLASS_NAMES = "class_names.json"  # added by this project; Keras ignores it
# Entries of configurations, with their defaults, that newer versions write and Keras 3.8 rejects.
NEW_SINCE_KERAS_3_8 = {
    "quantization_config": None, "input_axes": None, "output_axes": None, "ragged": False,
    "renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99,
}  # fmt: skip


class NetworkError(RuntimeError):
    """Raised before training if a network could not be saved or evaluated; it says why."""


def check_classifier(model: keras.Model) -> None:
    """Check before training that a classifier can be saved, loaded and evaluated.

    Raises `NetworkError` if it cannot be saved and loaded, if the loaded network has different
    outputs, or if the outputs for `uint8` images (n, 32, 32, 3) are not probabilities.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            loaded = keras.saving.load_model(save(model, Path(folder) / "untrained.keras"))
        outputs = [network(images, training=False) for network in (model, loaded)]
        expected, actual = map(keras.ops.convert_to_numpy, outputs)
    except Exception as error:  # Keras raises exceptions of many types
        reason = str(error).partition("\n")[0]
        raise NetworkError(
            f"This network cannot be saved and loaded, so it is not trained ({reason}). Use Keras "
            "layers and keras.ops functions rather than Lambda or a subclass of Model, and "
            "decorate your own layers with @keras.saving.register_keras_serializable()."
        ) from error
    if not np.allclose(actual, expected, rtol=0.25, atol=1e-4):  # the model may use bfloat16
        raise NetworkError(
            "This network gives different outputs after it has been saved and loaded. Check that "
            "get_config of each of your own layers returns all arguments of its constructor."
        )
    if (expected < 0).any() or not np.allclose(expected.sum(axis=-1), 1, atol=1e-3):
        raise NetworkError(
            "The outputs of this network are not probabilities, which the loss and the metrics "
            "need: some are negative, or they do not add up to 1. Check that the last layer has a "
            "softmax activation."
        )


def save(model: keras.Model, path: Path, class_names: Sequence[str] = ()) -> Path:
    """Save a network for plain Keras, with float16 weights and its class names; return `path`.

    The state of its optimiser is not saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.keras"
        in_keras_layers(model).save(full)
        with zipfile.ZipFile(full) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    files[WEIGHTS] = _in_float16(files[WEIGHTS])
    config = json.loads(files["config.json"], object_hook=_for_older_keras)  # at every level
    files["config.json"] = json.dumps(config)
    files[CLASS_NAMES] = json.dumps(list(class_names))
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def class_names(path: Path) -> list[str]:
    """Return the class names in a network's file.

    Raises `DataError` if there is no such file, or no class names in it.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. Train a network first, or check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = json.loads(archive.read(CLASS_NAMES))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        advice = "Save the network with core.export.save."
        raise DataError(f"{path} contains no class names ({error}). {advice}") from error
    return names


def _for_older_keras(config: dict) -> dict:
    """Return a configuration without the entries that are new and have default values."""
    new = {name for name, default in NEW_SINCE_KERAS_3_8.items() if config.get(name) == default}
    return {name: value for name, value in config.items() if name not in new}


def in_keras_layers(model: keras.Model) -> keras.Model:
    """Return an uncompiled float32 copy with Keras's layers in place of those of core/layers.py."""
    both = model.inputs, model.outputs  # a Sequential has no `input` of its own
    inputs, outputs = (tensors if len(tensors) > 1 else tensors[0] for tensors in both)
    uncompiled = keras.Model(inputs, outputs, name=model.name)
    portable = keras.models.clone_model(uncompiled, clone_function=_in_float32, recursive=True)
    portable.set_weights(model.get_weights())
    return portable


def _in_float32(layer):
    classes = type(layer).__mro__
    layer_class = next(base for base in classes if base.__module__ != layers.__name__)
    config = layer.get_config()
    if isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.InputLayer):
        config["dtype"] = "float32"
    return layer_class.from_config(config)


def _in_float16(weights: bytes) -> bytes:
    """Return the bytes of an HDF5 file in float16 instead of float32; Keras converts them back."""
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as source, h5py.File(halved, "w") as target:
        source.visititems(lambda name, item: _copy(name, item, target))
    return halved.getvalue()


def _copy(name, item, target):
    if isinstance(item, h5py.Dataset):
        values = item[()]
        values = values.astype("float16") if values.dtype == np.float32 else values
        copied = target.create_dataset(name, data=values)
    else:
        copied = target.require_group(name)
    copied.attrs.update(item.attrs)
