"""Device and precision, and one training run on several devices and on several workers."""

import hashlib
import json
import os
import signal
import socket
import time
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import run_script, start_script
from test_training import tiny_batches, tiny_model, train

from core import checkpoints, devices, layers, synthetic
from core.gan import TeacherLoss, two_rates
from tools import cells

MANY = {"steps_per_epoch": 20}
FOR_GAN = {"noise_size": 4, "classes": 100}


@pytest.mark.slow
def test_settings_in_keras_json_are_ignored(tmp_path):
    """~/.keras/keras.json may ask for another layout, float16 or a backend that is not there."""
    (tmp_path / ".keras").mkdir()
    other = {"image_data_format": "channels_first", "floatx": "float16", "backend": "no_such"}
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(other), encoding="utf-8")
    script = """
        import core.devices, keras
        config = keras.config
        print(config.backend(), config.floatx(), config.image_data_format())
    """
    done = run_script(script, HOME=str(tmp_path), KERAS_BACKEND=None, KERAS_HOME=None)
    assert done.stdout == "tensorflow float32 channels_last\n", done.stderr


def test_a_gpu_is_shared_by_notebooks_and_left_to_the_backend_in_use(monkeypatch):
    """There is none here: these are the settings that TensorFlow documents."""
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    hide = mock.Mock()
    monkeypatch.setattr("tensorflow.config.set_visible_devices", hide)
    devices.hide_gpus_from_tensorflow()
    hide.assert_called_once_with([], "GPU")


def gan(teacher_loss=None):
    """Return notebook 1's GAN, to whose loss a teacher may add a term."""
    space = cells.define("gan_synthetic_images")
    keras.utils.set_random_seed(0)
    networks = space["build_generator"](2, noise_size=4), space["build_discriminator"](2)
    replicas = devices.strategy().num_replicas_in_sync
    if teacher_loss is None:
        made = space["GAN"](*networks, replicas=replicas)
    else:
        choices = {"consistency": 0.0, "teacher_loss": teacher_loss(), "replicas": replicas}
        made = space["ImprovedGAN"](*networks, **choices)
    made.compile(two_rates(made, 4e-4, 8e-4))
    made.optimizer.build(made.trainable_variables)
    for each in made.optimizer.optimizers:
        each.epsilon = 1e-3  # else rounding decides the direction of a step where a gradient is 0
    return made


def teacher_loss():
    """Return the loss of an untrained teacher, which keeps moments of its own device's images."""
    image = keras.Input((32, 32, 3))
    pooled = keras.layers.AveragePooling2D(16)(keras.layers.Rescaling(1 / 255)(image))
    features = keras.layers.Flatten(name="features")(pooled)
    teacher = keras.Model(image, keras.layers.Dense(100, "softmax")(features))
    moments = {"means": np.zeros((100, 12)), "covariance": np.eye(12), "scale": 1.0}
    loss = TeacherLoss(
        teacher, moments, total_steps=1, guidance=0.5, matching=0.5, covariance_ratio=1.0
    )
    loss.step.assign(1)  # from the beginning, the covariance counts in full
    return loss


def synchronized(model):
    """Return a model whose batch normalisation sees the images of all devices."""
    for layer in getattr(model, "generator", model).layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.synchronized = True
    return model


def show_losses(*networks):
    """Train networks under `strategy()`; print and return the loss of each step."""
    known = {
        "classifier": (lambda: synchronized(tiny_model(dropout=0.0)), tiny_batches(**MANY)),
        "GAN": (lambda: synchronized(gan()), tiny_batches(**FOR_GAN, **MANY)),
        "taught GAN": (lambda: gan(teacher_loss), tiny_batches(**FOR_GAN, steps_per_epoch=1)),
    }
    losses = {name: [] for name in networks}
    for name in networks:
        build, batches = known[name]
        with devices.strategy().scope():
            model = build()
        keep = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, name=name: losses[name].append(logs["loss"])
        )
        model.fit(batches, shuffle=False, verbose=0, callbacks=[keep])
    print(json.dumps(losses), flush=True)
    return losses


def use_two_logical_devices():
    """Split this process's processor in two, and let `strategy()` return both."""
    import tensorflow as tf

    cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [half, half])
    reduction = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)
    devices.strategy = lambda: strategy


class Tell(keras.callbacks.Callback):
    only_watches = True

    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        time.sleep(0.5)


def train_together(folder, *callbacks):
    """Train a tiny network on all workers, and print what came out."""
    with devices.strategy().scope():
        model = tiny_model()
    model, run = train(folder, epochs=6, model=model, callbacks=callbacks)
    weights = b"".join(np.array(weight).tobytes() for weight in model.weights)
    digest = hashlib.sha256(weights).hexdigest()
    print(json.dumps({"weights": digest, "loss": run["history"]["loss"]}), flush=True)


def start(script, config=None):
    """Start a process that has this module's functions; `config` is its TF_CONFIG."""
    config = json.dumps(config) if config else None
    return start_script(f"from test_devices import *; {script}", TF_CONFIG=config)


