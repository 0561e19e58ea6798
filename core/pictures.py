"""A reader's own picture: any file that Pillow reads becomes an image as the networks see it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import core
from core.cifar100 import DataError

EXAMPLE = core.ROOT / "docs" / "picture.png"  # drawn for this repository
MOST = 80_000_000  # pixels: a picture of 9,000 x 8,800


def read(path=""):
    """Return a picture as `uint8` (32, 32, 3): upright, its middle square, resized with antialiasing.

    `path` may name any size and mode; "" stands for the example in docs/. Raises `DataError` naming the file and the reason.
    """
    picture = open_rgb(Path(path).expanduser() if path else EXAMPLE, MOST)
    return np.asarray(ImageOps.fit(picture, (32, 32), Image.Resampling.LANCZOS), "uint8")


def open_rgb(path, most):
    """Return a file as a Pillow image in RGB, of at most so many pixels. Raises `DataError` naming the file and the reason.

    It is turned as its EXIF data say. Of an animation the first frame is taken, what is transparent becomes white, and 16 bits
    a channel become eight.
    """
    try:
        if not path.is_file():  # a folder, a broken link, or a pipe that would never end
            raise ValueError("not a file" if path.exists() else "no such file")
        with Image.open(path) as image:
            if image.width * image.height > most:
                raise ValueError(f"{image.width}x{image.height} pixels, at most {most / 1e6:.0f} million are read")
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # Pillow would clip its levels to 255
                image = _eight_bits(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # a broken image can raise anything
        raise DataError(f"{path}: expected an image, found {type(error).__name__}: {error}") from error


def _eight_bits(image):
    """Scale levels of 16 bits or more to 0..255; levels that are within it stay."""
    levels = np.nan_to_num(np.asarray(image, float))
    largest = max(levels.max(), 255, 65535 * (levels.max() > 255))
    return Image.fromarray((levels / largest * 255).astype("uint8"))
