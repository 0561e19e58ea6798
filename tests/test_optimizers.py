"""Adam on a fused kernel, Muon, and the one-cycle learning rate."""

import keras
import numpy as np
import pytest

from core.optimizers import Adam, Muon, OneCycle, orthogonalize


def train_with(optimizer, first, inputs):
    """Take ten steps with a small network that begins with a layer; return losses and weights."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([first, keras.layers.Dense(4, use_bias=False)])
    model(inputs)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    model.compile(optimizer(0.01, beta_2=0.99, epsilon=1e-4, weight_decay=0.1), "mse")
    targets = rng.normal(size=(10, len(inputs), 4))
    return [model.train_on_batch(inputs, each) for each in targets], *model.get_weights()


def test_adam_matches_keras():
    """An embedding learns as from one-hot vectors; Keras's differs where an index occurs twice."""
    indices = np.array([0, 0, 0, 1, 2, 2])
    one_hot = np.eye(4, dtype="float32")[indices]
    plain, fused = (keras.layers.Dense(6, use_bias=False) for _ in range(2))
    expected = train_with(keras.optimizers.Adam, plain, one_hot)
    for first, inputs in ((fused, one_hot), (keras.layers.Embedding(4, 6), indices)):
        for one, other in zip(train_with(Adam, first, inputs), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_weight_decay_touches_kernels_and_embeddings_only():
    """Without gradients, nothing else moves a weight."""
    x, label = keras.Input((8, 8, 3)), keras.Input((), dtype="int32")
    outputs = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    model = keras.Model([x, label], [outputs, keras.layers.Embedding(5, 4)(label)])
    for weight in model.weights:
        weight.assign(keras.ops.ones_like(weight))
    adam = Adam.from_config(Adam(0.1, weight_decay=0.5).get_config())
    weights = model.trainable_variables
    adam.apply([keras.ops.zeros_like(weight) for weight in weights], weights)
    left = {weight.name: float(np.mean(weight)) for weight in weights}
    decayed, same = pytest.approx(0.95), 1.0
    names = {"kernel": decayed, "embeddings": decayed, "bias": same, "gamma": same, "beta": same}
    assert left == names


@pytest.mark.parametrize("shape", [(144, 16), (27, 64)])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_orthogonalize_changes_singular_values_alone(policy, shape, precision):
    """It computes in the policy's precision."""
    keras.config.set_dtype_policy(precision)
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
    u, values, v = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(5):  # Newton-Schulz acts on each singular value by itself
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    made = orthogonalize(keras.ops.convert_to_tensor(matrix))
    error = np.abs(np.array(made) - (u * values) @ v).max()
    assert error < 1e-4 if precision == "float32" else 1e-3 < error < 0.2


def network():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, use_bias=False)(image))
    x = keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(x))
    return keras.Model(image, x)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_muon_takes_relative_steps_for_kernels_and_sgd_steps_for_the_rest(tmp_path, momentum):
    images, labels = np.random.default_rng(0).random((16, 8, 8, 3)), np.arange(16) % 5
    muon, sgd = network(), network()
    muon.compile(Muon(0.1, momentum, ratio=2.0), "sparse_categorical_crossentropy")
    plain = keras.optimizers.SGD(0.2, float(momentum), nesterov=True)
    sgd.compile(plain, "sparse_categorical_crossentropy")
    before = muon.get_weights()[0]
    first_loss, _ = [model.train_on_batch(images, labels) for model in (muon, sgd)]
    np.testing.assert_allclose(muon.get_weights()[-2], sgd.get_weights()[-2], atol=1e-6)
    after = muon.get_weights()[0]
    assert np.linalg.norm(after) == pytest.approx(8**0.5, rel=1e-4)
    change = after / np.linalg.norm(after) - before / np.linalg.norm(before)
    assert 0.03 < np.linalg.norm(change) < 0.2  # 0.1, in eight directions, over 8**0.5
    assert min(muon.train_on_batch(images, labels) for _ in range(30)) < first_loss / 2
    muon.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert type(restored) is Muon
    assert restored.get_config() == muon.optimizer.get_config()


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.2), (99, 0.123), (50, 0), (7, 1), (1, 1)])
def test_one_cycle_rises_and_falls_linearly_and_ends_at_zero(steps, warmup):
    config = keras.saving.serialize_keras_object(OneCycle(2.0, steps, warmup))
    rate = keras.saving.deserialize_keras_object(config)
    rates = np.array([rate(step) for step in range(steps + 1)])
    top = rates.argmax()
    assert (top, rates[top]) == (max(0, round(warmup * steps) - 1), 2.0)
    np.testing.assert_allclose(np.diff(rates[: top + 1]), 2.0 / (top + 1), rtol=1e-4)
    np.testing.assert_allclose(np.diff(rates[top:]), -2.0 / (steps - top), rtol=1e-4)
