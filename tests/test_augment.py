"""Changes of images: the same as Pillow's, and each image changed once."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from core import augment
from core.batches import Batches


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(30, 220, (5, 5, 3), np.uint8)).resize((32, 32)) for _ in range(7)]
    return np.stack([np.asarray(image) for image in smooth])


def by_pillow(images, change):
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


@pytest.mark.parametrize(
    ("change", "pillows"),
    [
        (augment.brightness, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
        (augment.colour, lambda image: ImageEnhance.Color(image).enhance(1.45)),
        (augment.contrast, lambda image: ImageEnhance.Contrast(image).enhance(1.45)),
        (augment.sharpness, lambda image: ImageEnhance.Sharpness(image).enhance(1.45)),
        (augment.posterize, lambda image: ImageOps.posterize(image, 6)),
        (augment.solarize, lambda image: ImageOps.solarize(image, 128)),
        (augment.autocontrast, ImageOps.autocontrast),
        (augment.equalize, ImageOps.equalize),
        (augment.move_rows, lambda image: image.transform((32, 32), Image.AFFINE, (1, 0, 0, 0, 1, 5), fillcolor=(128,) * 3)),
        (augment.rotate, lambda image: image.rotate(15, fillcolor=(128, 128, 128))),
    ],
)
def test_each_change_is_pillows(images, change, pillows):
    ours, theirs = change(images, 0.5).astype(int), by_pillow(images, pillows).astype(int)
    assert ours.shape == images.shape
    assert not np.array_equal(ours, images)
    off = np.abs(ours - theirs).max(-1) > 1  # one level for rounding
    assert off.mean() < 0.01  # a turned pixel that lies half-way between two can be the other one


@pytest.mark.parametrize("change", [each for each in augment.CHANGES if each not in (augment.autocontrast, augment.equalize)])
def test_a_strength_of_zero_changes_nothing(images, change):
    np.testing.assert_array_equal(change(images, 0.0), images)


@pytest.mark.parametrize("change", augment.CHANGES)
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_every_change_takes_plain_images_and_leaves_its_input_alone(change, strength):
    plain = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 7, 255)])
    before = plain.copy()
    changed = change(plain, strength)
    assert (changed.shape, changed.dtype) == (plain.shape, np.uint8)
    np.testing.assert_array_equal(plain, before)


def test_neighbours_share_a_change_and_all_changes_occur(images):
    one = np.repeat(images[:1], 64, axis=0)
    changed = augment.trivial_augment(one, np.random.default_rng(0), group=16)
    groups = changed.reshape(4, 16, -1)
    assert (groups == groups[:, :1]).all()
    seen = {augment.trivial_augment(one[:1], np.random.default_rng(seed)).tobytes() for seed in range(300)}
    assert len(seen) > 150  # most changes have a strength of their own


def test_batches_change_images_only_where_asked_and_the_same_at_each_reading(images):
    labels = np.arange(7)
    plain, changed, again = (Batches(images, labels, 7, pad=0, trivial=trivial) for trivial in (False, True, True))
    assert np.array_equal(changed[0][0], again[0][0])
    assert not np.array_equal(plain[0][0], changed[0][0])
    assert np.array_equal(plain[0][1], changed[0][1])
