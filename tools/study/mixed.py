"""Real images and others in one batch: hard labels, labels of the teacher, the controls, and GAN images alone."""

import numpy as np

from tools.study import training
from tools.study.batches import Mixture, Part, one_hot


def prepare(arm, seed, materials):
    """Return the model that is trained, the network that is measured (here the same), and the batches."""
    batches = mixture(arm, seed, materials)
    network = training.build(materials.scale, batches.parts[0].images, seed)
    return network, network, batches


def mixture(arm, seed, materials):
    """Return the batches of an arm: real images, and a share of others."""
    size = round(materials.scale.batch_size * arm.batch)
    count = round(size * arm.share)
    parts = [real_part(arm, seed, materials, size - count)] if count < size else []
    if count:
        parts.append(extra_part(arm, seed, materials, count))
    return Mixture(parts, seed, training.steps_an_epoch(arm, materials.scale), materials.scale.cutmix)


def real_part(arm, seed, materials, count):
    """Return the real images that an arm may see, `count` in each batch."""
    images, labels = materials.photographs(seed, arm.real, arm.fraction)
    return Part(images, one_hot(labels, materials.scale.label_smoothing), count)


def extra_part(arm, seed, materials, count):
    """Return the images that an arm sees beside real ones, `count` in each batch."""
    images, labels = SOURCES[arm.source](arm, seed, materials)
    if arm.labels == "teacher":
        targets = materials.teacher(arm.fraction).predict(images, batch_size=500, verbose=0).astype("float32")
    else:
        targets = one_hot(labels, materials.scale.label_smoothing)
    real = arm.source in ("duplicates", "stronger")
    return Part(images, targets, count, is_real=real, change=changed_more if arm.source == "stronger" else None)


# ---------------------------------------------------------------------------------------------------- where they come from


def gan(arm, seed, materials):
    """GAN images and the labels they were drawn for."""
    images, labels = materials.generated(arm.fraction)
    return images[: arm.extra], labels[: arm.extra]


def filtered(arm, seed, materials):
    """GAN images without the tenth of each class that the teacher's cross-entropy is highest for (Ding et al., 2021)."""
    images, labels = gan(arm, seed, materials)
    probabilities = materials.teacher(arm.fraction).predict(images, batch_size=500, verbose=0)
    kept = likeliest(probabilities[np.arange(len(labels)), labels], labels)
    return images[kept], labels[kept]


def likeliest(own, labels, dropped=0.1):
    """Return the sorted indices left when the part `dropped` of each class, that with the smallest `own` values, is taken out."""
    kept = []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        kept.append(indices[np.argsort(-own[indices], kind="stable")][: len(indices) - round(dropped * len(indices))])
    return np.sort(np.concatenate(kept))


def shuffled(arm, seed, materials):
    """GAN images whose labels are those of others: as many of each class, but not the ones they show."""
    images, labels = gan(arm, seed, materials)
    return images, np.random.default_rng((seed, 11)).permutation(labels)


def noise(arm, seed, materials):
    """Uniform noise with the labels that GAN images would have."""
    _, labels = gan(arm, seed, materials)
    return np.random.default_rng((seed, 12)).integers(0, 256, (len(labels), 32, 32, 3), np.uint8), labels


def duplicates(arm, seed, materials):
    """Real images of the arm once more, as many as there would be GAN images."""
    images, labels = materials.photographs(seed, arm.real, arm.fraction)
    chosen = np.random.default_rng((seed, 13)).permutation(len(images))[: arm.extra]
    return images[chosen], labels[chosen]


def changed_more(images, rng):
    """Change contrast and brightness of each channel, and hide a square of 16 x 16 pixels (DeVries & Taylor, 2017)."""
    contrast, brightness = rng.uniform(0.6, 1.4, (len(images), 1, 1, 3)), rng.uniform(-30, 30, (len(images), 1, 1, 3))
    changed = np.clip((images - np.float32(128)) * contrast + 128 + brightness, 0, 255).astype("uint8")
    rows, columns = rng.integers(0, 32, (2, len(images), 1))
    down, right = np.arange(32) - rows, np.arange(32) - columns
    changed[((down >= -8) & (down < 8))[:, :, None] & ((right >= -8) & (right < 8))[:, None, :]] = 128
    return changed


SOURCES = {
    "gan": gan, "filtered": filtered, "shuffled": shuffled, "noise": noise, "duplicates": duplicates, "stronger": duplicates,
}  # fmt: skip
