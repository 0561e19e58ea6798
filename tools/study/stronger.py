"""Distillation in which GAN images are changed as much as the real ones of the control that take their place."""

import dataclasses

from tools.study import distilled, mixed


def prepare(arm, seed, materials):
    """Return the model that is trained, the student that is measured, and the batches."""
    model, student, batches = distilled.prepare(arm, seed, materials)
    batches.parts = [part if part.is_real else dataclasses.replace(part, change=mixed.changed_more) for part in batches.parts]
    return model, student, batches
