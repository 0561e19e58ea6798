"""Precision; and one training on several devices: two logical ones in a process, two worker processes on loopback."""

import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import ROOT
from test_checkpoints import tiny_batches, tiny_model, train
from test_gan import tiny_gan
from test_notebooks import PART, TINY, run_notebooks

from core import checkpoints, devices, fast, records, synthetic
from tools import cells

STEPS = 20


def loss_curves():
    """Train notebook 3's network (batch norm synchronised, and without) and notebook 1's GAN; return the loss of each step."""
    synchronised = functools.partial(fast.BatchNormalization, synchronized=True)
    none = functools.partial(keras.layers.Identity)
    return {
        "synchronised batch norm": loss_curve(resnet, synchronised),
        "no batch norm": loss_curve(resnet, lambda **_: none()),
        "GAN": loss_curve(gan, synchronised, noise=4),
        "GAN with all its terms": loss_curve(whole_gan, lambda **_: none(), noise=4, steps=1),
    }


def resnet():
    model = cells.define("resnet_baseline", mean=np.full(3, 120.0), variance=np.full(3, 4000.0))["build_resnet"](8, 4)
    model.compile(fast.Adam(1e-3, weight_decay=0.004), "categorical_crossentropy")
    return model


def gan(**choices):
    """Notebook 1's GAN with consistency and the teacher's cross-entropy. All copies move alike: chance is each device's own."""
    choices = {"AUGMENT": False, "CONSISTENCY": 10.0, "MATCHING": 0.0, "SPREAD": 0.0} | choices
    alike = {"shift_and_flip": lambda images, seed: keras.ops.flip(keras.ops.roll(images, 3, axis=1), axis=2)}
    smooth = functools.partial(fast.Adam, epsilon=1e-3)  # else rounding turns whole steps round, where a gradient is about 0
    with mock.patch.object(fast, "Adam", smooth):
        return tiny_gan(rate=4e-4, replicas=devices.strategy().num_replicas_in_sync, after=alike, **choices)


def whole_gan():
    """The same with matching and spread: running moments, which are each device's own, so that one step can be foretold."""
    means = np.zeros((100, 32), "float32")
    return gan(MATCHING=0.5, SPREAD=0.5, step=18.0, feature_scale=0.003, real_means=means)


class Halves(keras.utils.PyDataset):
    """The batches, the first halves of the devices' shares first: of these the discriminator sees copies, on any number."""

    def __init__(self, batches, devices_):
        super().__init__()
        self.batches, self.devices = batches, devices_

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, step):
        order = np.arange(self.batches.batch_size).reshape(2, 2, -1)  # device or half, half or device, images
        order = order.transpose(1, 0, 2).ravel() if self.devices == 1 else order.ravel()
        (images, noise), labels = self.batches[step]
        return (images[order], noise[order]), labels[order]


def loss_curve(build, normalization, noise=0, steps=STEPS):
    losses, layer = [], fast.BatchNormalization
    tell = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    keras.utils.set_random_seed(0)
    fast.BatchNormalization = normalization
    with devices.strategy().scope():
        model = build()
    fast.BatchNormalization = layer
    batches = tiny_batches(classes=100, noise=noise, steps=steps)
    batches = Halves(batches, devices.strategy().num_replicas_in_sync) if noise else batches
    model.fit(batches, shuffle=False, verbose=0, callbacks=[tell])
    return losses


def foretold():
    """The first loss of the GAN with all its terms on two devices: the mean of what each half of the batch gives alone."""
    losses = []
    for half in range(2):
        batches, layer = Halves(tiny_batches(classes=100, noise=4, steps=1), 2), fast.BatchNormalization
        (images, noise), labels = batches[0]
        part = slice(16 * half, 16 * half + 16)
        keras.utils.set_random_seed(0)
        fast.BatchNormalization = lambda **_: keras.layers.Identity()
        model = whole_gan()
        fast.BatchNormalization = layer
        losses.append(model.train_on_batch((images[part], noise[part]), labels[part], return_dict=True)["loss"])
    return float(np.mean(losses))


def two_logical_devices():
    """Make of this process's processor two, and have `strategy()` find them."""
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    devices.strategy = lambda: strategy


def train_together(folder, epochs=6):
    """Train a tiny network on all workers, telling each epoch; print how it ended."""
    with devices.strategy().scope():
        model = tiny_model()
    slow = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: (print("epoch", epoch, flush=True), time.sleep(0.5)))
    _, run = train(folder, epochs=epochs, model=model, callbacks=[slow])
    weights = b"".join(np.array(weight).tobytes() for weight in model.weights)
    print(json.dumps({"weights": hashlib.sha256(weights).hexdigest(), "loss": run["history"]["loss"]}))


def start(script, configuration=None):
    """Start a Python process that has this module's functions, `configuration` being its TF_CONFIG."""
    script = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\nimport json, core, test_devices\n" + script
    environment = os.environ | ({"TF_CONFIG": json.dumps(configuration)} if configuration else {})
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def configurations():
    """Return the TF_CONFIG of two workers on free ports of this machine."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in range(2)]


def ends(*processes, timeout=200):
    """Return the last line of each process's output, read as JSON."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.fixture(scope="module")
def curves():
    """The loss curves by device configuration."""
    show = "print(json.dumps(test_devices.loss_curves()))"
    workers = [start(show, configuration) for configuration in configurations()]
    one, *two = ends(start(show), *workers)
    (logical,) = ends(start("test_devices.two_logical_devices()\n" + show))
    return {"one": one, "two devices": logical, "first worker": two[0], "second worker": two[1]}


