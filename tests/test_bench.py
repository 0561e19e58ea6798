"""The comparison of speed with PyTorch."""

import numpy as np
import pytest

from tools import bench


def test_turns_change_order_and_medians_leave_out_the_first_call_and_peers_that_fail():
    calls, results = [], {"a": [99, 1, 5, 3], "b": [99, 7, 8, 7]}

    def runner(name):
        return lambda: calls.append(name) or results[name][calls.count(name) - 1]

    runners = {name: runner(name) for name in results}
    runners["torch"] = bench.peer_runner("unknown", "torch float32")
    assert bench.take_turns(runners, repeats=3) == {"a": 3, "b": 7}
    assert {tuple(calls[i : i + 2]) for i in range(0, 8, 2)} == {("a", "b"), ("b", "a")}


def test_peers_have_the_notebooks_parameters():
    peers = pytest.importorskip("tools.peers", exc_type=ImportError)
    gan, peer = bench.build("GAN"), peers.GAN()
    pairs = [(gan.generator, peer.generator), (gan.discriminator, peer.discriminator)]
    pairs.append((bench.build("VGG-16 x0.25"), peers.vgg16(0.25)))
    pairs.append((bench.build("ResNet-20"), peers.resnet20()))
    for model, peer in pairs:
        expected = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert sum(weight.numel() for weight in peer.parameters()) == expected
