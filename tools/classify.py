"""Name what is in a picture, with the published network: `python -m tools.classify picture.jpg`.

It needs neither CIFAR-100 nor any training. Without a picture it takes one that we drew.
"""

import argparse
import sys

import core
from core import cifar100, pictures, records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", default="", help="any file that Pillow reads")
    picture = parser.parse_args().picture
    try:
        image = pictures.read(picture)
    except cifar100.DataError as error:
        sys.exit(str(error))
    print(f"{picture or pictures.EXAMPLE}: one of the 100 classes of CIFAR-100 has to be it")
    for name, share in likeliest(image):
        print(f"{share:6.1%}  {name}")


def likeliest(image, count=5):
    """Return the `count` likeliest classes of an image `uint8` (32, 32, 3), each with its probability."""
    import keras

    (file,) = records.classifier_files(core.ROOT / "results" / "cifar100")
    shares = keras.saving.load_model(file).predict(image[None], verbose=0)[0]
    names = [name.replace("_", " ") for name in cifar100.class_names("cifar100")]
    return [(names[i], float(shares[i])) for i in shares.argsort()[::-1][:count]]


if __name__ == "__main__":
    main()