@pytest.mark.parametrize("network", ["synchronised batch norm", "no batch norm", "GAN"])
@pytest.mark.parametrize("where", ["two devices", "first worker", "second worker"])
def test_the_loss_is_that_of_one_device(curves, where, network):
    """Equal losses at each step also say that the data came in the same order, no image twice."""
    expected = np.array(curves["one"][network])
    assert expected.shape == (STEPS,)
    assert len(set(expected)) == STEPS
    np.testing.assert_allclose(curves[where][network], expected, atol=1e-3)


@pytest.mark.parametrize("where", ["two devices", "first worker", "second worker"])
def test_the_gan_s_whole_loss_is_the_mean_of_what_its_devices_see(curves, where):
    """Consistency, matching and spread at once; one device alone, which sees all images together, has another loss."""
    name, expected = "GAN with all its terms", foretold()
    assert curves[where][name] == pytest.approx([expected], abs=1e-3)
    assert abs(curves["one"][name][0] - expected) > 0.01


def test_a_killed_worker_ends_the_others_and_a_restart_goes_on(tmp_path):
    def workers(folder):
        script = f"test_devices.train_together({str(tmp_path / folder)!r})"
        return [start(script, configuration) for configuration in configurations()]

    expected = ends(*workers("undisturbed"))
    assert expected[0] == expected[1]

    chief, other = workers("disturbed")
    while other.stdout.readline() != "epoch 2\n":
        assert other.poll() is None
    other.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, errors = chief.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert chief.returncode == 1
    assert "WorkerLostError: another worker was lost during the training in" in errors
    assert "Start all workers again" in errors
    saved = max((tmp_path / "disturbed").glob("*/*.npz")).name
    assert saved[:5] in {"00002", "00003"}

    again = workers("disturbed")
    assert ends(*again) == expected


def test_only_the_chief_writes(copy, tmp_path):
    """The three notebooks on two workers of one folder: one set of records, figures, images and checkpoints."""
    folder = shutil.copytree(copy, tmp_path / "p", ignore=shutil.ignore_patterns("runs", "synthetic_images"))
    run = functools.partial(run_notebooks, folder, TINY)
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda each: run(environment={"TF_CONFIG": json.dumps(each)}), configurations()))
    assert [each.returncode for each in done] == [0, 0], done[0].stdout[-2000:] + done[1].stdout[-2000:]
    results = folder / "runs" / PART
    assert {path.stem for path in (results / "notebooks").iterdir()} == {
        f"{name}{worker}" for name in cells.NOTEBOOKS for worker in ("", "-worker1")
    }
    made = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")}
    assert set(made) == {"gan", "vgg16", "vgg16_gan", "resnet"}
    for record in made.values():
        assert record["replicas"] == 2
        assert record["steps"] == 2 * 8  # batches of 2 x 64: half as many
    assert len(list(results.glob("*.png"))) == 13
    assert len(list((folder / "synthetic_images" / "runs" / PART).rglob("*.png"))) == 1000
    for name in ("gan/gan", "gan/judge", "vgg16", "resnet"):
        assert len(list((results / "checkpoints" / name).glob("*/*.npz"))) in (1, 2)


def test_workers_that_are_not_the_chief_have_a_folder_of_their_own(project, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(configurations()[1]))
    assert not devices.is_chief()
    assert devices.is_multi_worker()
    folder = records.run_folder("shapes100")
    assert not folder.is_relative_to(project)
    synthetic.save(project / "images", np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, int), ["apple"], {})
    checkpoints.claim(project / "checkpoints")
    assert not any(project.iterdir())


def test_precision_is_chosen_by_the_clock(monkeypatch):
    for seconds, has_gpu, expected in (
        ({"float32": 1.0, "bfloat16": 0.5}, False, "mixed_bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.9}, False, "float32"),
        ({"float32": 1.0, "bfloat16": 0.9}, True, "mixed_bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.99}, True, "float32"),
    ):
        monkeypatch.setattr(devices, "has_gpu", lambda has=has_gpu: has)
        monkeypatch.setattr(devices, "_convolution_seconds", seconds.get)
        assert devices.set_precision("auto") == expected
        assert keras.config.dtype_policy().name == expected
    assert devices.set_precision("float32") == "float32"


def test_precision_is_the_same_while_something_else_runs(monkeypatch):
    calls = iter(range(100))

    def busy_at_times(dtype):
        return {"float32": 1.0, "bfloat16": 0.5}[dtype] * (4 if next(calls) in (1, 2, 3, 6, 7) else 1)

    monkeypatch.setattr(devices, "_convolution_seconds", busy_at_times)
    assert devices.set_precision("auto") == "mixed_bfloat16"
    assert devices.set_precision("float32") == "float32"


def test_precision_is_not_timed_where_machines_must_agree(monkeypatch, policy):
    monkeypatch.setenv("TF_CONFIG", json.dumps(configurations()[0]))
    monkeypatch.setattr(devices, "_convolution_seconds", lambda dtype: pytest.fail("timed"))
    assert devices.set_precision("auto") == "float32"


def test_one_device_is_the_default_and_leaves_everything_as_it_is():
    assert devices.is_chief()
    assert not devices.is_multi_worker()
    assert devices.strategy().num_replicas_in_sync == 1
    with devices.strategy().scope():
        pass
