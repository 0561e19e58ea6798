"""Does speed cost accuracy? `make parity`: VGG-16 with utils' layers, optimiser and precision, and with Keras's in float32.

A pair starts from the same weights and sees the same batches: it differs in these alone. Prints a table, writes
results/bench/parity.json, gives no verdict.
"""

import argparse
import json
import types
from pathlib import Path
from unittest import mock

import utils  # first: it sets TensorFlow's CPU switches

import cifar100
import checkpoints
import keras
import measures
import numpy as np

from notebooks import bench, cells, run

OUTPUT = bench.OUTPUT.with_name("parity.json")
PARTS = ("BatchNormalization", "Conv2D", "Adam")
PLAIN = types.SimpleNamespace(
    BatchNormalization=keras.layers.BatchNormalization, Conv2D=keras.layers.Conv2D, Adam=keras.optimizers.Adam
)
SOURCES = {"fast": utils, "plain": PLAIN}


def train(source, data, seed, epochs, width, images):
    """Train notebook 2's VGG-16 with batch normalisation, convolutions and Adam of `source`; return validation accuracy."""
    train, validation = utils.split(data.y_train, seed=seed)
    train = np.random.default_rng(seed).permutation(train)[:images]
    batches = checkpoints.Batches(data.x_train[train], data.y_train[train], 64, seed=seed)
    keras.utils.set_random_seed(seed)
    rate = utils.warmup_cosine(2e-3, epochs * len(batches), len(batches) // 2)
    with mock.patch.multiple(utils, **{part: getattr(source, part) for part in PARTS}):
        model = cells.define("vgg16_with_gan", "def build_vgg16", WIDTH=width, x_real=data.x_train[train])["build_vgg16"]()
        bench.compiled(model, rate)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    return measures.accuracy(model, data.x_train[validation], data.y_train[validation])


def report(record):
    """Return the record as Markdown: a table of pairs, and their mean difference."""
    return measures.pairs_table(record["seeds"], record["accuracy"]) + (
        f"\nValidation accuracy of VGG-16 at width {record['width']} on {record['title']} after {record['epochs']} epoch(s) of"
        f" {record['images']:,} images;\nfast: {record['precision']} with `utils`' layers and Adam; plain: float32, Keras's.\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, help="training images, at most; all of them unless given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", choices=utils.PRECISIONS, default="auto", help="of the fast one")
    parser.add_argument("--publish", action="store_true", help="only write the committed record's table to the README")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.publish:
        return run.fill_readme("parity", report(json.loads(arguments.output.read_text())))
    data = utils.load(cifar100.at_hand())
    record = {"title": data.title, "seeds": list(range(arguments.seeds)), "epochs": arguments.epochs, "width": arguments.width}
    available = len(utils.split(data.y_train)[0])
    record |= {"images": min(arguments.images or available, available), "precision": utils.set_precision(arguments.precision)}
    record |= {"accuracy": {name: [] for name in SOURCES}}
    for seed in record["seeds"]:
        for name, source in SOURCES.items():
            utils.set_precision(record["precision"] if name == "fast" else "float32")
            accuracy = train(source, data, seed, arguments.epochs, arguments.width, record["images"])
            record["accuracy"][name].append(accuracy)
            print(f"seed {seed}, {name}: {accuracy:.4f}", flush=True)
    bench.keep(record | utils.environment(), report(record), arguments.output)


if __name__ == "__main__":
    main()
