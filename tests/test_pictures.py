"""A reader's own pictures: any size, mode and orientation; what cannot be read is refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from core import pictures
from core.cifar100 import DataError


def halves(width, height, mode="RGB"):
    """A picture whose upper half is red and whose lower half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = pixels[height // 2 :, :, 2] = 200
    return Image.fromarray(pixels).convert(mode)


def read(tmp_path, image, name="picture.png", **arguments):
    image.save(tmp_path / name, **arguments)
    return pictures.read(tmp_path / name)


def is_red(pixels):
    return pixels[..., 0].mean() > 150 > 50 > pixels[..., 2].mean()


@pytest.mark.parametrize("size", [(32, 32), (100, 60), (60, 100), (641, 479), (5, 5), (4000, 40)])
def test_any_size_becomes_32_by_32_of_the_middle(tmp_path, size):
    pixels = read(tmp_path, halves(*size))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert is_red(pixels[:12])
    assert pixels[-12:, :, 2].mean() > 150


def test_the_sides_of_a_wide_picture_are_cut_off(tmp_path):
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("black", (100, 0, 200, 100))
    assert read(tmp_path, wide).max() < 30


def test_it_is_made_small_with_antialiasing(tmp_path):
    """Stripes of one pixel become an even grey, not black or white."""
    stripes = Image.fromarray(np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (320, 160, 1)))
    assert np.abs(read(tmp_path, stripes).astype(int) - 127).max() < 12


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 1), (8, 3)])
def test_a_photograph_held_sideways_is_turned_upright(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[274] = orientation
    turned = Image.fromarray(np.rot90(np.asarray(halves(64, 64)), turn))  # as the sensor saw it
    pixels = read(tmp_path, turned, "photo.jpg", exif=exif, quality=95)
    assert is_red(pixels[:12])


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "I", "F"])
def test_any_mode(tmp_path, mode):
    if mode in ("I;16", "I", "F"):
        levels = np.full((40, 40), 200 if mode == "F" else 200 * 257, {"I;16": "uint16", "I": "int32", "F": "float32"}[mode])
        image = Image.fromarray(levels)
    else:
        image = Image.new("RGB", (40, 40), (255,) * 3 if mode == "1" else (200,) * 3).convert(mode)
    pixels = read(tmp_path, image, "picture.tiff")
    assert abs(pixels.astype(int).mean() - (255 if mode == "1" else 200)) < 3


def test_what_is_transparent_becomes_white_whatever_colour_lies_beneath(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 64, 32))
    pixels = read(tmp_path, image)
    assert pixels[-12:].min() > 240
    assert pixels[:12, :, 2].min() > 240 > 15 > pixels[:12, :, 0].max()
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([255, 0, 0] * 256)
    assert read(tmp_path, palette, "p.gif", transparency=0).min() > 240


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "blue")]
    assert is_red(read(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:]))
    assert is_red(read(tmp_path, frames[0], "a.webp", save_all=True, append_images=frames[1:], lossless=True))


def test_a_picture_of_one_pixel(tmp_path):
    assert (read(tmp_path, Image.new("RGB", (1, 1), (9, 99, 199))) == (9, 99, 199)).all()


def test_the_example_is_there():
    assert pictures.read().std() > 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot identify"),
        (b"not an image", "cannot identify"),
        (None, "no such file"),
        ("folder", "not a file"),
        ("cut", "truncated|broken"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name_and_the_reason(tmp_path, content, words):
    path = tmp_path / "mine.png"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue()[:2000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"mine\.png: expected an image, found .*({words})"):
        pictures.read(path)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (10_000, 8_500)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="10000x8500 pixels, at most 80 million"):
        pictures.read(tmp_path / "huge.png")


def test_a_path_may_be_text_and_begin_at_home(tmp_path, monkeypatch):
    halves(40, 40).save(tmp_path / "p.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_red(pictures.read("~/p.png")[:12])
