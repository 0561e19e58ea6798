"""The benchmark: what it counts, and one whole run of it, small."""

import json
import multiprocessing
import sys
import time
import types

import keras
import numpy as np
import pytest

import tools
import utils
from core import devices, fast
from tools import bench, parity


def test_multiply_adds_of_known_layers():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)  # 8*8 positions x 3*3*3*4
    x = keras.layers.SpectralNormalization(keras.layers.Conv2D(2, 4, strides=2, padding="same"))(x)  # 4*4 x 4*4*4*2
    x = keras.layers.Conv2DTranspose(5, 4, strides=2, padding="same")(x)  # 4*4 x 4*4*2*5
    x = keras.layers.Dense(10)(keras.layers.Flatten()(x))  # 8*8*5 x 10
    expected = 64 * 27 * 4 + 16 * 16 * 8 + 16 * 16 * 10 + 320 * 10
    assert bench.multiply_adds(keras.Model(image, x)) == expected


def test_multiply_adds_of_vgg16_are_the_paper_s():
    _, work = bench.build("VGG-16 x1")
    assert work / 3 == pytest.approx(313.2e6, rel=0.001)


def test_a_slow_contender_is_not_asked_again_and_again(monkeypatch):
    calls, now = {"fast": 0, "slow": 0}, [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])  # a clock that a busy machine cannot disturb

    def runner(name, seconds):
        def run():
            calls[name] += 1
            now[0] += seconds
            return seconds / 2  # a step

        return run

    seconds = bench.interleave({"fast": runner("fast", 1), "slow": runner("slow", 20)}, repeats=5, patience=10)
    assert calls == {"fast": 6, "slow": 2}  # the first call of each is not counted
    assert seconds == {"fast": [0.5] * 5, "slow": [10.0]}


def test_a_turn_is_timed_from_its_first_batch_to_its_last_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, step):
            return np.zeros((1, 1), "float32"), np.zeros((1, 1), "float32")

    class Slow(keras.callbacks.Callback):
        """Every part of `fit` takes its time; a step 2 seconds."""

        def on_train_begin(self, logs=None):
            now[0] += 100.0

        def on_train_batch_begin(self, batch, logs=None):
            now[0] += 2.0

        def on_epoch_end(self, epoch, logs=None):
            now[0] += 1000.0

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    fit = model.fit
    monkeypatch.setattr(model, "fit", lambda *given, callbacks, **more: fit(*given, callbacks=[Slow(), *callbacks], **more))
    assert bench.timed_fit(model, Batches())() == pytest.approx(2.0)


@pytest.mark.parametrize("network", ["VGG-16 x0.25", "GAN"])
def test_bench_writes_what_it_prints(tmp_path, monkeypatch, capsys, network):
    output = tmp_path / "bench.json"
    before = {
        "network": "VGG-16 x0.5",
        "precision": "float32",
        "batch_size": 64,
        "images_per_second": {"fit": 1.0},
        "pipeline_cost": 0,
        "of_best_peer": None,
        "of_ceiling": 0,
    }
    rows = [before, {"network": network, "batch_size": 64}]
    here = {"device": devices.device(), "precision": "float32"}
    output.write_text(json.dumps({"date": "2026-01-01", "convolution_rates": {"float32": 1e15}, "rows": rows} | here))
    monkeypatch.setattr(
        sys, "argv", ["bench", "--steps=2", "--repeats=1", "--precision=float32", "--only", network, "--output", str(output)]
    )
    monkeypatch.setattr(bench, "peer_runners", lambda *_: {"torch float32": lambda: 0.01})
    bench.main()
    record = json.loads(output.read_text(encoding="utf-8"))
    kept, row = sorted(record["rows"], key=lambda row: row["date"])
    assert kept == before | {"date": "2026-01-01"}  # as --only asks for one network
    assert row["network"] == network
    assert record["convolution_rates"] == {"float32": 1e15}  # the fastest convolution seen
    speed = row["images_per_second"]
    assert row["of_best_peer"] == pytest.approx(speed["fit"] / speed["torch float32"])
    assert row["pipeline_cost"] == pytest.approx(1 - speed["fit"] / speed["one batch"])
    assert 0 < row["of_ceiling"] < 1
    assert record["start_up"]["seconds"] > 0
    assert bench.report(record) in capsys.readouterr().out