def configurations():
    """Return the TF_CONFIG of two workers on free ports of this machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    return [{"cluster": {"worker": workers}, "task": task} for task in tasks]


def result(process):
    """Return the next JSON that a process prints."""
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise AssertionError(process.stderr.read()[-3000:])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of the same training runs on one device, two logical devices and two workers.

    The second worker is killed in the last run, and both are started again.
    """
    folder = tmp_path_factory.mktemp("runs")
    again = f"train_together({str(folder / 'disturbed')!r}, Tell())"
    script = f"show_losses('classifier', 'GAN'); train_together({str(folder / 'calm')!r}); {again}"
    chief, other = processes = [start(script, config) for config in configurations()]
    try:
        found = {"first worker": result(chief), "second worker": result(other)}
        found["undisturbed"] = [result(chief), result(other)]
        assert any(line == "epoch 2\n" for line in other.stdout)
        other.kill()
        logical = start("use_two_logical_devices(); show_losses('classifier', 'taught GAN')")
        processes.append(logical)
        found["one device"] = show_losses("classifier", "GAN", "taught GAN")
        found["errors"] = chief.communicate(timeout=60)[1]
        found["newest"] = max(folder.glob("disturbed/*/*.npz")).name
        found["two logical devices"] = result(logical)
        processes += [start(again, config) for config in configurations()]
        found["restarted"] = [result(each) for each in processes[3:]]
        return found | {"exit codes": [each.wait(timeout=60) for each in processes]}
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["two logical devices", "first worker", "second worker"])
def test_the_losses_are_those_of_one_device(runs, where):
    """Equal losses at each step also say that the data came in the same order, no image twice."""
    for network in runs[where].keys() - {"taught GAN"}:
        expected = runs["one device"][network]
        assert len(set(expected)) == 20
        np.testing.assert_allclose(runs[where][network], expected, atol=1e-3)


@pytest.mark.slow
def test_the_loss_of_a_gan_with_a_teacher_is_the_mean_over_its_devices(runs):
    """Each sees half of a batch; one device alone, which sees it all, has another loss."""
    (images, noise), labels = tiny_batches(**FOR_GAN)._make(1, 0)
    losses = [
        gan(teacher_loss).test_on_batch(
            (images[half], noise[half]), labels[half], return_dict=True
        )["loss"]
        for half in (slice(16), slice(16, 32))
    ]
    expected = pytest.approx([np.mean(losses)], abs=1e-3)
    assert runs["two logical devices"]["taught GAN"] == expected
    assert abs(runs["one device"]["taught GAN"][0] - np.mean(losses)) > 0.01


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_a_restarted_run_is_bit_identical(runs):
    assert runs["exit codes"] == [1, -signal.SIGKILL, 0, 0, 0]
    last_line = runs["errors"].strip().splitlines()[-1]
    assert "WorkerLostError: " in last_line
    assert "Start all workers again" in last_line
    assert runs["newest"] in ("00002.npz", "00003.npz")
    first, second = runs["undisturbed"]
    assert first == second == runs["restarted"][0] == runs["restarted"][1]


@pytest.mark.parametrize("notebook", cells.NOTEBOOKS)
def test_a_notebook_asks_for_its_strategy_before_it_uses_tensorflow(notebook):
    """Several workers fail otherwise. Only imports and parameters come first."""
    harmless = cells.tagged(notebook, "imports") + cells.tagged(notebook, "parameters")
    sources = [cell.source for cell in cells.read(notebook) if cell.source not in harmless]
    assert "devices.strategy()" in sources[0] or "records.environment()" in sources[0]


def test_only_the_first_of_several_workers_writes(tmp_path, monkeypatch):
    assert (devices.is_multi_worker(), devices.is_chief()) == (False, True)
    monkeypatch.setenv("TF_CONFIG", json.dumps(configurations()[1]))
    assert (devices.is_multi_worker(), devices.is_chief()) == (True, False)
    checkpoints.claim(tmp_path / "run")
    image = np.zeros((1, 32, 32, 3), np.uint8)
    synthetic.save(tmp_path / "images", image, np.zeros(1, int), ["apple"], {})
    assert not any(tmp_path.iterdir())


def test_the_processor_is_described_by_its_name_and_features(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.processor", lambda: "arm")
    path = tmp_path / "cpuinfo"
    assert devices._processor(path) == f"{os.cpu_count()} cores, arm"
    path.write_text("model name\t: Fast CPU\nflags\t\t: avx2 avx512f\n" * 2, encoding="utf-8")
    assert devices._processor(path) == f"{os.cpu_count()} cores, Fast CPU (avx2, avx512f)"


@pytest.mark.parametrize("bfloat16", [0.5, 0.9])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_precision_is_the_faster_one(monkeypatch, policy, bfloat16, has_gpu):
    """Another program may slow the processor down at times."""
    busy = iter([1, 4, 4, 4, 1, 1, 4, 4, *[1] * 8])
    seconds = {"float32": 1.0, "bfloat16": bfloat16}
    monkeypatch.setattr(devices, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr(devices, "_time_convolutions", lambda dtype: next(busy) * seconds[dtype])
    expected = "mixed_bfloat16" if has_gpu or bfloat16 == 0.5 else "float32"
    assert devices.set_precision("auto") == keras.config.dtype_policy().name == expected


def test_precision_is_measured_once_for_a_device(monkeypatch, policy, tmp_path):
    measured = []
    monkeypatch.setattr(devices, "_time_convolutions", lambda dtype: measured.append(dtype) or 1.0)

    def measures(folder=tmp_path / "new"):
        measured.clear()
        assert devices.set_precision("auto", folder) == "float32"
        return bool(measured)

    for name in ("this device", "another device"):
        monkeypatch.setattr(devices, "device", lambda name=name: name)
        assert [measures(), measures()] == [True, False]
    (path,) = (tmp_path / "new").iterdir()
    path.write_bytes(b"{")  # damaged
    assert [measures(), measures()] == [True, False]
    assert [measures(path), measures(path)] == [
        True,
        True,
    ]  # a file instead of a folder, so the result cannot be kept
    monkeypatch.setenv("TF_CONFIG", json.dumps(configurations()[0]))
    assert not measures(tmp_path / "workers")  # workers have to agree, so they do not measure
