"""What a smoke test takes in place of VGG-16 and of a trained generator: as small as it gets, the same inputs and outputs."""

import keras
from keras import layers, ops

from core import fast


def network(mean, variance):
    """Return a classifier with two convolutions: `uint8` (32, 32, 3) in, probabilities (100,) out."""
    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    x = layers.Normalization(mean=mean, variance=variance)(image)
    for channels in (8, 16):
        x = fast.Conv2D(channels, 3, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(fast.BatchNormalization(momentum=0.9)(x))
    return keras.Model(image, layers.Dense(100, activation="softmax", dtype="float32")(layers.Flatten()(x)))


def generator():
    """Return an untrained generator: noise (8,) and a label in, an image -1 to 1 and a confidence 0 to 1 out."""
    keras.utils.set_random_seed(0)
    noise, label = keras.Input((8,)), keras.Input((), dtype="int32")
    x = layers.Embedding(100, 8, embeddings_initializer="normal")(label) + noise
    image = layers.Reshape((32, 32, 3))(layers.Dense(32 * 32 * 3, activation="tanh", dtype="float32")(x))
    return keras.Model([noise, label], [image, ops.sigmoid(ops.mean(image, axis=(1, 2, 3)))])