def test_each_network_is_measured_in_the_precision_its_notebook_trains_it_in(tmp_path, monkeypatch, project, policy):
    seen = {}
    row = {"batch_size": 64, "images_per_second": {"fit": 1.0}, "pipeline_cost": 0, "of_best_peer": None, "of_ceiling": 0}
    ceilings = {}

    def measure(network, *others):
        seen[network] = keras.config.dtype_policy().name
        ceilings.update(others[-1])
        return row | {"network": network, "precision": keras.config.dtype_policy().compute_dtype}

    monkeypatch.setattr(bench, "measure", measure)
    rates = {"float32": 1e9, "bfloat16": 3e9}
    monkeypatch.setattr(bench, "convolution_rate", lambda *_: rates[keras.config.dtype_policy().compute_dtype])
    monkeypatch.setattr(bench, "start_up", lambda *_: (0.0, None))  # as on Windows, which counts no memory
    monkeypatch.setattr(sys, "argv", ["bench", "--precision=mixed_bfloat16", "--output", str(tmp_path / "bench.json")])
    bench.main()
    assert {network for network, policy in seen.items() if policy == "float32"} == {"GAN"}
    assert ceilings == rates
    text = bench.report(json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")))
    assert "| GAN | float32 |" in text
    assert "| VGG-16 x1 | bfloat16 |" in text
    assert "3 in bfloat16 and 1 in float32" in text
    assert "From start to loaded cifar100: 0.0 s.\n" in text or "From start to loaded shapes100: 0.0 s.\n" in text


def test_a_row_is_divided_by_the_ceiling_of_its_own_precision(monkeypatch, policy):
    keras.config.set_dtype_policy("float32")
    monkeypatch.setattr(bench, "peer_runners", lambda *_: {})
    monkeypatch.setattr(bench, "interleave", lambda runners, _: {name: [0.5] for name in runners})
    row = bench.measure("VGG-16 x0.25", 8, 2, 1, {"float32": 1e9, "bfloat16": 1e15})
    assert row["of_ceiling"] == pytest.approx(16 * row["multiply_adds"] / 1e9)


def test_a_peer_that_cannot_run_is_left_out_and_named(monkeypatch, capsys):
    pytest.importorskip("torch")
    from tools import peers

    monkeypatch.setattr(peers, "serve", ends_at_once)
    assert bench.peer_runners("VGG-16 x0.25", 8, 2, names=["torch float32"]) == {}
    assert "no torch float32 on this machine" in capsys.readouterr().out


def ends_at_once(connection, *_):
    connection.close()


@pytest.mark.parametrize("other", [{"device": "another"}, {"precision": "mixed_bfloat16"}, {"batch_size": 128}])
def test_rows_measured_otherwise_are_not_kept(tmp_path, other):
    asked = {"device": "this one", "precision": "float32", "batch_size": 64}
    row = {"network": "GAN", "batch_size": 64}
    record = {
        "date": "2026-01-01",
        "convolution_rates": {"float32": 1e9},
        "device": "this one",
        "precision": "float32",
        "rows": [row],
    }
    (tmp_path / "bench.json").write_text(json.dumps(record))
    assert bench.earlier(tmp_path / "bench.json", **asked) == ({"float32": 1e9}, {"GAN": row | {"date": "2026-01-01"}})
    assert bench.earlier(tmp_path / "bench.json", **asked | other) == ({}, {})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_convolutions_of_any_batch_have_a_rate(batch_size):
    assert bench.convolution_rate(batch_size) > 0


def test_without_torch_there_is_no_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tools.peers", raising=False)
    monkeypatch.delattr(tools, "peers", raising=False)
    assert bench.peer_runners("GAN", 8, 2) == {}


def test_a_peer_takes_the_steps_it_is_asked_for_in_a_process_of_its_own():
    pytest.importorskip("torch")
    before = set(multiprocessing.active_children())
    runners = bench.peer_runners("VGG-16 x0.25", 8, 3, names=bench.PEERS[:2])
    start = time.perf_counter()
    turns = [runners["torch float32"]() for _ in range(2)]
    assert 0 < 3 * sum(turns) < time.perf_counter() - start  # seconds a step, of three
    assert len(set(multiprocessing.active_children()) - before) == 2
    runners.clear()  # nothing more will be asked
    deadline = time.monotonic() + 60
    while set(multiprocessing.active_children()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_peers_have_the_notebooks_parameters():
    pytest.importorskip("torch")
    from tools import peers

    gan, _ = bench.build("GAN")
    pairs = [(gan.generator, peers.Generator(16, bench.LATENT_DIM)), (gan.discriminator, peers.Discriminator(16))]
    pairs += [(bench.build("VGG-16 x0.25")[0], peers.vgg16(0.25)), (bench.build("ResNet-20")[0], peers.resnet(20, 16))]
    for model, peer in pairs:
        trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert trainable == sum(parameter.numel() for parameter in peer.parameters())


def coloured(per_class=30):
    """A dataset that is learned in a few steps: four classes, each of a colour of its own."""
    labels = np.tile(np.arange(4), per_class)
    colours = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)])
    images = colours[labels][:, None, None] + np.random.default_rng(0).integers(-25, 26, (len(labels), 32, 32, 3))
    return types.SimpleNamespace(title="shapes100", x_train=images.astype("uint8"), y_train=labels)


def test_parity_pairs_differ_in_what_is_fast_alone_and_both_learn(tmp_path, monkeypatch, capsys, policy):
    monkeypatch.setattr(parity.cifar100, "find_cifar100", lambda: None)
    monkeypatch.setattr(utils, "load", lambda name: coloured())
    seen, compiled = [], bench.compiled

    def spy(model, rate):
        seen.append((fast.ENABLED, {layer.compute_dtype for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}))
        return compiled(model, rate)

    monkeypatch.setattr(bench, "compiled", spy)
    sizes = ["--epochs=12", "--width=0.0625", "--seeds=1", "--precision=mixed_bfloat16"]
    monkeypatch.setattr(sys, "argv", ["parity", *sizes, "--output", str(tmp_path / "parity.json")])
    parity.main()
    record = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert seen == [(True, {"bfloat16"}), (False, {"float32"})]
    assert fast.ENABLED
    assert parity.report(record) in capsys.readouterr().out
    ((ours,), (plain,)) = (record["accuracy"][kind] for kind in parity.KINDS)
    assert min(ours, plain) > 0.7  # chance is 0.25
    assert ours == pytest.approx(plain, abs=0.3)
