"""Fused layers, Adam and memory: Keras's numbers, sooner; and the process that they run in."""

import contextlib
import os
import platform
import subprocess
import sys
import textwrap
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import HAS_AVX512, ROOT

from core import fast


def test_fused_batch_normalization_is_keras_s():
    x = np.random.default_rng(0).normal(2, 3, (16, 8, 8, 5)).astype("float32")
    ours, theirs = fast.BatchNormalization(), keras.layers.BatchNormalization()
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-4)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-4)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=2e-3)  # n - 1 instead of n
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(x, training=False), theirs(x, training=False), atol=1e-4)


@pytest.mark.parametrize(("size", "strides", "products"), [(4, 1, True), (8, 1, True), (16, 1, False), (8, 2, False)])
def test_gradients_of_a_small_convolution_are_keras_s(size, strides, products):
    """In bfloat16 the kernel's gradient comes from matrix products where the picture is small, and is the same."""
    tf = pytest.importorskip("tensorflow")
    if not products and not HAS_AVX512:
        pytest.skip("these are TensorFlow's own bfloat16 gradients, which are coarser without AVX-512")
    keras.utils.set_random_seed(0)
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, size, size, 128)).astype("float32"))
    ours = fast.Conv2D(8, 3, strides, padding="same", use_bias=False, dtype="mixed_bfloat16")
    theirs = keras.layers.Conv2D(8, 3, strides, padding="same", use_bias=False, dtype="float32")
    upstream = np.random.default_rng(1).normal(size=theirs(x).shape).astype("float32")
    ours(x)
    ours.set_weights(theirs.get_weights())

    def gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = tf.cast(layer(x), "float32")
            loss = tf.reduce_sum(outputs * upstream)
        return outputs, *tape.gradient(loss, [x, layer.kernel.value])

    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())  # bfloat16 has 8 bits
    operations = [op.type for op in tf.function(lambda: gradients(ours)).get_concrete_function().graph.get_operations()]
    assert ("Conv2DBackpropFilter" in operations) != products


@pytest.mark.parametrize("layer", ["Conv2D", "Conv2DTranspose"])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides"), [(3, 1), (4, 2), (1, 2)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_convolution_in_halves_is_keras_s(monkeypatch, n, size, strides, padding, layer):
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    images = keras.ops.convert_to_tensor(np.random.default_rng(n).normal(size=(n, 7, 7, 8)).astype("float32"))
    ours, theirs = (  # 8 channels: with fewer, Keras's own ends the process where there is no AVX-512
        getattr(source, layer)(8, size, strides, padding=padding, activation="tanh") for source in (fast, keras.layers)
    )
    ours(images), theirs(images)
    ours.set_weights(theirs.get_weights())

    @tf.function(input_signature=[tf.TensorSpec((None, 7, 7, 8))])  # as in `fit`, the batch is not known beforehand
    def outputs_and_gradients(images):
        results = []
        for layer in (ours, theirs):
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = layer(images)
                loss = tf.reduce_sum(outputs**2)
            results.append((outputs, *tape.gradient(loss, [images, *(weight.value for weight in layer.weights)])))
        return results

    for one, other in zip(*outputs_and_gradients(images), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    if (layer, padding) != ("Conv2DTranspose", "valid"):  # which is Keras's own
        operations = [op.type for op in outputs_and_gradients.get_concrete_function().graph.get_operations()]
        forward = {"Conv2D": "Conv2D", "Conv2DTranspose": "Conv2DBackpropInput"}[layer]
        assert operations.count(forward) == 2 + 1


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_a_1x1_convolution_of_few_channels_passes_over_pixels(channels):
    """The shortcut of a narrow ResNet. Its gradients are compared with NumPy's: Keras's own may end the process."""
    script = f"""
        import core, keras, numpy as np
        import tensorflow as tf
        from core import fast

        rng = np.random.default_rng(0)
        for layer, strides in ((fast.Conv2D, 2), (fast.Conv2DTranspose, 2), (fast.Conv2D, (2, 3))):
            layer = layer({channels}, 1, strides, padding="same", use_bias=False)
            images = rng.normal(size=(5, 14, 14, {channels})).astype("float32")
            for _ in range(20):
                with tf.GradientTape() as tape:
                    outputs = layer(images)
                    loss = tf.reduce_sum(outputs**2) / 2
                gradient = tape.gradient(loss, layer.kernel.value).numpy()[0, 0]
            rows, columns = layer.strides
            if isinstance(layer, fast.Conv2D):
                seen, made = images[:, ::rows, ::columns], outputs.numpy()
                expected = np.einsum("nhwi,nhwo->io", seen, made)
            else:
                seen, made = images, outputs.numpy()[:, ::2, ::2]
                assert np.count_nonzero(outputs) == np.count_nonzero(made)
                expected = np.einsum("nhwi,nhwo->oi", seen, made)
            kernel = layer.kernel.numpy()[0, 0]
            kernel = kernel if isinstance(layer, fast.Conv2D) else kernel.T
            np.testing.assert_allclose(made, seen @ kernel, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)
        print("right")
    """
    assert last_word(textwrap.dedent(script)) == "right"


@pytest.mark.parametrize("layer", ["Conv2D", "Conv2DTranspose"])
def test_a_convolution_takes_images_of_any_size(layer):
    images = keras.Input((None, None, 3))
    model = keras.Model(images, getattr(fast, layer)(4, 3, 2, padding="same")(images))
    assert model.predict(np.zeros((2, 6, 8, 3)), verbose=0).shape == ((2, 3, 4, 4) if layer == "Conv2D" else (2, 12, 16, 4))


def last_word(script, **environment):
    """Return the last word that a new process prints."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_NUM_INTRAOP_THREADS"} | environment
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_on_two_cores_an_operation_has_one():
    script = "import os; os.cpu_count = lambda: {}; import core; print(os.environ.get('TF_NUM_INTRAOP_THREADS'))"
    assert [last_word(script.format(cores)) for cores in (1, 2, 8)] == ["None", "1", "None"]
    assert last_word(script.format(2), TF_NUM_INTRAOP_THREADS="2") == "2"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_a_training_step_has_the_memory_of_the_one_before():
    script = """
        import resource
        import core, keras, numpy as np
        from core import fast
        from core.batches import Batches

        model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(100)])
        model.compile("sgd", "mse")
        batches = Batches(np.zeros((8, 32, 32, 3), "uint8"), np.zeros(8, int), 4)
        model.fit(batches, verbose=0, callbacks=[fast.KeepMemory()])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            np.ones(2**20, "uint8")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    assert int(last_word(textwrap.dedent(script))) < 1000  # each time anew, these arrays have 25,600 pages


