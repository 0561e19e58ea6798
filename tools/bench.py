"""Measure training speed: `make bench`. The notebooks' own cells, side by side with plain PyTorch and the machine's ceiling.

Every contender takes a few steps in turn, again and again, so that a slow minute of the machine meets all of them, each time
in another order, so that none always follows the same one; medians are compared. Prints a table, writes
runs/bench/bench.json, gives no verdict.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np

import core
from core import cifar100, devices, fast, parameters, records
from core.batches import Batches
from tools import cells

OUTPUT = core.ROOT / "runs" / "bench" / "bench.json"
IMAGES = 10_000  # made up, enough that a pipeline cannot live on the processor's cache
GPU = devices.has_gpu()
GAN_CHANNELS = 64 if GPU else 16
LATENT_DIM = 64  # notebook 1's
PEERS = ("torch float32", "torch bfloat16", "torch compiled float32", "torch compiled bfloat16")
NETWORKS = ("VGG-16 x1", "VGG-16 x0.5", "VGG-16 x0.25", "ResNet-20", "GAN")


def compiled(model, rate=2e-3):
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(fast.Adam(rate, weight_decay=0.05), loss, metrics=["accuracy"])
    return model


def build(network):
    """Return a compiled network and its multiply-adds for one image of one training step."""
    statistics = {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}
    if network.startswith("VGG"):
        model = compiled(cells.define("vgg16_with_gan", **statistics)["build_vgg16"](float(network.split("x")[1])))
        return model, 3 * multiply_adds(model)
    if network.startswith("ResNet"):
        model = compiled(cells.define("resnet_baseline", **statistics)["build_resnet"](20, 16))
        return model, 3 * multiply_adds(model)
    space = cells.define("gan_synthetic_images", **statistics, CHANNELS=GAN_CHANNELS, LATENT_DIM=LATENT_DIM)
    teacher = space["build_classifier"](16)
    space |= {"teacher": teacher, "real_means": np.zeros((100, 256), "float32"), "feature_scale": 1.0, "replicas": 1}
    space |= {"real_covariance": np.eye(256, dtype="float32")}
    gan = space["GAN"](total_steps=10_000)
    gan.compile(space["two_rates"](gan, 4e-4, 4e-4))
    # generator: forward and two gradients; discriminator: the same on real and fake, and once more for the generator
    # without the weights' gradients; teacher: forward and back on fake images
    return gan, 3 * multiply_adds(gan.generator) + 8 * multiply_adds(gan.discriminator) + 2 * multiply_adds(teacher)


def multiply_adds(model):
    """Return the multiply-adds of one image going forward through convolutions and dense layers."""
    total = 0
    for outer in model.layers:
        layer = getattr(outer, "layer", outer)  # what is inside a SpectralNormalization
        if isinstance(layer, keras.layers.Conv2DTranspose):
            total += np.prod(outer.input.shape[1:3]) * np.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Conv2D):
            total += np.prod(outer.output.shape[1:3]) * np.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Dense):
            total += np.prod(layer.kernel.shape)
    return int(total)


class Clock(keras.callbacks.Callback):
    """The seconds from the start of an epoch to the end of its last step.

    What `fit` does before and after comes once in a training and would weigh most in a turn of a few steps: letting go of a
    pipeline, TensorFlow at times waits for the thread that tunes it, up to as long as it has run.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = time.perf_counter() - self.start


def timed_fit(model, batches):
    """Return a function that trains an epoch with `fit`, pipeline included, and returns the seconds a step."""
    clock = Clock()

    def run():
        model.fit(batches, shuffle=False, verbose=0, callbacks=[fast.KeepMemory(), clock])
        return clock.seconds / len(batches)

    return run


