"""Fast layers give Keras's numbers; and what importing `core` does to a process."""

import platform
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import HAS_AVX512, run_script

from core import layers, optimizers

tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize("choices", [{}, {"axis": 3}, {"axis": 1}, {"renorm": True}])
def test_batch_normalization_matches_keras(choices):
    x = np.random.default_rng(0).normal(2, 3, (16, 5, 5, 5)).astype("float32")
    ours, theirs = layers.BatchNormalization(**choices), keras.layers.BatchNormalization(**choices)
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-4)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-6)  # n - 1 pixels instead of n
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(x, training=False), theirs(x, training=False), atol=1e-4)


def outputs_and_gradients(layer, images):
    """Return a layer's outputs, and the gradients of the sum of their squares."""
    weights = [weight.value for weight in layer.weights]
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = tf.cast(layer(images), "float32")
        loss = tf.reduce_sum(outputs**2)
    return outputs, *tape.gradient(loss, [images, *weights])


def normal(*shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape), "float32")


def operations(function):
    """Return the types of TensorFlow's operations in a traced function."""
    return [each.type for each in function.get_concrete_function().graph.get_operations()]


@pytest.mark.parametrize(
    ("size", "strides", "products"), [(4, 1, True), (8, 1, True), (16, 1, False), (8, 2, False)]
)
def test_gradients_of_small_bfloat16_convolutions_match_keras(size, strides, products):
    """On small images, matrix products give the gradient of the kernel."""
    if not products and not HAS_AVX512:
        pytest.skip("TensorFlow's own bfloat16 gradients are coarser without AVX-512")
    images, choices = normal(4, size, size, 128), {"padding": "same", "use_bias": False}
    ours = layers.Conv2D(8, 3, strides, dtype="mixed_bfloat16", **choices)
    theirs = keras.layers.Conv2D(8, 3, strides, dtype="float32", **choices)
    ours.build(images.shape), theirs.build(images.shape)
    ours.set_weights(theirs.get_weights())
    results = outputs_and_gradients(ours, images), outputs_and_gradients(theirs, images)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())  # 8 bits
    used = operations(tf.function(lambda: outputs_and_gradients(ours, images)))
    assert ("Conv2DBackpropFilter" in used) != products


@pytest.mark.parametrize("name", ["Conv2D", "Conv2DTranspose"])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides"), [(3, 1), (4, 2), (1, 2)])
def test_a_convolution_split_in_two_matches_keras(monkeypatch, size, strides, padding, name):
    monkeypatch.setattr(layers, "ONE_CORE_PER_OPERATION", True)
    ours, theirs = (  # 8 channels: with fewer, Keras's crashes the process without AVX-512
        getattr(source, name)(8, size, strides, padding=padding, activation="tanh")
        for source in (layers, keras.layers)
    )
    ours.build((None, 7, 7, 8)), theirs.build((None, 7, 7, 8))
    ours.set_weights(theirs.get_weights())

    @tf.function(input_signature=[tf.TensorSpec((None, 7, 7, 8))])  # any batch size, as in `fit`
    def both(images):
        return outputs_and_gradients(ours, images), outputs_and_gradients(theirs, images)

    for n in (1, 2, 5):
        for one, other in zip(*both(normal(n, 7, 7, 8)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    if (name, padding) != ("Conv2DTranspose", "valid"):  # there, Keras's own layer is used
        forward = {"Conv2D": "Conv2D", "Conv2DTranspose": "Conv2DBackpropInput"}[name]
        assert operations(both).count(forward) == 2 + 1
    any_size = keras.Input((None, None, 8))
    assert ours(any_size).shape == theirs(any_size).shape


def test_layers_and_adam_use_the_faster_kernels(monkeypatch):
    spies = []
    for place, name in (
        (tf.raw_ops, "FusedBatchNormV3"), (tf.raw_ops, "ResourceApplyAdam"),
        (layers, "_convolve"), (layers, "_convolve_transposed"),
    ):  # fmt: skip
        spies.append(mock.Mock(wraps=getattr(place, name)))
        monkeypatch.setattr(place, name, spies[-1])
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3, padding="same")(image)
    x = layers.BatchNormalization()(layers.Conv2DTranspose(2, 4, 2, padding="same")(x))
    model = keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    model.compile(optimizers.Adam(), "mse")
    model.train_on_batch(np.zeros((2, 8, 8, 3)), np.zeros((2, 1)))
    assert [spy.called for spy in spies] == [True] * 4


def test_on_two_cores_an_operation_has_one():
    script = """
        import os
        os.cpu_count = lambda: {}
        import core
        print(os.environ.get("TF_NUM_INTRAOP_THREADS"))
    """
    done = [run_script(script.format(n), TF_NUM_INTRAOP_THREADS=None) for n in (2, 8)]
    assert [each.stdout for each in done] == ["1\n", "None\n"]


@pytest.mark.slow
def test_small_gradients_do_not_crash_warnings_stay_and_steps_reuse_memory():
    """TensorFlow has to warn of a missing file, as of a missing CUDA library.

    Keras's own gradient of a 1x1 convolution of few channels may crash the process. If memory were
    not reused, the arrays at the end would cause 25,600 page faults.
    """
    script = """
        import core, keras
        import contextlib, resource
        import numpy as np, tensorflow as tf
        from core import layers, training
        from core.batches import Batches

        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.read_file("missing.so")

        for channels in (3, 4, 8) * 20:
            images = tf.random.normal((5, 14, 14, channels))
            for kind in (layers.Conv2D, layers.Conv2DTranspose):
                layer = kind(channels, 1, 2, padding="same")
                layer.build(images.shape)
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(layer(images) ** 2)
                assert np.isfinite(tape.gradient(loss, layer.kernel.value)).all()

        pixels = keras.Input((32, 32, 3))
        model = keras.Model(pixels, keras.layers.Dense(100)(keras.layers.Flatten()(pixels)))
        model.compile("sgd", "mse")
        batches = Batches(np.zeros((8, 32, 32, 3), "uint8"), np.zeros(8, int), 4)
        model.fit(batches, verbose=0, callbacks=[training.ReuseMemory()])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            np.ones(2**20, "uint8")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = run_script(script, TF_NUM_INTRAOP_THREADS=None, TF_CPP_MIN_LOG_LEVEL=None)
    assert done.returncode == 0, done.stderr
    assert "missing.so" in done.stderr
    if platform.libc_ver()[0] == "glibc":  # only glibc has the setting
        assert int(done.stdout) < 1000
