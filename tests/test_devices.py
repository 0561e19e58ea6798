"""One training on several devices: two logical ones in a process, two worker processes on loopback."""

import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import ROOT
from test_notebooks import PART, TINY, run_notebooks
from test_training import tiny_batches, tiny_gan, tiny_model, train

import checkpoints
import devices
import utils
from notebooks import cells

STEPS = 20


def loss_curves():
    """Train notebook 3's network (batch norm synchronised, and without) and notebook 1's GAN; return the loss of each step."""
    normalization = functools.partial(utils.BatchNormalization, synchronized=True)
    return {
        "synchronised batch norm": loss_curve(resnet, normalization),
        "no batch norm": loss_curve(resnet, lambda **_: keras.layers.Identity()),
        "GAN": loss_curve(gan, normalization, noise=4),
    }


def resnet():
    model = cells.define("resnet_baseline", "def build_resnet", DEPTH=8, CHANNELS=4)["build_resnet"]()
    model.compile(utils.Adam(1e-3, weight_decay=0.004), "categorical_crossentropy")
    return model


def gan():
    replicas = devices.strategy().num_replicas_in_sync
    own = {"AUGMENT": False, "CONSISTENCY": 0.0, "MATCHING": 0.0, "SPREAD": 0.0}  # noise and moments are each device's own
    smooth = functools.partial(utils.Adam, epsilon=1e-3)  # else rounding turns whole steps round, where a gradient is about 0
    with mock.patch.object(utils, "Adam", smooth):
        return tiny_gan(rate=4e-4, replicas=replicas, **own)


def loss_curve(build, normalization, noise=0):
    losses, layer = [], utils.BatchNormalization
    tell = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    keras.utils.set_random_seed(0)
    utils.BatchNormalization = normalization
    with devices.strategy().scope():
        model = build()
    utils.BatchNormalization = layer
    model.fit(tiny_batches(classes=100, noise=noise, steps=STEPS), shuffle=False, verbose=0, callbacks=[tell])
    return losses


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
    script = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\nimport json, test_devices\n" + script
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
    saved = max((tmp_path / "disturbed").glob("*.npz")).name
    assert saved[:5] in {"00002", "00003"}

    again = workers("disturbed")
    assert ends(*again) == expected


def test_only_the_chief_writes(tmp_path):
    """Notebook 2 on two workers of one folder: one record, one set of figures and checkpoints."""
    from concurrent.futures import ThreadPoolExecutor
    from shutil import copytree, ignore_patterns

    copytree(ROOT, tmp_path / "p", ignore=ignore_patterns(".*", "synthetic_images", "results", "tests", "docs"))
    parameters = TINY | {"SYNTHETIC_PER_CLASS": 0, "RUN": "vgg16_two"}
    run = functools.partial(run_notebooks, tmp_path / "p", parameters, only="vgg16_with_gan")
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda each: run(environment={"TF_CONFIG": json.dumps(each)}), configurations()))
    assert [each.returncode for each in done] == [0, 0], done[0].stdout[-2000:] + done[1].stdout[-2000:]
    results = tmp_path / "p" / "results" / PART
    files = {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}
    copies = {"notebooks/vgg16_two.ipynb", "notebooks/vgg16_two-worker1.ipynb"}
    figures = {f"vgg16_two_{name}.png" for name in ("curves", "confusion", "classes")}
    saved = {f"checkpoints/vgg16_two/{name}" for name in ("00001-0000000.npz", "00002-0000000.npz", "lock")}
    assert files == copies | figures | saved | {"vgg16_two.json", "vgg16_two.keras"}
    record = json.loads((results / "vgg16_two.json").read_text())
    assert record["replicas"] == 2
    assert record["steps"] == 2 * 8  # batches of 2 x 64: half as many


def test_workers_that_are_not_the_chief_have_a_folder_of_their_own(project, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(configurations()[1]))
    assert not devices.is_chief()
    assert devices.is_multi_worker()
    folder = utils.results_folder("shapes100")
    assert not folder.is_relative_to(project)
    utils.save_synthetic(project / "images", np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, int), ["apple"], {})
    checkpoints.claim(project / "checkpoints")
    assert not any(project.iterdir())


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
