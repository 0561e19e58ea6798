"""Name what is in a picture, with the published network or one of yours: `python -m tools.classify picture.jpg`.

It needs neither CIFAR-100 nor any training. Without a picture it takes one that we drew.
"""

import argparse
import json
import sys
from pathlib import Path

import core
from core import cifar100, pictures, records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", default="", help="any file that Pillow reads")
    parser.add_argument("--network", type=Path, help="a classifier's file, such as runs/cifar100/vgg16.keras")
    arguments = parser.parse_args()
    try:
        image, network = pictures.read(arguments.picture), arguments.network or published()
    except cifar100.DataError as error:
        sys.exit(str(error))
    if not network.is_file():
        sys.exit(f"no network {network}")
    dataset = dataset_of(network)
    try:
        found = likeliest(image, network, cifar100.class_names(dataset))
    except Exception as error:  # Keras raises many kinds
        sys.exit(f"{network}: not a classifier that Keras can load ({str(error).splitlines()[0][:150]})")
    print(f"{arguments.picture or pictures.EXAMPLE}: one of the 100 classes of {cifar100.TITLES[dataset]} has to be it")
    for name, share in found:
        print(f"{share:6.1%}  {name}")


def published():
    """Return the file of the published classifier. Raises `DataError` where there is none, or more than one."""
    folder = core.ROOT / "results" / "cifar100"
    files = records.classifier_files(folder)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise cifar100.DataError(f"{folder}: expected one network, found {found}. Name one with --network")
    return files[0]


def dataset_of(network):
    """Return the dataset that a network's classes are of: what the record beside it says, or else CIFAR-100."""
    record = network.with_suffix(".json")
    return json.loads(record.read_text(encoding="utf-8"))["dataset"] if record.is_file() else "cifar100"


def likeliest(image, network, class_names, count=5):
    """Return the `count` likeliest classes of an image `uint8` (32, 32, 3), each with its probability; `network` is a file."""
    import keras

    shares = keras.saving.load_model(network).predict(image[None], verbose=0)[0]
    names = [name.replace("_", " ") for name in class_names]
    return [(names[i], float(shares[i])) for i in shares.argsort()[::-1][:count]]


if __name__ == "__main__":
    main()
