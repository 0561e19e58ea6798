"""Trained networks as files that plain Keras loads: in its own layers, the weights as float16."""

import io
import os
import zipfile

import h5py
import keras
import numpy as np

from core import fast

WEIGHTS = "model.weights.h5"  # in a .keras file, which is a zip archive


def save(model, path):
    """Write a network to a `.keras` file that `keras.saving.load_model` reads without this project, whole or not at all.

    Its layers are Keras's own, in float32. Its weights are rounded to float16, which halves the file. Returns `path`.
    """
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.keras")
    try:
        in_keras_layers(model).save(partial)
        _as_float16(partial)
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def in_keras_layers(model):
    """Return a copy of a network with the same weights, in float32 and without the layers of core/fast.py."""

    portable = keras.models.clone_model(model, clone_function=_in_float32, recursive=True)
    portable.set_weights(model.get_weights())
    return keras.Model(portable.inputs, portable.output, name=model.name)  # without an optimiser, which a clone brings along


def _in_float32(layer):
    kind = next(kind for kind in type(layer).__mro__ if kind.__module__ != fast.__name__)
    computes = isinstance(layer, keras.Layer) and not isinstance(layer, keras.layers.InputLayer)
    return kind.from_config(layer.get_config() | ({"dtype": "float32"} if computes else {}))


def _as_float16(path):
    """Rewrite a `.keras` file's weights as float16; Keras makes them float32 again when it loads them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(files[WEIGHTS])) as source, h5py.File(halved, "w") as target:
        source.visititems(lambda name, item: _copy(name, item, target))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | {WEIGHTS: halved.getvalue()}).items():
            archive.writestr(name, content)


def _copy(name, item, target):
    if isinstance(item, h5py.Dataset):
        kept = item[()]
        copied = target.create_dataset(name, data=kept.astype("float16") if kept.dtype == np.float32 else kept)
    else:
        copied = target.require_group(name)
    copied.attrs.update(item.attrs)