def fit_runner(model, batch_size, steps, noise=0):
    """Return `timed_fit` on the notebooks' own pipeline."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 100, IMAGES)
    return timed_fit(model, Batches(images, labels, batch_size, noise=noise, steps=steps))


class OneBatch(keras.utils.PyDataset):
    """The same batch again and again."""

    def __init__(self, batch, steps):
        super().__init__()
        self.batch, self.steps = batch, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        return self.batch


def fixed_runner(model, batch_size, steps, noise=0):
    """Return `timed_fit` on one batch that lies in memory: `fit` without a pipeline."""
    rng = np.random.default_rng(0)
    labels = np.eye(100, dtype="float32")[rng.integers(0, 100, batch_size)]
    inputs = rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    inputs = (inputs, rng.standard_normal((batch_size, noise), "float32")) if noise else inputs
    return timed_fit(model, OneBatch((inputs, labels), steps))


def peer_runners(network, batch_size, steps, names=PEERS):
    """Return the same training steps in plain PyTorch, by name; none where torch is not installed, or cannot compile.

    Each has a process of its own, which waits while others have their turn: in that of TensorFlow, after a `fit`, it takes 1.6
    times as long. Where bfloat16 is slower than float32, one step of it is enough a turn.
    """
    try:
        from tools import peers
    except ImportError:
        return {}

    def start(name):
        slow = "bfloat16" in name and keras.config.dtype_policy().name == "float32"
        ours, theirs = multiprocessing.Pipe()
        arguments = (theirs, network, GAN_CHANNELS, LATENT_DIM, batch_size, "bfloat16" in name, "compiled" in name)
        multiprocessing.get_context("spawn").Process(target=peers.serve, args=arguments, daemon=True).start()
        theirs.close()
        return lambda: ours.send(1 if slow else steps) or ours.recv()

    def works(name, runner):
        try:
            return runner() > 0
        except (EOFError, OSError):  # its process has ended, and said why
            return print(f"{network}: no {name} on this machine")

    return {name: runner for name, runner in {name: start(name) for name in names}.items() if works(name, runner)}


def interleave(runners, repeats, patience=40.0):
    """Return what runners return (a list each), called in turns of changing order.

    One that has taken longer than `patience` (seconds) is not called again.
    """
    seconds, spent = {name: [] for name in runners}, dict.fromkeys(runners, 0.0)
    for runner in runners.values():
        runner()  # compiles
    rng = random.Random(0)
    for _ in range(repeats):
        for name, runner in rng.sample(list(runners.items()), len(runners)):
            if spent[name] < patience:
                start = time.perf_counter()
                seconds[name].append(runner())
                spent[name] += time.perf_counter() - start
    return seconds


def compiled_function(function):
    """Return a function of tensors, compiled by the backend."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


def convolution_rate(batch_size=64):
    """Return the multiply-adds a second of the fastest of three ordinary convolutions, forward, compiled, in two halves."""
    best, dtype = 0.0, keras.config.dtype_policy().compute_dtype

    @compiled_function
    def convolve(images, kernel):
        half = images.shape[0] // 2
        halves = images[: max(half, 1)], images[half:]  # none is empty
        return keras.ops.stack([keras.ops.conv(half, kernel, padding="same")[0, 0, 0, 0] for half in halves])

    n = batch_size * 64 if GPU else batch_size  # enough that a GPU's launch does not count
    for size, channels in ((32, 64), (16, 128), (8, 256)):
        images, kernel = keras.ops.ones((n, size, size, channels), dtype), keras.ops.ones((3, 3, channels, channels), dtype)
        seconds = []
        for _ in range(6):  # the first one compiles
            start = time.perf_counter()
            keras.ops.convert_to_numpy(keras.ops.cast(convolve(images, kernel), "float32"))
            seconds.append(time.perf_counter() - start)
        best = max(best, n * size**2 * 9 * channels**2 / min(seconds))
    return best


def start_up(dataset):
    """Return seconds and peak memory (MB, None where it is not known) of a new process that imports utils and loads a dataset."""
    script = f"import utils; from core import records; data = utils.load({dataset!r}); print(records.peak_memory_mb())"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], cwd=core.ROOT, capture_output=True, encoding="utf-8", check=True)
    memory = done.stdout.split()[-1]
    return time.perf_counter() - start, int(memory) if memory.isdigit() else None


def measure(network, batch_size, steps, repeats, ceilings):
    """Return one row: images a second of every contender, and the ratios that matter; its ceiling is that of its precision."""
    model, work = build(network)
    precision = keras.config.dtype_policy().compute_dtype
    steps = steps if GPU else max(5, round(steps * min(1, 3e8 / work)))
    noise = LATENT_DIM if network == "GAN" else 0
    runners = {"fit": fit_runner(model, batch_size, steps, noise), "one batch": fixed_runner(model, batch_size, steps, noise)}
    seconds = interleave(runners | peer_runners(network, batch_size, steps), repeats)
    speed = {name: batch_size / statistics.median(times) for name, times in seconds.items()}
    peers = [value for name, value in speed.items() if name.startswith("torch")]
    return {
        "network": network, "batch_size": batch_size, "steps": steps, "repeats": repeats, "images_per_second": speed,
        "pipeline_cost": 1 - speed["fit"] / speed["one batch"], "of_best_peer": speed["fit"] / max(peers) if peers else None,
        "multiply_adds": work, "precision": precision, "of_ceiling": speed["fit"] * work / ceilings[precision],
    }  # fmt: skip


