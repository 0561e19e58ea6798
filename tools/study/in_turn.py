"""First GAN images, then real ones: one training, one schedule, and a step from which on the batches are real."""

from tools.study import mixed, training
from tools.study.batches import Mixture


class InTurn(Mixture):
    """Batches of the first part alone for `first_steps` steps of the training, then of the second part alone."""

    def __init__(self, parts, seed, steps, cutmix, first_steps):
        super().__init__(parts, seed, steps, cutmix)
        self.first_steps = first_steps

    def parts_at(self, position):
        number = int(position >= self.first_steps)
        return [(number, self.parts[number])]


def prepare(arm, seed, materials):
    """Return the network (twice) and the batches."""
    scale = materials.scale
    real = mixed.real_part(arm, seed, materials, scale.batch_size)
    parts = [mixed.extra_part(arm, seed, materials, scale.batch_size), real]
    first_steps = round(arm.options["first"] * scale.steps)
    network = training.build(scale, real.images, seed)
    return network, network, InTurn(parts, seed, training.steps_an_epoch(arm, scale), scale.cutmix, first_steps)
