"""Draw ten images of a class with the published generator: `python -m tools.draw sunflower`.

This needs neither CIFAR-100 nor training. The images are written to one file in runs/drawn.
"""

import argparse
import sys

import keras
import numpy as np
from PIL import Image

import core
from core import datasets, gan, records

GENERATOR = core.ROOT / "results" / "cifar100" / "gan_long_generator.keras"
ENLARGEMENT = 4  # of each image's width and height


def main() -> None:
    names = datasets.class_names("cifar100")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="sunflower", help="a class of CIFAR-100")
    parser.add_argument(
        "--seed", type=int, default=0, help="a different seed draws different images"
    )
    arguments = parser.parse_args()
    name = arguments.name.lower().replace(" ", "_")
    if name not in names:
        sys.exit(f"CIFAR-100 has no class {name!r}. Its classes: {', '.join(names)}")
    labels = np.full(10, names.index(name))
    generator = keras.saving.load_model(GENERATOR)
    row = np.concatenate(list(gan.generate(generator, labels, arguments.seed)), axis=1)
    size = row.shape[1] * ENLARGEMENT, row.shape[0] * ENLARGEMENT
    path = records.run_folder("drawn") / f"{name}-{arguments.seed}.png"
    Image.fromarray(row).resize(size, Image.Resampling.BICUBIC).save(path)
    print(f"Ten images of the class {name}: {path}")


if __name__ == "__main__":
    main()
