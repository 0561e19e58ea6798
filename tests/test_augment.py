"""TrivialAugment: one operation per image, of every kind, and none at strength 0."""

import numpy as np
import pytest
from PIL import Image

from core import augment

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
