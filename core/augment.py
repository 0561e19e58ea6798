"""TrivialAugment (Müller & Hutter, 2021): one random operation of random strength per image.

Strengths are uniform between -1 and 1. Each operation maps them to its range in the paper (section
3, the first of its two sets of ranges). The operations are Pillow's.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)  # fills what a shifted or rotated image leaves empty


def trivial_augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return images `uint8` (n, height, width, 3), each changed by one random operation."""
    chosen = rng.integers(0, len(OPERATIONS), len(images))
    strengths = rng.uniform(-1, 1, len(images))
    changed = np.empty_like(images)
    for i, (index, strength) in enumerate(zip(chosen, strengths, strict=True)):
        changed[i] = OPERATIONS[index](Image.fromarray(images[i]), strength)
    return changed


def affine(image: Image.Image, across: tuple, down: tuple) -> Image.Image:
    """Return an image whose pixel (x, y) is taken from the position (x', y') of `image`.

    `across` holds the three coefficients of x' = a * x + b * y + c, and `down` those of y'.
    """
    method = Image.Transform.AFFINE
    return image.transform(image.size, method, (*across, *down), fillcolor=GREY)


def enhance(kind):
    """Return an operation that applies one of Pillow's enhancers with a factor of 0.1 to 1.9."""
    return lambda image, strength: kind(image).enhance(1 + 0.9 * strength)


def posterize(image, strength):
    return ImageOps.posterize(image, 8 - round(4 * abs(strength)))


def solarize(image, strength):
    return ImageOps.solarize(image, 256 * (1 - abs(strength)))


OPERATIONS = (
    lambda image, strength: image,
    lambda image, strength: image.rotate(30 * strength, fillcolor=GREY),
    lambda image, strength: affine(image, (1, 0.3 * strength, -4.8 * strength), (0, 1, 0)),
    lambda image, strength: affine(image, (1, 0, 0), (0.3 * strength, 1, -4.8 * strength)),
    lambda image, strength: affine(image, (1, 0, 10 * strength), (0, 1, 0)),
    lambda image, strength: affine(image, (1, 0, 0), (0, 1, 10 * strength)),
    enhance(ImageEnhance.Brightness),
    enhance(ImageEnhance.Color),
    enhance(ImageEnhance.Contrast),
    enhance(ImageEnhance.Sharpness),
    posterize,
    solarize,
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.equalize(image),
)
