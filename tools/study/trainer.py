"""Trains the networks of the study, and writes one record per run to runs/study.

An *arm* is a setup that the study compares with others (see arms.py), and a *trial* is a run that
tunes the settings of an arm.
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

import core
import utils
from core import files, metrics, records, streams, training
from core.batches import Batches
from core.gan import call_frozen, generate
from core.optimizers import Adam, OneCycle
from tools import cells, run
from tools.study.arms import ARMS, TRIAL_SEED, Arm

BATCH_SIZE = 64
EPOCHS = 12  # each has a twelfth of a run's steps, rounded down
DATASET, FOLDER = "cifar100", "study"  # FOLDER is the one in runs/ and in results/
GENERATORS = {  # for each `Arm.gan`: its folder in runs/, and the name of its run with seed 0
    "short": ("cifar100", "gan"), "long": ("cifar100", "gan_long"),
    "longer": ("cifar100", "gan_longer"), "tenth": ("cifar100-0.1", "gan_long"),
}  # fmt: skip
STUDENT_WIDTH, TEACHER, TEACHER_WIDTH = 0.25, "vgg16_best", 0.75


class Distilled(keras.Model):
    """A student that learns a teacher's class probabilities for the same images.

    The loss is the cross-entropy between the probabilities of both networks at a temperature, times
    the square of the temperature (Hinton et al., 2015, section 2).
    """

    def __init__(self, student: keras.Model, teacher: keras.Model, temperature: float):
        super().__init__()
        self.student, self.teacher, self.temperature = student, teacher, temperature
        teacher.trainable = False

    def call(self, images, training=None):
        return self.student(images, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        probabilities = call_frozen(self.teacher, x)
        targets, outputs = (
            ops.softmax(ops.log(ops.maximum(ops.cast(p, "float32"), 1e-7)) / self.temperature)
            for p in (probabilities, y_pred)
        )
        loss = keras.losses.categorical_crossentropy(targets, outputs)
        return self.temperature**2 * ops.mean(loss)


@functools.cache
def load(source: str) -> tuple:
    """Return the dataset, and the indices of its training and validation images.

    With the source "tenth", these are a tenth of the images.
    """
    data = utils.load(DATASET)
    return data, *utils.split(data.y_train, real_fraction=0.1 if source == "tenth" else 1.0)


def photographs(arm: Arm, seed: int, trial: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of an arm's real images for training and of those for validation.

    With the source "held out", a trial sets about a quarter of the photographs aside for
    validation, and a run that is reported sets none aside.
    """
    data, train, validation = load(arm.source)
    if arm.source == "held out":
        train, validation = validation, validation[:0]
    if arm.photographs >= len(train):
        return train, validation
    rng, chosen, set_aside = streams.random_stream("photographs", seed), [], []
    for label in range(100):
        own = rng.permutation(train[data.y_train[train] == label])[: arm.photographs // 100]
        held_out = round(len(own) / 4) if trial and arm.source == "held out" else 0
        chosen.append(own[held_out:])
        set_aside.append(own[:held_out])
    chosen, set_aside = np.concatenate(chosen), np.concatenate(set_aside)
    return chosen, set_aside if arm.source == "held out" else validation


@functools.lru_cache(maxsize=1)
def gan_images(gan: str, gan_seed: int, per_class: int, candidates: int) -> tuple:
    """Return images of the GAN with this seed, their labels, and the sha256 of the GAN's file.

    The images are generated once and then kept on disk.
    """
    folder, name = GENERATORS[gan]
    file = records.find(folder, f"{run.run_name_of_seed(name, gan_seed)}_generator.keras")
    labels, digest = np.tile(np.arange(100), per_class), files.file_sha256(file)
    file_name = f"pool-{digest[:8]}-{per_class}-{candidates}.npy"
    path = records.run_folder(FOLDER) / "checkpoints" / file_name
    if not path.exists():
        generator = keras.saving.load_model(file)
        images = generate(generator, labels, gan_seed, candidates, stream="study")
        path.parent.mkdir(exist_ok=True)
        with files.atomic_write(path) as target:
            np.save(target, images)
    return np.load(path), labels, digest


def training_images(arm: Arm, seed: int, chosen: np.ndarray) -> tuple:
    """Return the training images and labels of an arm, and its generator's sha256 or None.

    `chosen` are the indices of its photographs.
    """
    data = load(arm.source)[0]
    images, labels, digest = data.x_train[chosen], data.y_train[chosen], None
    if arm.noise:
        rng = streams.random_stream("noise images", seed)
        return rng.integers(0, 256, (45_000, 32, 32, 3), np.uint8), np.arange(45_000) % 100, None
    if arm.gan:
        gan_seed = 0 if seed == TRIAL_SEED else seed
        fake, fake_labels, digest = gan_images(arm.gan, gan_seed, arm.per_class, arm.candidates)
        if arm.slow_classes:
            kept = np.isin(fake_labels, slow_classes(arm.slow_classes))
            fake, fake_labels = fake[kept], fake_labels[kept]
        if arm.share and arm.photographs:
            repeats = max(1, round(len(fake) * (1 / arm.share - 1) / len(images)))
            images, labels = np.tile(images, (repeats, 1, 1, 1)), np.tile(labels, repeats)
        images, labels = np.concatenate([images, fake]), np.concatenate([labels, fake_labels])
    return images, labels, digest


def slow_classes(count: int) -> np.ndarray:
    """Return the `count` classes with the lowest validation accuracy.

    The accuracy is that of notebook 2's network with seed 0 and without GAN images.
    """
    data, _, validation = load("train")
    network = keras.saving.load_model(records.find("cifar100", "vgg16.keras"))
    predicted = network.predict(data.x_train[validation], batch_size=500, verbose=0).argmax(1)
    accuracy = metrics.class_accuracy(predicted, data.y_train[validation])
    return np.argsort(accuracy, kind="stable")[:count]


def build(arm: Arm, steps: int, images: np.ndarray) -> keras.Model:
    """Return the compiled student of an arm, together with its teacher if it has one.

    The student normalises its inputs with the mean and variance of its training `images`.
    """
    model = build_vgg16(STUDENT_WIDTH, images)
    if arm.teacher:
        model = Distilled(model, build_teacher(arm), arm.temperature)
        model.build((None, 32, 32, 3))
    optimizer = Adam(OneCycle(arm.rate, steps), weight_decay=arm.weight_decay)
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(), metrics=["accuracy"])
    return model


