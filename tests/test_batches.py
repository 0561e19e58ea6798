"""Batches by (seed, epoch, step): order, crop and flip, CutMix."""

import threading
import time

import numpy as np
import pytest
from test_checkpoints import tiny_batches

from core import devices
from core.batches import Batches, crop_and_flip, cutmix


def test_batches_depend_on_seed_epoch_and_step_alone():
    one, other = tiny_batches(), tiny_batches()
    [other[i] for i in range(5)]  # reading ahead changes nothing
    np.testing.assert_array_equal(one[3][0], other[3][0])
    first = one[0][0]
    one.on_epoch_end()
    assert (one[0][0] != first).any()
    other.epoch, other.start = 1, 2
    np.testing.assert_array_equal(one[2][0], other[0][0])
    assert len(other) == len(one) - 2
    assert (tiny_batches(seed=2)[0][0] != first).any()


@pytest.fixture
def ahead(monkeypatch):
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    return tiny_batches()


def test_the_next_batches_are_made_while_a_gpu_trains(ahead, monkeypatch):
    makers, batches = {}, ahead
    make = batches._make

    def watched(*place):
        makers[place] = threading.current_thread().name
        return make(*place)

    monkeypatch.setattr(batches, "_make", watched)
    batches[0]
    deadline = time.monotonic() + 10
    while len(makers) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(makers) == [(0, 0), (0, 1), (0, 2)]
    assert threading.current_thread().name not in makers.values()
    last = len(batches) - 1
    [batches[i] for i in range(1, last + 1)]
    assert sorted(makers) == [(0, i) for i in range(last + 1)]  # each once, none beyond the epoch


def test_batches_made_ahead_are_those_made_in_time(ahead):
    plain = tiny_batches()
    plain._ahead = 0
    for step in (0, 1, 3, 2, 0):
        [np.testing.assert_array_equal(one, other) for one, other in zip(ahead[step], plain[step], strict=True)]
    ahead.cutmix = plain.cutmix = 1.0  # a callback may: the next one has it
    [np.testing.assert_array_equal(one, other) for one, other in zip(ahead[1], plain[1], strict=True)]


def test_an_error_in_a_batch_reaches_who_asks_for_it(ahead):
    ahead.labels = ahead.labels[:3]
    with pytest.raises(IndexError):
        [ahead[i] for i in range(len(ahead))]


def test_noise_comes_with_the_images_by_seed_epoch_and_step():
    noise = {}
    for seed, epoch in ((1, 1), (1, 2), (2, 1)):
        batches = tiny_batches(noise=5, seed=seed)
        batches.epoch = epoch
        for step in (0, 1):
            (images, noise[seed, epoch, step]), _ = batches[step]
            assert images.shape == (32, 32, 32, 3)
            np.testing.assert_array_equal(batches[step][0][1], noise[seed, epoch, step])
    assert len({each.tobytes() for each in noise.values()}) == 6
    every = np.concatenate(list(noise.values()))
    assert every.shape == (6 * 32, 5)
    assert abs(every.mean()) < 0.1
    assert every.std() == pytest.approx(1, abs=0.1)


def test_an_epoch_shows_every_image_once_and_full_batches():
    images, labels = np.zeros((50, 32, 32, 3), np.uint8), np.arange(50)
    batches = Batches(images, labels, 20)
    shown = np.concatenate([batches[i][1].argmax(1) for i in range(len(batches))])
    assert len(batches) == 3
    assert sorted(shown[:50]) == list(range(50))
    assert len(shown) == 60
    assert len(Batches(images, labels, 20, steps=2)) == 2
    assert Batches(images[:3], labels[:3], 20)[0][0].shape == (20, 32, 32, 3)


def test_crop_and_flip_moves_whole_images():
    image = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(1, 32, 32, 3) % 251
    images = np.repeat(image.astype(np.uint8), 64, axis=0)
    changed = crop_and_flip(images, np.random.default_rng(0))
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    padded = np.pad(images[:1], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")[0]
    crops = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    possible = {crop.tobytes() for crop in crops} | {np.ascontiguousarray(crop[:, ::-1]).tobytes() for crop in crops}
    assert {np.ascontiguousarray(one).tobytes() for one in changed} <= possible
    only_flips = crop_and_flip(images, np.random.default_rng(0), pad=0)
    assert {one.tobytes() for one in only_flips} == {images[0].tobytes(), np.ascontiguousarray(images[0][:, ::-1]).tobytes()}


def test_cutmix_pastes_a_rectangle_of_a_partner_and_shares_the_labels_by_its_area():
    images = np.full((8, 32, 32, 3), 1, np.uint8) * np.arange(1, 9, dtype=np.uint8)[:, None, None, None]
    labels = np.eye(8, dtype="float32")
    areas = []
    for seed in range(50):
        mixed, shared = cutmix(images, labels, np.random.default_rng(seed))
        for i in range(8):
            pasted = (mixed[i] == images[i - 1]).all(axis=-1)
            assert ((mixed[i] == images[i]).all(axis=-1) != pasted).all()  # each pixel is one image's or the other's
            rows, columns = np.nonzero(pasted)
            if len(rows):
                assert np.ptp(rows) + 1 == len(set(rows))
                assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == pasted.sum()
            assert shared[i] == pytest.approx(labels[i] * (1 - pasted.mean()) + labels[i - 1] * pasted.mean(), abs=1e-6)
        areas.append(pasted.mean())
    assert min(areas) < 0.1
    assert max(areas) > 0.6
    assert images[0].max() == 1  # the inputs are left alone


def test_mixed_batches_come_as_often_as_asked_and_change_nothing_else():
    plain, always = tiny_batches(), tiny_batches(cutmix=1.0)
    half = [batch for epoch in range(20) for batch in every_batch(tiny_batches(cutmix=0.5), epoch)]
    assert 0.35 < np.mean([(labels.max(axis=1) < 1).any() for _, labels in half]) < 0.65
    (images, labels), (mixed, shared) = plain[2], always[2]
    assert (mixed != images).any()
    assert shared.sum(axis=1) == pytest.approx(np.ones(32))
    assert ((mixed == images) | (mixed == np.roll(images, 1, axis=0))).all()
    assert labels.max(axis=1).min() == 1


def every_batch(batches, epoch):
    batches.epoch = epoch
    return [batches[step] for step in range(len(batches))]
