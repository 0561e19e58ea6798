"""Learning rates by step, and the optimiser that takes orthogonal steps."""

import keras
import numpy as np
import pytest

from core.muon import Muon, orthogonal
from core.schedules import OneCycle


def test_one_cycle_rises_and_falls():
    rate = OneCycle(1.0, 100, 0.2)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == pytest.approx(1 / 20)
    assert max(values) == values[19] == pytest.approx(1.0)
    assert values[59] == pytest.approx(0.5)
    assert values[99] == values[100] == 0.0
    assert float(OneCycle(1.0, 100, 0.0)(0)) == pytest.approx(1.0)
    assert float(OneCycle(1.0, 1, 1.0)(0)) == 0.0  # a training of one step
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    assert float(again(30)) == float(rate(30))


@pytest.mark.parametrize("shape", [(144, 16), (27, 64), (8, 8)])
def test_an_orthogonal_matrix_keeps_its_directions(shape):
    """Singular values near 1, as five steps reach in bfloat16; the singular vectors of the largest stay."""
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    made = np.array(orthogonal(keras.ops.convert_to_tensor(matrix)))
    values = np.linalg.svd(made, compute_uv=False)
    assert values.max() < 1.3
    assert np.sort(values)[1] > 0.5  # a square matrix can have one near 0
    assert np.diag(u.T @ made @ v.T)[0] > 0.6
    assert abs((u.T @ made @ v.T)[0, 1]) < 0.1


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, use_bias=False)(image))
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(x)))
    return model, image


def test_muon_learns_and_keeps_the_norm_of_kernels(tmp_path):
    model, _ = network()
    images = np.random.default_rng(0).random((64, 8, 8, 3)).astype("float32")
    labels = images.mean((1, 2)).argmax(1)
    model.compile(Muon(OneCycle(0.025, 120)), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(images, labels, epochs=60, verbose=0).history
    assert history["accuracy"][-1] > 0.8  # chance is 0.33
    assert np.linalg.norm(np.array(model.layers[1].kernel)) == pytest.approx(8**0.5, rel=1e-4)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert (type(restored.optimizer), restored.optimizer.ratio) == (Muon, 4.0)


def test_muon_takes_a_relative_step_for_kernels_and_sgd_s_for_the_rest():
    model, _ = network()
    model.compile(Muon(0.1, ratio=2.0), "sparse_categorical_crossentropy")
    plain, _ = network()
    plain.compile(keras.optimizers.SGD(0.2, 0.9, nesterov=True), "sparse_categorical_crossentropy")
    kernel = np.array(model.layers[1].kernel)
    images, labels = np.random.default_rng(0).random((16, 8, 8, 3)).astype("float32"), np.arange(16) % 5
    for each in (model, plain):
        each.train_on_batch(images, labels)
    np.testing.assert_allclose(np.array(model.layers[-1].kernel), np.array(plain.layers[-1].kernel), atol=1e-6)
    moved = np.array(model.layers[1].kernel)
    before, after = kernel / np.linalg.norm(kernel), moved / np.linalg.norm(moved)
    assert 0.03 < np.linalg.norm(after - before) < 0.2  # a step of 0.1, in eight directions of about 1, over a norm of 8**0.5
