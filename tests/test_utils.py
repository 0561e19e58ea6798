"""Parameters, records and the layers shared by the notebooks."""

import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import ROOT

import devices
import utils

LIMITS = {
    "EPOCHS": (1, 100), "WIDTH": (0.01, 4.0), "DATASET": utils.DATASETS, "TRAIN": (True, False), "DEPTH": (8, 14, 20),
    "WEIGHTS": str, "RUN": utils.GAN_RUN,
}  # fmt: skip
RIGHT = {"EPOCHS": 3, "WIDTH": 1, "DATASET": "cifar100", "TRAIN": True, "DEPTH": 14, "WEIGHTS": "imagenet", "RUN": "gan_2"}


def test_right_parameters_are_returned_alone():
    assert utils.check_parameters(RIGHT | {"OTHER": 1}, **LIMITS) == RIGHT


@pytest.mark.parametrize(
    ("name", "value"),
    [("EPOCHS", 0), ("EPOCHS", 2.0), ("EPOCHS", "3"), ("EPOCHS", True), ("EPOCHS", 10**9), ("WIDTH", -1), ("WIDTH", float("nan")),
     ("DATASET", "mnist"), ("TRAIN", 1), ("TRAIN", "False"), ("DEPTH", 9), ("DEPTH", 8.0), ("WEIGHTS", None),
     ("RUN", ""), ("RUN", "vgg16"), ("RUN", "gan/../vgg16"), ("RUN", 3)],
)  # fmt: skip
def test_wrong_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value!r}: expected"):
        utils.check_parameters(RIGHT | {name: value}, **LIMITS)


@pytest.mark.parametrize(("name", "right"), [("vgg16", True), ("vgg16_wide", True), ("vgg16_gan", False), ("gan", False)])
def test_names_of_trainings_cannot_meet(name, right):
    """Notebook 2 adds "_gan" to the name of its training with GAN images."""
    assert bool(utils.VGG_RUN.fullmatch(name)) == right


def test_all_wrong_parameters_are_named_at_once():
    with pytest.raises(ValueError, match="(?s)EPOCHS = 0.*int 1 to 100.*WIDTH = -1.*DATASET = 'x'"):
        utils.check_parameters(RIGHT | {"EPOCHS": 0, "WIDTH": -1, "DATASET": "x"}, **LIMITS)


def record(**changes):
    return {
        "notebook": "n", "dataset": "shapes100", "dataset_md5": "0", "model": "m", "seed": 0, "real_fraction": 1.0,
        "synthetic_per_class": 0, "parameters": {}, "parameter_count": 1, "epochs_run": 1, "steps": 1, "seconds": 1.0,
        "history": {},
    } | changes  # fmt: skip


def test_record_is_written_whole_or_not_at_all(project):
    path = utils.write_record("run", **record(test_accuracy=0.5))
    written = json.loads(path.read_text())
    assert written["test_accuracy"] == 0.5
    assert written["versions"]["keras"] == keras.__version__
    with pytest.raises(ValueError, match="JSON"):
        utils.write_record("run", **record(test_accuracy=float("nan")))
    assert json.loads(path.read_text()) == written
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_a_part_of_a_dataset_has_a_name_a_title_and_records_of_its_own(project):
    assert utils.part("cifar100", 1.0) == ("cifar100", "CIFAR-100")
    assert utils.part("cifar100", 0.1) == ("cifar100-0.1", "CIFAR-100, 0.1 of its training images")
    paths = [utils.write_record("run", **record(real_fraction=fraction)) for fraction in (1.0, 0.5)]
    assert [path.relative_to(project) for path in paths] == [Path(f"results/shapes100{end}/run.json") for end in ("", "-0.5")]
    assert utils.read_records("shapes100-0.5")["run"]["real_fraction"] == 0.5
    assert utils.part("cifar100", 0.1, "gpu") == ("cifar100-0.1-gpu", "CIFAR-100, 0.1 of its training images")
    path = utils.write_record("run", **record(parameters={"VARIANT": "gpu"}))
    assert path == project / "results" / "shapes100-gpu" / "run.json"


def test_the_commit_is_dirty_where_code_differs_alone(project):
    def git(*command):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run(["git", "-C", project, *identity, *command], check=True, capture_output=True, text=True).stdout

    assert utils.environment()["commit"] is None
    git("init", "-q")
    for name in ("utils.py", "results.json"):
        (project / name).write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short", "HEAD").strip()
    (project / "results.json").write_text("2\n")
    assert utils.environment()["commit"] == head
    (project / "utils.py").write_text("2\n")
    assert utils.environment()["commit"] == f"{head}-dirty"


def test_record_without_what_it_needs_is_refused(project):
    incomplete = record()
    del incomplete["seed"]
    with pytest.raises(ValueError, match="missing.*seed"):
        utils.write_record("run", **incomplete)


def test_a_record_cut_at_every_tenth_is_refused_by_name(project):
    path = utils.write_record("run", **record())
    whole = path.read_bytes()
    assert list(utils.read_records("shapes100")) == ["run"]
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(utils.DataError, match=r"run\.json: expected a record"):
            utils.read_records("shapes100")


