"""Batches depend on seed, epoch and step alone: order, crop and flip, CutMix, noise."""

import threading
from unittest import mock

import numpy as np
import pytest
from test_training import tiny_batches

from core import batches, devices
from core.batches import Batches, crop_and_flip, cutmix


def assert_equal(one, other):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_batches_depend_on_seed_epoch_and_step_alone():
    one, other = tiny_batches(), tiny_batches()
    first, *_ = [one[i] for i in range(5)]  # what was read before changes nothing
    assert_equal(one[3], other[3])
    one.on_epoch_end()
    other.epoch = 1  # as `training.fit` sets it
    assert_equal(one[2], other[2])
    for changed in (one, tiny_batches(seed=2)):
        assert (changed[0][0] != first[0]).any()


def test_order_augmentation_cutmix_and_noise_have_different_streams():
    made = tiny_batches(noise_size=4, cutmix=1.0, trivial_augment=True, seed=91)
    with mock.patch.object(batches, "random_stream", wraps=batches.random_stream) as streams:
        made[0]
    used = [call.args for call in streams.call_args_list]
    purposes = [(purpose, 91, 0, 0) for purpose in ("augmentation", "cutmix", "noise")]
    assert used == [("order", 91, 0), *purposes]
    assert len({batches.random_stream(*arguments).random() for arguments in used}) == 4


@pytest.fixture
def ahead(monkeypatch):
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    return tiny_batches()


def test_the_next_batches_are_made_in_threads_while_a_gpu_trains(ahead):
    plain, makers = tiny_batches(), {}
    plain._threads = None

    def watched(*place):
        makers[place] = threading.current_thread()
        return plain._make(*place)

    with mock.patch.object(ahead, "_make", watched):
        for step in range(len(ahead)):
            assert_equal(ahead[step], plain[step])
            upcoming = range(step + 1, min(step + 3, len(ahead)))
            assert list(ahead._made) == [(0, each) for each in upcoming]
    assert sorted(makers) == [(0, step) for step in range(len(ahead))]  # each once, none beyond
    assert threading.current_thread() not in makers.values()


def test_batches_made_ahead_follow_every_change_and_keep_their_errors(ahead):
    plain = tiny_batches(cutmix=1.0)
    plain._threads = None
    ahead[0]
    ahead.cutmix = 1.0  # a callback may change it: the next batch has it
    for step in (1, 3, 2, 0):
        assert_equal(ahead[step], plain[step])
    ahead.labels = ahead.labels[:3]
    with pytest.raises(IndexError):
        ahead[2]


def test_the_state_of_batches_is_their_settings(ahead):
    before = ahead.__getstate__()
    ahead.epoch = 2
    ahead[0]
    assert ahead.__getstate__() == before
    names = "images labels batch_size seed pad cutmix trivial_augment noise_size classes"
    assert set(before) == {*names.split(), "steps_per_epoch"}


def test_noise_is_normal_and_differs_by_seed_epoch_and_step():
    noise = []
    for seed, epoch in ((1, 1), (1, 2), (2, 1)):
        made = tiny_batches(noise_size=5, seed=seed)
        made.epoch = epoch
        noise += [made[step][0][1] for step in (0, 1)]
    assert len({each.tobytes() for each in noise}) == 6
    assert np.shape(noise) == (6, 32, 5)
    assert np.mean(noise) == pytest.approx(0, abs=0.1)
    assert np.std(noise) == pytest.approx(1, abs=0.1)


def test_an_epoch_shows_every_image_once_and_full_batches():
    images, labels = np.zeros((50, 32, 32, 3), np.uint8), np.arange(50)
    made = Batches(images, labels, 20)
    shown = np.concatenate([made[i][1].argmax(1) for i in range(len(made))])
    assert len(shown) == 60
    assert sorted(shown[:50]) == list(range(50))
    assert len(Batches(images, labels, 20, steps_per_epoch=2)) == 2
    assert Batches(images[:3], labels[:3], 20)[0][0].shape == (20, 32, 32, 3)


def test_crop_and_flip_moves_whole_images():
    image = (np.arange(32 * 32 * 3) % 251).astype(np.uint8).reshape(32, 32, 3)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    crops = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    for pad, possible, different in ((4, crops, 30), (0, [image], 2)):
        changed = crop_and_flip(np.stack([image] * 64), np.random.default_rng(0), pad)
        assert changed.dtype == np.uint8
        made = {each.tobytes() for each in changed}
        assert made <= {view.tobytes() for crop in possible for view in (crop, crop[:, ::-1])}
        assert len(made) >= different


def test_cutmix_pastes_a_rectangle_of_a_partner_and_shares_the_labels_by_its_area():
    images = np.full((32, 32, 3, 8), np.arange(8), np.uint8).transpose(3, 0, 1, 2)
    labels, areas = np.eye(8, dtype="float32"), []
    for seed in range(50):
        mixed, shared = cutmix(images, labels, np.random.default_rng(seed))
        pasted = (mixed == images[np.arange(8) - 1]).all(axis=-1)
        assert ((mixed == images).all(axis=-1) != pasted).all()
        assert (pasted == pasted[0]).all()
        rows, columns = pasted[0].any(axis=1), pasted[0].any(axis=0)
        assert (pasted[0] == np.outer(rows, columns)).all()
        for side in (rows, columns):
            assert (np.diff(np.flatnonzero(side)) == 1).all()  # without a gap
        areas.append(pasted.mean())
        expected = labels * (1 - areas[-1]) + labels[np.arange(8) - 1] * areas[-1]
        np.testing.assert_allclose(shared, expected, atol=1e-6)
    assert min(areas) < 0.1
    assert max(areas) > 0.6
    assert images[7].min() == 7  # the inputs are left alone


def test_mixed_batches_come_as_often_as_asked_and_change_nothing_else():
    plain, always, half = (tiny_batches(cutmix=probability) for probability in (0.0, 1.0, 0.5))
    (images, labels), (mixed, shared) = plain[2], always[2]
    assert (mixed != images).any()
    assert ((mixed == images) | (mixed == np.roll(images, 1, axis=0))).all()
    assert labels.max(axis=1).min() == 1
    assert shared.sum(axis=1) == pytest.approx(np.ones(32))
    were_mixed = []
    for half.epoch in range(20):
        were_mixed += [half[i][1].max(axis=1).min() < 1 for i in range(len(half))]
    assert 0.35 < np.mean(were_mixed) < 0.65