def teacher_name(arm: Arm) -> str | None:
    """Return the name of the run that trained the teacher, or None if an arm has no teacher."""
    return TEACHER if arm.teacher is True else arm.teacher or None


def build_teacher(arm: Arm) -> keras.Model:
    """Return the trained teacher of an arm, rebuilt with layers that are faster than Keras's."""
    path, width = core.ROOT / f"results/cifar100/{TEACHER}.keras", TEACHER_WIDTH
    if isinstance(arm.teacher, str):
        path, width = records.find("cifar100", f"{arm.teacher}.keras"), STUDENT_WIDTH
    data, train, _ = load("train")
    teacher = build_vgg16(width, data.x_train[train])
    teacher.set_weights(keras.saving.load_model(path).get_weights())
    return teacher


def build_vgg16(width: float, images: np.ndarray) -> keras.Model:
    """Return notebook 2's VGG-16, which normalises with the mean and variance of `images`."""
    mean, variance = utils.channel_statistics(images)
    return cells.define("vgg16_with_gan", mean=mean, variance=variance)["build_vgg16"](width)


def train(arm: Arm, seed: int, trial: bool = False) -> dict:
    """Train one network and return its record, or return the record of an earlier run."""
    settings = {key: value for key, value in dataclasses.asdict(arm).items() if key != "stages"}
    name = f"{arm.name}-seed{seed}"
    if trial:
        name = f"{arm.name}-trial-{files.short_digest(settings)[:8]}"
    folder = records.run_folder(FOLDER)
    if (path := folder / f"{name}.json").exists():
        record = records.read_json(path)
        if is_of_arm(record, arm):
            return record
        print(f"{name}: its settings have changed, so it is trained again")
    steps = arm.trial_steps if trial and arm.trial_steps else arm.steps
    chosen, validation = photographs(arm, seed, trial)
    images, labels, generator = training_images(arm, seed, chosen)
    data = load(arm.source)[0]
    held_out = data.x_train[validation], data.y_train[validation]
    precision = keras.config.dtype_policy()
    keras.utils.clear_session()  # frees the networks of earlier runs, but also resets the precision
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    model = build(arm, steps, images)
    batches = Batches(
        images, labels, BATCH_SIZE, seed=seed, pad=arm.pad, cutmix=arm.cutmix,
        trivial_augment=arm.trivial_augment, steps_per_epoch=steps // EPOCHS,
    )  # fmt: skip
    print(f"{name}: {steps:,} steps, {len(images):,} images", flush=True)
    made = training.fit(
        model, batches, epochs=EPOCHS, folder=folder / "checkpoints" / name,
        verbose=2, **early_stopping(arm, *held_out),
    )  # fmt: skip
    student = getattr(model, "student", model)
    scores = {"val_accuracy": metrics.accuracy(student, *held_out)} if len(validation) else {}
    if not trial:  # the test images are read once, to report the result
        probabilities = student.predict(data.x_test, batch_size=500, verbose=0)
        scores |= metrics.scores(probabilities, data.y_test)
    records.write(
        folder, name, arm=arm.name, trial=trial, model="VGG-16 x0.25", dataset=data.name,
        dataset_md5=data.md5, parameters=settings, generator_sha256=generator,
        teacher=teacher_name(arm), **scores, **(made | {"seed": seed}),
    )  # fmt: skip
    return records.read_json(path)


