"""Compare training speed with plain PyTorch: `make bench`.

For each network, Keras and several versions in PyTorch take turns of a few steps, in random order,
so that a slow minute of the machine affects all of them. Their medians are compared.
"""

import argparse
import json
import subprocess
import sys
import time
import weakref

import keras
import numpy as np
import pandas

import core
from core import comparison, devices, records, training
from core.batches import Batches
from core.gan import two_rates
from core.optimizers import Adam
from tools import cells

NETWORKS = ("VGG-16 x1", "VGG-16 x0.5", "VGG-16 x0.25", "ResNet-20", "GAN")
PEERS = ["torch float32", "torch bfloat16", "torch compiled float32", "torch compiled bfloat16"]
BATCH_SIZE, NOISE_SIZE = 64, 64  # the same as in tools/peers.py
STEPS, TURNS = 20, 9
PIXELS = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}


def build(network):
    """Return the compiled network of that name, as its notebook defines it."""
    if network == "GAN":
        notebook = cells.define("gan_synthetic_images")
        generator = notebook["build_generator"](16, NOISE_SIZE)
        model = notebook["GAN"](generator, notebook["build_discriminator"](16))
        model.compile(two_rates(model, 4e-4, 4e-4))
        return model
    if network == "ResNet-20":
        model = cells.define("resnet_baseline", **PIXELS)["build_resnet"](20, 16)
    else:
        build_vgg16 = cells.define("vgg16_with_gan", **PIXELS)["build_vgg16"]
        model = build_vgg16(float(network.removeprefix("VGG-16 x")))
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(Adam(2e-3, weight_decay=0.05), loss, metrics=["accuracy"])
    return model


def keras_runner(network):
    """Return a function that trains `network` for `STEPS` steps and returns seconds per step."""
    rng, n = np.random.default_rng(0), 10_000  # more images than the processor's cache holds
    images, labels = rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 100, n)
    noise_size = NOISE_SIZE if network == "GAN" else 0
    batches = Batches(images, labels, BATCH_SIZE, noise_size=noise_size, steps_per_epoch=STEPS)
    model, times = build(network), []
    note_time = lambda *_, **__: times.append(time.perf_counter())  # noqa: E731
    clock = keras.callbacks.LambdaCallback(on_epoch_begin=note_time, on_train_batch_end=note_time)

    def run():
        times.clear()
        model.fit(batches, shuffle=False, verbose=0, callbacks=[training.ReuseMemory(), clock])
        return (times[-1] - times[0]) / STEPS  # the end of `fit` may wait for a sleeping thread

    return run


def peer_runner(network, kind):
    """Return a function like that of `keras_runner` for the PyTorch version `kind`, one of PEERS.

    The returned function raises `BrokenPipeError` or `StopIteration` if PyTorch cannot run this
    version on this machine. PyTorch has a process of its own, because in TensorFlow's it takes 1.6
    times as long.
    """
    command, pipe = [sys.executable, "-m", "tools.peers", network, kind], subprocess.PIPE
    process = subprocess.Popen(command, cwd=core.ROOT, stdin=pipe, stdout=pipe, encoding="utf-8")

    def run():
        print(STEPS, file=process.stdin, flush=True)
        return float(next(process.stdout))

    weakref.finalize(run, process.kill)
    return run


def take_turns(runners, repeats):
    """Return the median of `repeats` calls of each function that works, after a first call."""
    rng, results = np.random.default_rng(0), {name: [] for name in runners}
    for _ in range(1 + repeats):
        for name in rng.permutation(list(results)):
            try:
                results[name].append(runners[name]())
            except (BrokenPipeError, StopIteration):  # the PyTorch process has ended
                print(f"{name} does not work on this machine and is left out.")
                del results[name]
    return {name: float(np.median(values[1:])) for name, values in results.items()}


def report(record):
    """Return a record as a Markdown table with a caption."""
    rows = pandas.DataFrame(record["rows"])
    speed = pandas.DataFrame(rows["images_per_second"].to_list(), columns=["fit", *PEERS])
    table = rows[["network", "precision"]].join(speed.map("{:.0f}".format))
    table["ratio to fastest torch"] = (speed["fit"] / speed[PEERS].max(axis=1)).map("{:.2f}".format)
    table = table.replace("nan", "–").rename(columns=lambda name: name.replace("torch", "PyTorch"))
    where = f"Images per second in batches of 64, {record['device']}, {record['date']}."
    return f"{comparison.markdown(table)}\n{where}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, help="measure only these networks")
    chosen = parser.parse_args()
    precision = devices.set_precision()
    record = records.environment() | {"precision": precision, "rows": []}
    for network in chosen.only or NETWORKS:
        keras.utils.clear_session()
        devices.set_precision("float32" if network == "GAN" else precision)  # as in the notebooks
        row = {"network": network, "precision": keras.config.dtype_policy().compute_dtype}
        runners = {"fit": keras_runner(network)}
        runners |= {kind: peer_runner(network, kind) for kind in PEERS}
        step_seconds = take_turns(runners, TURNS)
        row["images_per_second"] = {
            name: BATCH_SIZE / value for name, value in step_seconds.items()
        }
        record["rows"].append(row)
        print(report(record), flush=True)
    if not chosen.only:
        output = records.run_folder("bench") / "bench.json"
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
