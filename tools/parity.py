"""Does speed cost accuracy? `make parity`: VGG-16 with core.fast and bfloat16, and with Keras's own parts in float32.

A pair starts from the same weights and sees the same batches: it differs in these alone. Prints a table, writes
runs/bench/parity.json, gives no verdict.
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

import utils
from core import cifar100, devices, fast, measures, parameters, records
from core.batches import Batches
from core.schedules import OneCycle
from tools import bench, cells

OUTPUT = bench.OUTPUT.with_name("parity.json")
KINDS = ("fast", "plain")


def train(kind, data, seed, epochs, width, images):
    """Train notebook 2's VGG-16 with `core.fast` switched on ("fast") or off ("plain"); return validation accuracy."""
    train, validation = utils.split(data.y_train, seed=seed)
    train = np.random.default_rng(seed).permutation(train)[:images]
    batches = Batches(data.x_train[train], data.y_train[train], 64, seed=seed)
    keras.utils.set_random_seed(seed)
    rate = OneCycle(2e-3, epochs * len(batches))
    mean, variance = utils.channel_statistics(data.x_train[train])
    fast.ENABLED = kind == "fast"
    try:
        model = cells.define("vgg16_with_gan", mean=mean, variance=variance)["build_vgg16"](width)
        bench.compiled(model, rate)
        model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
        return measures.accuracy(model, data.x_train[validation], data.y_train[validation])
    finally:
        fast.ENABLED = True


def report(record):
    """Return the record as Markdown: a table of pairs, and their mean difference."""
    return records.pairs_table(record["seeds"], record["accuracy"]) + (
        f"\nValidation accuracy of VGG-16 at width {record['width']} on {record['title']} after {record['epochs']} epoch(s) of"
        f" {record['images']:,} images;\nfast: {record['precision']} with `core.fast`; plain: float32, Keras's own.\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, help="training images, at most; all of them unless given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", choices=parameters.PRECISIONS, default="auto", help="of the fast one")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    try:
        data = utils.load(cifar100.at_hand())
    except cifar100.DataError as error:
        sys.exit(str(error))
    record = {"title": data.title, "seeds": list(range(arguments.seeds)), "epochs": arguments.epochs, "width": arguments.width}
    available = len(utils.split(data.y_train)[0])
    record |= {"images": min(arguments.images or available, available), "precision": devices.set_precision(arguments.precision)}
    record |= {"accuracy": {name: [] for name in KINDS}}
    for seed in record["seeds"]:
        for name in KINDS:
            devices.set_precision(record["precision"] if name == "fast" else "float32")
            accuracy = train(name, data, seed, arguments.epochs, arguments.width, record["images"])
            record["accuracy"][name].append(accuracy)
            print(f"seed {seed}, {name}: {accuracy:.4f}", flush=True)
    bench.keep(record | records.environment(), report(record), arguments.output)


if __name__ == "__main__":
    main()
