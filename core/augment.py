"""TrivialAugment: one random change of random strength for each image (Müller & Hutter, 2021), in NumPy, a group at a time.

Each change takes images `uint8` (n, 32, 32, 3) and a strength -1 to 1, and returns changed images; 0 changes nothing or least.
Its range is that of the paper (section 3, the first of its two).
"""

import numpy as np

GREY = 128  # of what comes in from beyond the edge
WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in a grey level, as Pillow has them


def trivial_augment(images, rng, group=16):
    """Return `uint8` images (n, height, width, 3), each changed once; `group` neighbours share the change and its strength."""
    changes = [CHANGES[i] for i in rng.integers(0, len(CHANGES), -(-len(images) // group))]
    strengths = rng.uniform(-1, 1, len(changes))
    parts = (images[first : first + group] for first in range(0, len(images), group))
    return np.concatenate([change(part, strength) for change, part, strength in zip(changes, parts, strengths, strict=True)])


def moved(images, matrix, shift=(0.0, 0.0)):
    """Return images whose pixel at (row, column), counted from the middle, is the one at `matrix` times it, plus `shift`."""
    height, width = images.shape[1:3]
    middle = np.array([height - 1, width - 1])[:, None] / 2
    places = np.stack(np.mgrid[:height, :width]).reshape(2, -1) - middle
    places = np.asarray(matrix) @ places + np.reshape(shift, (2, 1)) + middle
    rows, columns = np.floor(places + 0.5).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = images.reshape(len(images), -1, 3)[:, np.where(inside, rows * width + columns, 0)]
    flat[:, ~inside] = GREY
    return flat.reshape(images.shape)


def rotate(images, strength):
    angle = np.deg2rad(30 * strength)
    return moved(images, [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def shear_rows(images, strength):
    return moved(images, [[1, 0], [0.3 * strength, 1]])


def shear_columns(images, strength):
    return moved(images, [[1, 0.3 * strength], [0, 1]])


def move_rows(images, strength):
    return moved(images, np.eye(2), (10 * strength, 0))


def move_columns(images, strength):
    return moved(images, np.eye(2), (0, 10 * strength))


def blended(images, other, strength):
    """Return images nearer to `other` (strength below 0) or farther from it: 0.1 to 1.9 of the difference is left."""
    return np.clip(other + (1 + 0.9 * strength) * (images - np.float32(other)) + 0.5, 0, 255).astype("uint8")


def brightness(images, strength):
    return blended(images, 0, strength)


def colour(images, strength):
    return blended(images, grey(images), strength)


def contrast(images, strength):
    return blended(images, grey(images).mean((1, 2), keepdims=True), strength)


def sharpness(images, strength):
    return blended(images, smoothed(images), strength)


def grey(images):
    return (images @ np.array(WEIGHTS, "float32"))[..., None]


def smoothed(images):
    """Return images `float32` smoothed by a 3x3 kernel with 5 in its middle, but for the edges, as Pillow does."""
    smooth, height, width = images.astype("float32"), *images.shape[1:3]
    near = sum(smooth[:, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smooth[:, 1:-1, 1:-1] = (near + 4 * smooth[:, 1:-1, 1:-1]) / 13
    return smooth


def posterize(images, strength):
    bits = 8 - round(4 * abs(strength))
    return images & np.uint8(256 - 2 ** (8 - bits))


def solarize(images, strength):
    threshold = 256 * (1 - abs(strength))
    return np.where(images < threshold, images, 255 - images)


def autocontrast(images, strength):
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3, -1)  # in a row: ten times faster
    low, high = (extreme(-1)[:, None, None].astype("float32") for extreme in (pixels.min, pixels.max))
    stretched = (images - low) * (255 / np.maximum(high - low, 1))
    return np.where(high > low, stretched, images).astype("uint8")


def equalize(images, strength):
    """Spread the grey levels of each channel of each image, so that all are as frequent, as Pillow does."""
    n, height, width, channels = images.shape
    which = 256 * np.arange(n * channels).reshape(n, 1, 1, channels) + images  # a level of a channel of an image
    counts = np.bincount(which.ravel(), minlength=n * channels * 256).reshape(-1, 256)
    last = np.take_along_axis(counts, 255 - (counts[:, ::-1] > 0).argmax(1)[:, None], 1)
    step = (height * width - last) // 255
    table = (step // 2 + np.cumsum(counts, axis=1) - counts) // np.maximum(step, 1)
    table = np.where(step > 0, np.minimum(table, 255), np.arange(256)).astype("uint8")
    return table.reshape(-1)[which]


def same(images, strength):
    return images


CHANGES = (
    same, rotate, shear_rows, shear_columns, move_rows, move_columns, brightness, colour, contrast, sharpness, posterize,
    solarize, autocontrast, equalize,
)  # fmt: skip
