"""The comparisons of speed with PyTorch and of accuracy with plain Keras, on small sizes."""

import inspect
import json
import sys
import types

import numpy as np
import pytest

from tools import bench


def test_order_of_turns_changes_and_medians_leave_out_the_first_call():
    calls, results = [], {"a": [99, 1, 5, 3], "b": [99, 7, 8, 7]}

    def runner(name):
        return lambda: calls.append(name) or results[name][calls.count(name) - 1]

    medians = bench.take_turns({name: runner(name) for name in results}, repeats=3)
    assert medians == {"a": 3, "b": 7}
    assert {tuple(calls[i : i + 2]) for i in range(0, 8, 2)} == {("a", "b"), ("b", "a")}


def test_steps_are_timed_without_the_start_and_the_end_of_fit(monkeypatch):
    now = [0.0]

    def fit(batches, callbacks, **_):
        now[0] += 100
        callbacks[-1].on_epoch_begin(0, logs=None)
        for step in range(len(batches)):
            now[0] += 2
            callbacks[-1].on_train_batch_end(step, logs=None)
        now[0] += 1000

    monkeypatch.setattr(bench, "build", lambda network: types.SimpleNamespace(fit=fit))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    run = bench.keras_runner("VGG-16 x0.25", steps=4)
    assert [run(), run()] == [2.0, 2.0]


@pytest.mark.slow
def test_only_a_full_run_writes_its_record(project, monkeypatch, policy, capsys):
    monkeypatch.setattr(bench, "keras_runner", lambda network, steps: lambda: 0.5)
    monkeypatch.setattr(bench, "peer_runner", lambda network, kind, steps: lambda: 0.64)
    path, arguments = project / "runs/bench/bench.json", ["bench", "--precision=mixed_bfloat16"]
    for more in (["--only", "GAN"], []):
        assert not path.exists()
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        bench.main()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert bench.report(record) in capsys.readouterr().out
    precisions = {row["network"]: row["precision"] for row in record["rows"]}
    assert precisions == dict.fromkeys(bench.NETWORKS, "bfloat16") | {"GAN": "float32"}
    assert record["rows"][0]["images_per_second"] == {"fit": 128} | dict.fromkeys(bench.PEERS, 100)


def test_report_compares_with_the_fastest_peer_in_earlier_records_too():
    speed = {"fit": 150.0, "one batch": 155.0, "torch float32": 100.0, "torch bfloat16": 120.0}
    row = {"network": "GAN", "precision": "float32", "of_ceiling": 0.4, "images_per_second": speed}
    alone = row | {"network": "ResNet-20", "images_per_second": {"fit": 90.0}}
    text = bench.report({"device": "2 cores", "date": "2026-11-25", "rows": [row, alone]})
    assert "| GAN | float32 | 150 | 100 | 120 | – | – | 1.25 |" in text
    assert "| ResNet-20 | float32 | 90 | – | – | – | – | – |" in text
    assert "2 cores, 2026-11-25" in text


@pytest.mark.slow
def test_a_peer_answers_from_a_process_that_ends_with_its_runner():
    pytest.importorskip("torch")
    run = bench.peer_runner("VGG-16 x0.25", "torch float32", steps=3)
    assert run() > 0
    process = inspect.getclosurevars(run).nonlocals["process"]
    del run
    assert process.wait(timeout=60) != 0


def test_a_peer_that_fails_is_left_out():
    runners = {"fit": lambda: 1.0, "torch": bench.peer_runner("unknown", "torch float32", 1)}
    assert bench.take_turns(runners, repeats=1) == {"fit": 1.0}


def test_peers_have_the_notebooks_parameters():
    peers = pytest.importorskip("tools.peers", exc_type=ImportError)
    gan, peer = bench.build("GAN"), peers.GAN()
    pairs = [(gan.generator, peer.generator), (gan.discriminator, peer.discriminator)]
    pairs.append((bench.build("VGG-16 x0.25"), peers.vgg16(0.25)))
    pairs.append((bench.build("ResNet-20"), peers.resnet20()))
    for model, peer in pairs:
        expected = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert sum(weight.numel() for weight in peer.parameters()) == expected
