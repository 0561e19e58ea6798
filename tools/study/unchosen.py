"""Distillation from GAN images as they are drawn, where other uses see the best of four: more images, and worse ones."""

import dataclasses
import functools

from tools.study import distilled
from tools.study.materials import Materials


@functools.lru_cache(1)
def every_candidate(scale):
    """Return materials with as many GAN images as the others are chosen from, none of them chosen."""
    return Materials(dataclasses.replace(scale, gan_images=scale.gan_images * scale.candidates, candidates=1))


def prepare(arm, seed, materials):
    """Return the model that is trained, the student that is measured, and the batches."""
    own = every_candidate(materials.scale)
    return distilled.prepare(dataclasses.replace(arm, source="gan", extra=own.scale.gan_images), seed, own)


def measure(arm, network, data, scale):
    """Return which images the student saw. Not the records' `generated_digest`, which pairs have in common."""
    own = every_candidate(scale)
    return {"unchosen_digest": own.generated_digest(arm.fraction), "generator_sha256": own.generator_sha256(arm.fraction)}