def is_of_arm(record: dict, arm: Arm) -> bool:
    """Return whether a record's settings are those of an arm, apart from its seeds and trials."""
    others = ("stages", "seeds", "control", "borrowed")
    settings = {key: value for key, value in dataclasses.asdict(arm).items() if key not in others}
    return all(record["parameters"].get(key) == value for key, value in settings.items())


def early_stopping(arm: Arm, images: np.ndarray, labels: np.ndarray) -> dict:
    """Return the arguments of `fit` for early stopping, or none if an arm does not use it."""
    if not arm.early_stopping:
        return {}
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    one_hot = np.eye(100, dtype="float32")[labels]
    return {"callbacks": [stopping], "validation_data": (images, one_hot),
            "validation_batch_size": 500}  # fmt: skip


def arm_named(name: str) -> Arm:
    return next(arm for arm in ARMS if arm.name == name)


def choose(arm: Arm) -> Arm:
    """Return a copy of `arm` with the settings of its most accurate trial on validation images.

    Trials without a record are run first. If `arm.borrowed` names another arm, the settings that
    were chosen for that arm are used instead.
    """
    if arm.borrowed:
        donor = arm_named(arm.borrowed)
        tried = {name for stage in donor.stages for settings in stage for name in settings}
        chosen = choose(donor)
        return dataclasses.replace(arm, **{name: getattr(chosen, name) for name in tried})
    best, highest = dataclasses.replace(arm, stages=()), -1.0
    for stage in arm.stages:
        start = best
        for settings in stage:
            trial = dataclasses.replace(start, **settings)
            accuracy = train(trial, TRIAL_SEED, trial=True)["val_accuracy"]
            if accuracy > highest:
                best, highest = trial, accuracy
    return best


def is_a_point_better(arm: Arm) -> bool:
    """Return whether, with seed 0, an arm beats its control by a point of validation accuracy."""
    with_control = (arm, arm_named(arm.control))
    own, other = (train(choose(each), seed=0)["val_accuracy"] for each in with_control)
    return own - other >= 0.01