def train_with(optimizer, first, inputs):
    """Take ten steps with a small network that begins with the layer `first`; return losses and weights."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([first, keras.layers.Dense(4)])
    model(inputs)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    model.compile(optimizer(0.01, beta_2=0.99, epsilon=1e-4, weight_decay=0.1), "mse")
    losses = [model.train_on_batch(inputs, rng.normal(size=(len(inputs), 4)).astype("float32")) for _ in range(10)]
    return losses, *model.get_weights()


def test_fused_adam_is_keras_s():
    tf = pytest.importorskip("tensorflow")
    inputs = np.random.default_rng(0).normal(size=(8, 9)).astype("float32")
    with mock.patch.object(tf.raw_ops, "ResourceApplyAdam", wraps=tf.raw_ops.ResourceApplyAdam) as fused:
        ours = train_with(fast.Adam, keras.layers.Dense(6), inputs)
    assert fused.called
    for one, other in zip(ours, train_with(keras.optimizers.Adam, keras.layers.Dense(6), inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_fused_adam_adds_up_an_embedding_s_gradients_before_it_squares_them():
    """As for the same layer on one-hot vectors; Keras's own squares each of an index that comes twice (on TensorFlow)."""
    indices = np.array([0, 0, 0, 1, 2, 2])
    embedded = train_with(fast.Adam, keras.layers.Embedding(4, 6), indices)
    one_hot = train_with(fast.Adam, keras.layers.Dense(6, use_bias=False), np.eye(4, dtype="float32")[indices])
    for one, other in zip(embedded, one_hot, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_one_switch_makes_everything_keras_s_own(monkeypatch):
    """What TensorFlow is asked for, with the switch on and off."""
    tf = pytest.importorskip("tensorflow")
    fused = ("FusedBatchNormV3", "ResourceApplyAdam")
    asked = {}
    for on in (True, False):
        monkeypatch.setattr(fast, "ENABLED", on)
        with contextlib.ExitStack() as stack:
            spies = [stack.enter_context(mock.patch.object(tf.raw_ops, op, wraps=getattr(tf.raw_ops, op))) for op in fused]
            for part in ("_convolve", "_convolve_transposed"):
                spies.append(stack.enter_context(mock.patch.object(fast, part, wraps=getattr(fast, part))))
            image = keras.Input((8, 8, 3))
            x = fast.BatchNormalization()(fast.Conv2DTranspose(2, 4, 2, padding="same")(fast.Conv2D(2, 3, padding="same")(image)))
            model = keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
            model.compile(fast.Adam(), "mse")
            model.train_on_batch(np.zeros((2, 8, 8, 3)), np.zeros((2, 1)))
            asked[on] = [spy.called for spy in spies]
    assert asked == {True: [True] * 4, False: [False] * 4}


def test_tensorflow_does_not_greet():
    """A process that starts as the notebooks and the programs do prints nothing of its own accord."""
    for script in ("import utils, keras; from core import devices; devices.has_gpu(); devices.strategy()", "import tools.bench"):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    script = "import core, sys; import tensorflow as tf; print('heard', file=sys.stderr); tf.zeros((2, 3)) @ tf.zeros((2, 3))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "heard" in done.stderr
    assert "InvalidArgumentError" in done.stderr  # errors are still to be read
