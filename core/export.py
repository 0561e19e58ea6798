"""Trained networks as files that plain Keras loads: its own layers, and weights in float16."""

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from core import layers
from core.cifar100 import DataError
from core.files import atomic_write

WEIGHTS = "model.weights.h5"  # in a .keras file, which is a zip archive
CLASS_NAMES = "class_names.json"  # ours; Keras ignores it
# What Keras writes into configurations since 3.8, which older versions refuse, and its defaults.
NEW_SINCE_KERAS_3_8 = {
    "quantization_config": None, "input_axes": None, "output_axes": None, "ragged": False,
    "renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99,
}  # fmt: skip


class NetworkError(RuntimeError):
    """A network that could not be saved or measured after training; the message says why."""


def check_classifier(model: keras.Model) -> None:
    """Refuse an untrained classifier that could not be saved, loaded or measured later.

    Raises `NetworkError` if it cannot be saved and loaded, if the loaded network answers
    differently, or if its answers to images `uint8` (n, 32, 32, 3) are not probabilities.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            loaded = keras.saving.load_model(save(model, Path(folder) / "untrained.keras"))
        outputs = [each(images, training=False) for each in (model, loaded)]
        expected, answers = map(keras.ops.convert_to_numpy, outputs)
    except Exception as error:  # Keras raises many kinds
        reason = str(error).partition("\n")[0]
        raise NetworkError(
            f"This network could not be saved after training ({reason}). Use Keras layers and "
            "keras.ops functions rather than Lambda or a subclass of Model, and put "
            "@keras.saving.register_keras_serializable() above a layer class of your own."
        ) from error
    if not np.allclose(answers, expected, rtol=0.25, atol=1e-4):  # the model may be in bfloat16
        raise NetworkError(
            "A copy of this network that was saved and loaded answers differently. Does get_config "
            "of your own layer return all of its arguments?"
        )
    if (expected < 0).any() or not np.allclose(expected.sum(axis=-1), 1, atol=1e-3):
        raise NetworkError(
            "The outputs of this network are not probabilities, which the loss and the measures "
            "need: they do not add up to 1. Is the softmax of the last layer missing?"
        )


def save(model: keras.Model, path: Path, class_names: Sequence[str] = ()) -> Path:
    """Write a network for plain Keras, rounded to float16 and without optimiser; return `path`.

    The names of its classes, in the order of its outputs, travel inside the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.keras"
        in_keras_layers(model).save(full)
        with zipfile.ZipFile(full) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    files[WEIGHTS] = _in_float16(files[WEIGHTS])
    files["config.json"] = json.dumps(_for_older_keras(json.loads(files["config.json"])))
    files[CLASS_NAMES] = json.dumps(list(class_names))
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def class_names(path: Path) -> list[str]:
    """Return the class names that `save` has put into a network's file. Raises `DataError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = json.loads(archive.read(CLASS_NAMES))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} does not say which classes it knows: {error}") from error
    return names


def _for_older_keras(config: Any) -> Any:
    """Return a nested configuration without new entries that have their default value."""
    if isinstance(config, list):
        return [_for_older_keras(each) for each in config]
    if not isinstance(config, dict):
        return config
    new = {name for name, default in NEW_SINCE_KERAS_3_8.items() if config.get(name) == default}
    return {name: _for_older_keras(value) for name, value in config.items() if name not in new}


def in_keras_layers(model: keras.Model) -> keras.Model:
    """Return an uncompiled copy of a network in float32 without the layers of core/layers.py."""
    ends = [each if len(each) > 1 else each[0] for each in (model.inputs, model.outputs)]
    uncompiled = keras.Model(*ends, name=model.name)  # a Sequential has no `input` of its own
    portable = keras.models.clone_model(uncompiled, clone_function=_in_float32, recursive=True)
    portable.set_weights(model.get_weights())
    return portable


def _in_float32(layer):
    kind = next(kind for kind in type(layer).__mro__ if kind.__module__ != layers.__name__)
    config = layer.get_config()
    if isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.InputLayer):
        config["dtype"] = "float32"
    return kind.from_config(config)


def _in_float16(weights: bytes) -> bytes:
    """Return an HDF5 file with float16 in place of float32; Keras converts it back on loading."""
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
