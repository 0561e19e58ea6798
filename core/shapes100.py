"""shapes100, a stand-in for CIFAR-100 that is drawn in a second and needs no download."""

import hashlib

import numpy as np
from PIL import Image, ImageDraw

from core.cifar100 import Dataset
from core.streams import random_stream

COLOURS = ("red", "yellow", "green", "blue", "white")
OUTLINES = {  # angles of the corners in degrees, and their distances from the centre, repeated
    "circle": (np.arange(24) * 15, [1]), "half disc": (np.arange(13) * 15, [1]),
    "triangle": (np.arange(3) * 120 - 90, [1]), "square": (np.arange(4) * 90 - 45, [1]),
    "diamond": (np.arange(4) * 90, [0.7, 1.1]), "hexagon": (np.arange(6) * 60, [1]),
    "star": (np.arange(10) * 36 - 90, [1.1, 0.45]),
    "cross": (np.arange(12) * 30 - 15, [1, 1, 0.4]),
    "bar": (np.array([20, 160, 200, 340]), [1]),
    "arrow": (np.array([-90, 60, 90, 120]), [1, 1, 0.2, 1]),
}  # fmt: skip
SUPERCLASS_NAMES = [f"{fill} {outline}" for outline in OUTLINES for fill in ("filled", "hollow")]
CLASS_NAMES = [f"{colour} {shape}" for shape in SUPERCLASS_NAMES for colour in COLOURS]


def draw_shapes100(train_per_class: int = 50, test_per_class: int = 10, seed: int = 0) -> Dataset:
    """Return the stand-in: 20 shapes in 5 colours, by default a tenth of the size of CIFAR-100."""
    rng = random_stream("shapes100", seed)
    y_train = rng.permutation(np.repeat(np.arange(100), train_per_class))
    y_test = rng.permutation(np.repeat(np.arange(100), test_per_class))
    x_train, x_test = (np.stack([_draw(label, rng) for label in y]) for y in (y_train, y_test))
    md5 = hashlib.md5(x_train.tobytes(), usedforsecurity=False).hexdigest()
    return Dataset("shapes100", md5, x_train, y_train, x_test, y_test,
                   CLASS_NAMES, SUPERCLASS_NAMES, np.arange(100) // 5)  # fmt: skip


def _draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return an image `uint8` (32, 32, 3): a coloured shape on blurred noise."""
    angles, distances = list(OUTLINES.values())[label // 10]
    colour, is_filled = COLOURS[label % 5], label // 5 % 2 == 0
    radius = rng.uniform(7, 12)
    centre = rng.uniform(radius, 32 - radius, 2)
    turned = np.deg2rad(angles) + rng.uniform(-0.25, 0.25)
    directions = np.stack([np.cos(turned), np.sin(turned)], axis=1)
    corners = centre + radius * np.resize(distances, (len(angles), 1)) * directions
    noise = Image.fromarray(rng.integers(0, 90, (4, 4, 3), np.uint8))
    image = noise.resize((32, 32), Image.Resampling.BILINEAR)
    fill = colour if is_filled else None
    ImageDraw.Draw(image).polygon(corners.ravel().tolist(), fill, outline=colour, width=2)
    grain = rng.integers(-12, 13, (32, 32, 1))
    return np.clip(np.asarray(image, int) + grain, 0, 255).astype(np.uint8)
