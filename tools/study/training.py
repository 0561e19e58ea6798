"""One run: a student prepared by its use, trained, measured and written down."""

import gc
import shutil
import time

import keras

import utils
from core import checkpoints, digests, export, measures, records
from core.muon import Muon
from core.schedules import OneCycle
from tools import cells
from tools.study import stand_in


def build(scale, images, seed):
    """Return a new network, normalised by `images` `uint8` (n, 32, 32, 3); its first weights depend on `seed` alone."""
    mean, variance = utils.channel_statistics(images)
    if scale.network == "tiny":
        keras.utils.set_random_seed(seed)
        return stand_in.network(mean, variance)
    make = cells.define("vgg16_with_gan", mean=mean, variance=variance)["build_vgg16"]
    keras.utils.set_random_seed(seed)
    return make(scale.width)


def steps_an_epoch(arm, scale):
    """Return the steps between two checkpoints: what is called an epoch here is a part of the training."""
    return scale.steps * arm.longer // scale.epochs


def train(run, use, materials):
    """Make a run by its use's module, or go on with it: train, measure once, and return its record without the environment."""
    arm, scale = run.arm, materials.scale
    start = time.perf_counter()
    model, network, batches = use.prepare(arm, run.seed, materials.of(arm))
    rate = OneCycle(scale.learning_rate, batches.steps * scale.epochs, scale.warmup)
    model.compile(Muon(rate), "categorical_crossentropy", metrics=["accuracy"])
    fitted = checkpoints.fit(model, batches, epochs=scale.epochs, folder=checkpoint_folder(run, materials), verbose=0)
    real, other = batches.exposures(scale.epochs)
    record = about(run, materials) | fitted | measured(run, network, use, materials)
    record |= {"real_images": max([len(part.images) for part in batches.parts if part.is_real], default=0)}
    record |= {"real_exposures": real, "other_exposures": other, "parameter_count": network.count_params()}
    if arm.kept:
        export.save(network, materials.own_teacher_path(arm.fraction))
    return record | {"total_seconds": time.perf_counter() - start}


def measured(run, network, use, materials):
    """Return the accuracies of a finished student; the test split is read here alone."""
    data, (_, validation) = materials.data, materials.split()
    scores = {"val_accuracy": measures.accuracy(network, data.x_train[validation], data.y_train[validation])}
    scores |= measures.scores(network.predict(data.x_test, batch_size=500, verbose=0), data.y_test)
    return scores | (use.measure(run.arm, network, data, materials.scale) if hasattr(use, "measure") else {})


def about(run, materials):
    """Return what a record says of a run beside its results."""
    arm, scale, data = run.arm, materials.scale, materials.data
    network = f"VGG-16 x{materials.of(arm).scale.width:g}" if scale.network == "vgg16" else scale.network
    seen = materials.chosen(run.seed, arm.real, arm.fraction)
    record = {
        "name": run.name, "use": arm.use, "arm": arm.name, "seed": run.seed, "dataset": data.name, "dataset_md5": data.md5,
        "model": network, "real_digest": digests.digest(seen), "gan_share": arm.share,
        "precision": keras.config.dtype_policy().name, "parameters": run.parameters(scale),
    }  # fmt: skip
    if arm.uses_gan:
        record["generated_digest"] = materials.generated_digest(arm.fraction)
        record["generator_sha256"] = materials.generator_sha256(arm.fraction)
    if arm.needs_teacher:
        record["teacher_sha256"] = digests.file_sha256(materials.teacher_path(arm.fraction))
    return record


def checkpoint_folder(run, materials):
    """Return the folder that a run's checkpoints are in until its record is written."""
    return materials.folder / "checkpoints" / run.name


def finish(run, materials, record, environment):
    """Write a run's record, and remove its checkpoints."""
    records.write_whole(materials.folder / f"{run.name}.json", record | environment | {"date": time.strftime("%Y-%m-%d")})
    clear(checkpoint_folder(run, materials))
    gc.collect()


def clear(folder):
    """Give back a folder of checkpoints and remove it."""
    checkpoints.release(folder)
    shutil.rmtree(folder, ignore_errors=True)