def test_fused_batch_normalization_is_keras_s():
    x = np.random.default_rng(0).normal(2, 3, (16, 8, 8, 5)).astype("float32")
    ours, theirs = utils.BatchNormalization(), keras.layers.BatchNormalization()
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-4)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-4)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=2e-3)  # n - 1 instead of n
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(x, training=False), theirs(x, training=False), atol=1e-4)


@pytest.mark.parametrize(("size", "strides", "products"), [(4, 1, True), (8, 1, True), (16, 1, False), (8, 2, False)])
def test_gradients_of_a_small_convolution_are_keras_s(size, strides, products):
    """In bfloat16 the kernel's gradient comes from matrix products where the picture is small, and is the same."""
    tf = pytest.importorskip("tensorflow")
    keras.utils.set_random_seed(0)
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, size, size, 128)).astype("float32"))
    ours = utils.Conv2D(8, 3, strides, padding="same", use_bias=False, dtype="mixed_bfloat16")
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
    images = keras.ops.convert_to_tensor(np.random.default_rng(n).normal(size=(n, 7, 7, 3)).astype("float32"))
    ours, theirs = (
        getattr(source, layer)(4, size, strides, padding=padding, activation="tanh") for source in (utils, keras.layers)
    )
    ours(images), theirs(images)
    ours.set_weights(theirs.get_weights())

    @tf.function(input_signature=[tf.TensorSpec((None, 7, 7, 3))])  # as in `fit`, the batch is not known beforehand
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


@pytest.mark.parametrize("layer", ["Conv2D", "Conv2DTranspose"])
def test_a_convolution_takes_images_of_any_size(layer):
    images = keras.Input((None, None, 3))
    model = keras.Model(images, getattr(utils, layer)(4, 3, 2, padding="same")(images))
    assert model.predict(np.zeros((2, 6, 8, 3)), verbose=0).shape == ((2, 3, 4, 4) if layer == "Conv2D" else (2, 12, 16, 4))


def last_word(script, **environment):
    """Return the last word that a new process prints."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_NUM_INTRAOP_THREADS"} | environment
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_on_two_cores_an_operation_has_one():
    script = "import os; os.cpu_count = lambda: {}; import utils; print(os.environ.get('TF_NUM_INTRAOP_THREADS'))"
    assert [last_word(script.format(cores)) for cores in (1, 2, 8)] == ["None", "1", "None"]
    assert last_word(script.format(2), TF_NUM_INTRAOP_THREADS="2") == "2"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_a_training_step_has_the_memory_of_the_one_before():
    script = """
        import resource
        import numpy as np, utils, checkpoints, devices, keras

        model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(100)])
        model.compile("sgd", "mse")
        batches = checkpoints.Batches(np.zeros((8, 32, 32, 3), "uint8"), np.zeros(8, int), 4)
        model.fit(batches, verbose=0, callbacks=[devices.KeepMemory()])
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
        ours = train_with(utils.Adam, keras.layers.Dense(6), inputs)
    assert fused.called
    for one, other in zip(ours, train_with(keras.optimizers.Adam, keras.layers.Dense(6), inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_fused_adam_adds_up_an_embedding_s_gradients_before_it_squares_them():
    """As for the same layer on one-hot vectors; Keras's own squares each of an index that comes twice (on TensorFlow)."""
    indices = np.array([0, 0, 0, 1, 2, 2])
    embedded = train_with(utils.Adam, keras.layers.Embedding(4, 6), indices)
    one_hot = train_with(utils.Adam, keras.layers.Dense(6, use_bias=False), np.eye(4, dtype="float32")[indices])
    for one, other in zip(embedded, one_hot, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_precision_is_chosen_by_the_clock(monkeypatch):
    for seconds, expected in (
        ({"float32": 1.0, "bfloat16": 0.5}, "mixed_bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.9}, "float32"),
    ):
        monkeypatch.setattr(devices, "_convolution_seconds", seconds.get)
        assert utils.set_precision("auto") == expected
        assert keras.config.dtype_policy().name == expected
    assert utils.set_precision("float32") == "float32"


def test_precision_is_the_same_while_something_else_runs(monkeypatch):
    calls = iter(range(100))

    def busy_at_times(dtype):
        return {"float32": 1.0, "bfloat16": 0.5}[dtype] * (4 if next(calls) in (1, 2, 3, 6, 7) else 1)

    monkeypatch.setattr(devices, "_convolution_seconds", busy_at_times)
    assert utils.set_precision("auto") == "mixed_bfloat16"
    assert utils.set_precision("float32") == "float32"


def test_learning_rate_rises_and_falls():
    rate = utils.warmup_cosine(1.0, 100, 10)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[10] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0, abs=1e-6)
    assert float(utils.warmup_cosine(1.0, 100, 0)(0)) == 1.0


def test_comparison_table_is_sorted():
    run = record(train_accuracy=0.6, val_accuracy=0.5, test_top5=0.8)
    table = utils.comparison_table([run | {"model": "low", "test_accuracy": 0.4}, run | {"model": "high", "test_accuracy": 0.5}])
    assert table.index("high") < table.index("low")
    assert "| 50.00 % |" in table
