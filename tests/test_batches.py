"""Batches depend on seed, epoch and step alone; how they are augmented."""

import threading
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from test_training import tiny_batches

from core import augment, batches, devices
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
    made = tiny_batches(noise_size=64, cutmix=1.0, trivial_augment=True, seed=91)
    made.epoch = 2
    with mock.patch.object(batches, "random_stream", wraps=batches.random_stream) as streams:
        (_, noise), _ = made[3]
    used = [call.args for call in streams.call_args_list]
    purposes = [(purpose, 91, 2, 3) for purpose in ("augmentation", "cutmix", "noise")]
    assert used == [("order", 91, 2), *purposes]
    assert len({batches.random_stream(*each).integers(2**63) for each in used}) == 4
    assert noise.shape == (32, 64)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(1, abs=0.1)


def test_the_next_batches_are_made_in_threads_while_a_gpu_trains(monkeypatch):
    plain, makers = tiny_batches(), {}
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    ahead = tiny_batches()
    settings = ahead.__getstate__()

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
    ahead.epoch = plain.epoch = 2
    names = "images labels batch_size seed pad cutmix trivial_augment noise_size classes"
    assert ahead.__getstate__() == settings  # which define a run; its progress does not
    assert set(settings) == {*names.split(), "steps_per_epoch"}
    ahead[0]
    ahead.cutmix = plain.cutmix = 1.0  # a callback may change it: the next batch has it
    for step in (1, 3, 2, 0):
        assert_equal(ahead[step], plain[step])


def test_an_epoch_shows_every_image_in_full_batches():
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
    plain, half, were_mixed = tiny_batches(), tiny_batches(cutmix=0.5), []
    for plain.epoch in range(20):
        half.epoch = plain.epoch
        for (images, _), (mixed, shared) in zip(plain, half, strict=True):
            assert ((mixed == images) | (mixed == np.roll(images, 1, axis=0))).all()
            were_mixed.append(shared.max(axis=1).min() < 1)
            assert were_mixed[-1] or (mixed == images).all()
    assert 0.35 < np.mean(were_mixed) < 0.65


PIXELS = np.random.default_rng(0).integers(30, 220, (5, 5, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS).resize((32, 32))  # smooth


@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_an_operation_changes_less_at_a_smaller_strength(operation):
    plain = np.asarray(IMAGE).astype(int)
    changes = [np.abs(np.asarray(operation(IMAGE, s)) - plain).mean() for s in (0.0, 0.5, 1.0)]
    assert changes[0] <= changes[1] <= changes[2]
    assert changes[0] == 0 or operation in augment.OPERATIONS[-2:]  # autocontrast and equalize
    assert changes[2] > 0 or operation is augment.OPERATIONS[0]


def test_an_image_is_sheared_and_moved_about_its_middle():
    line = np.zeros((32, 32, 3), np.uint8)
    line[:, 16] = 255
    sheared = np.asarray(augment.OPERATIONS[2](Image.fromarray(line), 1.0))[..., 0] == 255
    assert sheared[16].argmax() == 16
    assert sheared[6].argmax() - sheared[26].argmax() == 6  # 0.3 pixels per row
    moved = np.asarray(augment.OPERATIONS[4](Image.fromarray(line), 0.5))
    assert moved[0, 11].tolist() == [255] * 3
    assert moved[0, -1].tolist() == [*augment.GREY]


def test_each_image_gets_an_operation_of_its_own_and_the_original_stays():
    images = np.repeat(np.asarray(IMAGE)[None], 200, axis=0)
    before = images.copy()
    changed = augment.trivial_augment(images, np.random.default_rng(0))
    np.testing.assert_array_equal(images, before)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert len({image.tobytes() for image in changed}) > 100
    again = augment.trivial_augment(images, np.random.default_rng(0))
    np.testing.assert_array_equal(changed, again)
