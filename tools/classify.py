"""Classify a picture with the published network or another: `python -m tools.classify picture.jpg`.

This needs neither CIFAR-100 nor training. Without a picture, it classifies the example in docs/.
"""

import argparse
import sys
from pathlib import Path

import keras

import core
from core import export, pictures
from core.cifar100 import DataError

NETWORK = core.ROOT / "results" / "cifar100" / "vgg16_best.keras"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", default=pictures.EXAMPLE, help="any image file")
    parser.add_argument("--network", type=Path, default=NETWORK,
                        help="a file such as runs/cifar100/vgg16.keras")  # fmt: skip
    arguments = parser.parse_args()
    try:
        image = pictures.read(arguments.picture)
        names = export.class_names(arguments.network)
    except DataError as error:
        sys.exit(str(error))
    try:
        network = keras.saving.load_model(arguments.network)
        probabilities = network.predict(image[None], verbose=0)[0]
        best = probabilities.argsort()[::-1][:5]
        likeliest = [(names[label].replace("_", " "), probabilities[label]) for label in best]
    except Exception as error:  # Keras raises exceptions of many types
        sys.exit(f"{arguments.network}: not a classifier that Keras can load ({error!s:.150})")
    print(f"{arguments.picture}: the most likely of the network's {len(names)} classes")
    for name, probability in likeliest:
        print(f"{probability:6.1%}  {name}")


if __name__ == "__main__":
    main()