def report(record):
    """Return the record as Markdown: a table, and where it was measured."""
    names = [name for name in PEERS if any(name in row["images_per_second"] for row in record["rows"])] or PEERS[:2]
    columns = " | ".join(name.replace("torch", "PyTorch") for name in names)
    lines = [
        f"| network | precision | images/s | pipeline's cost | {columns} | against best PyTorch | of ceiling |",
        "|---|---|" + "---:|" * (len(names) + 4),
    ]
    for row in record["rows"]:
        speed = row["images_per_second"]
        peers = [f"{speed[name]:.0f}" if name in speed else "-" for name in names]
        ratio = f"{row['of_best_peer']:.2f}" if row["of_best_peer"] else "-"
        ours = f"{row['network']} | {row['precision']} | {speed['fit']:.0f} | {100 * row['pipeline_cost']:.1f} %"
        lines.append(f"| {ours} | {' | '.join(peers)} | {ratio} | {100 * row['of_ceiling']:.0f} % |")
    measured = " and ".join(sorted({row["date"] for row in record["rows"]}))
    rates = " and ".join(f"{rate / 1e9:.0f} in {precision}" for precision, rate in record["convolution_rates"].items())
    start, batch = record["start_up"], record["rows"][0]["batch_size"]
    memory = f", at most {start['peak_mb']:,} MB" if start["peak_mb"] else ""
    return "\n".join(lines) + (
        f"\n\nBatch {batch}, {record['device']}, {measured}; a few percent are noise. The ceiling is this machine's fastest\n"
        f"convolution in the row's precision, in G multiply-adds a second {rates}.\n"
        f"From start to loaded {start['dataset']}: {start['seconds']:.1f} s{memory}.\n"
    )


def earlier(path, device, precision, batch_size):
    """Return an earlier record's ceilings by precision, and its rows by network, each with its date.

    Nothing where there is no record, or where it was measured otherwise: the table names one device, precision and batch.
    """
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    ways = {(record["device"], record["precision"], row["batch_size"]) for row in record["rows"]}
    if ways != {(device, precision, batch_size)}:
        return {}, {}
    return record["convolution_rates"], {row["network"]: {"date": record["date"]} | row for row in record["rows"]}


def keep(record, text, path):
    """Write a record and print its report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}")


def told():
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn; fewer for larger networks")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each contender")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--only", choices=NETWORKS, action="append", help="measure this network alone; the record keeps its other rows"
    )
    parser.add_argument("--precision", choices=parameters.PRECISIONS, default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def main():
    arguments = told()
    precision = devices.set_precision(arguments.precision)
    same = {"device": devices.device(), "precision": precision, "batch_size": arguments.batch_size}
    fastest, rows = earlier(arguments.output, **same) if arguments.only else ({}, {})
    ceilings = {}
    for policy in dict.fromkeys((precision, "float32")):
        devices.set_precision(policy)
        dtype = keras.config.dtype_policy().compute_dtype
        ceilings[dtype] = max(fastest.get(dtype, 0.0), convolution_rate(arguments.batch_size))
    dataset = cifar100.at_hand()
    seconds, memory = start_up(dataset)
    record = {
        "precision": precision,
        "convolution_rates": ceilings,
        "start_up": {"dataset": dataset, "seconds": seconds, "peak_mb": memory},
    }
    record |= records.environment()
    for network in arguments.only or NETWORKS:
        keras.utils.clear_session()
        devices.set_precision("float32" if network == "GAN" else precision)  # as in the notebooks
        rows[network] = measure(network, arguments.batch_size, arguments.steps, arguments.repeats, ceilings)
        rows[network] |= {"date": record["date"]}
        speed = rows[network]["images_per_second"]
        print(f"{network}: " + ", ".join(f"{name} {value:.0f} images/s" for name, value in speed.items()), flush=True)
    record |= {"rows": [rows[network] for network in NETWORKS if network in rows]}
    keep(record, report(record), arguments.output)


if __name__ == "__main__":
    main()
