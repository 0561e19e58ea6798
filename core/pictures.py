"""Read pictures in any format that Pillow supports, and convert them to network inputs."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import core
from core.cifar100 import DataError

EXAMPLE = core.ROOT / "docs" / "picture.png"  # drawn for this repository
MAX_PIXELS = 80_000_000  # for example, 10,000 x 8,000


def read(path: str | Path = "") -> np.ndarray:
    """Return the picture in a file as `uint8` (32, 32, 3).

    It is turned upright, cropped to the square in its middle, and resized with a Lanczos filter.
    Without a `path`, it is the example in docs/. Raises `DataError` like `open_rgb`.
    """
    picture = open_rgb(Path(path).expanduser() if path else EXAMPLE)
    return np.asarray(ImageOps.fit(picture, (32, 32), Image.Resampling.LANCZOS), "uint8")


def open_rgb(path: Path) -> Image.Image:
    """Return the image in a file as an upright RGB image.

    It is rotated according to its EXIF orientation. Of an animation, the first frame is used;
    transparent pixels become white, and 16 bits per channel become eight. Raises `DataError`, which
    names the file and the reason, if there is no image that Pillow can read, if it has more than
    `MAX_PIXELS` pixels, or if it has 32 bits per channel, because the range of such values is
    unknown.
    """
    try:
        if not path.is_file():  # a folder, a broken link, or a pipe that would never end
            raise ValueError("it is not a file" if path.exists() else "there is no such file")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                limit = f"at most {MAX_PIXELS / 1e6:.0f} million are allowed"
                raise ValueError(f"it has {image.width}x{image.height} pixels, and {limit}")
            image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F"):
                raise ValueError("it has 32 bits per channel. Save it with 8 bits per channel")
            if image.mode.startswith("I;16"):  # which Pillow would clip to 255
                image = Image.fromarray((np.asarray(image) // 257).astype("uint8"))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # a broken image can raise anything
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        if path.is_file() and path.suffix.lower() in (".heic", ".heif"):
            reason = "Pillow cannot read HEIC, so export it as JPEG"
        raise DataError(f"{path} cannot be used as an image: {reason}") from error
