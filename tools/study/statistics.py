"""What the records say of each row: paired differences over seeds, their intervals, and p values adjusted for all rows."""

import dataclasses
import statistics

import numpy as np
import scipy.special

from core import measures

SAME_CODE = (  # digests of code that differ in nothing that a student does
    "78f201977967769f", "e31138933630185f", "a2e47041dde9ddf9", "e129b5672daeff94", "ebd86893a4afd625", "eccdd9ca999c62f5",
    "5a823e7c1218e37e", "41f9c90df7e172be", "88214580c619724a",
)  # fmt: skip
SOURCES = ("teacher_sha256", "generator_sha256", "generated_digest")  # what two runs share that both have one
SEEDS = 3  # that a row is tested with; one of fewer is screened


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a row's arm gains over its control, in percentage points: `mean` with half the width of its 95 % interval.

    `p` is two-sided; `adjusted` is Holm's, over all rows that have runs. A row of fewer than `SEEDS` pairs is screened: its mean
    is of the validation images (under attack of test images, as there are no others), and the other three are None. `minutes` is
    what a run of the arm took, on average.
    """

    row: object
    seeds: int
    mean: float
    half: float | None
    p: float | None
    minutes: float
    adjusted: float | None = None


def paired(values, controls):
    """Return the mean of the differences of pairs, half the width of its 95 % interval, and the p value (Student's t, two-sided).

    Two values or more each. Differences that are all the same leave no doubt: p is 0, or 1 where they are all 0.
    """
    differences = np.asarray(values, "float64") - np.asarray(controls, "float64")
    mean, half = measures.mean_and_interval(differences)
    error = differences.std(ddof=1) / len(differences) ** 0.5
    if error == 0:
        return mean, half, float(mean == 0)
    return mean, half, float(2 * scipy.special.stdtr(len(differences) - 1, -abs(mean / error)))


def holm(p_values):
    """Return p values adjusted so that all that are below 0.05 hold together (Holm, 1979), in the order given."""
    p_values = np.asarray(p_values, "float64")
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def pairs(records, row):
    """Return the pairs of records (arm's, control's) of a row, by seed, all of the code that most pairs have."""
    found = {}
    controls = {(kind(record), record["seed"]): record for record in records if record["arm"] == row.control}
    for record in sorted(records, key=lambda record: record["seed"]):
        control = controls.get((kind(record), record["seed"]))
        measured = control and row.measure in record.keys() & control.keys()
        if record["arm"] == row.arm and measured and same_sources(record, control):
            both = kind(record), record.get("use_code"), control.get("use_code")
            found.setdefault(both, []).append((record, control))
    return max(found.values(), key=len, default=[])


def kind(record):
    """Return what runs that are compared have in common."""
    return record["dataset"], same_code(record["code"]), record["precision"]


def same_code(digest):
    """Return a digest of code, the same for codes that make the same numbers."""
    return SAME_CODE[0] if digest in SAME_CODE else digest


def same_sources(record, control):
    """Whether two runs have the same teacher, generator and GAN images, where both have one."""
    keys = [key for key in SOURCES if key in record and key in control]
    return all(record[key] == control[key] for key in keys)


def compare(records, rows):
    """Return the effects of all rows that have a pair of records, p values adjusted over all of them.

    A row that was screened and not tested counts as one with a p of 1: its runs have chosen which rows are tested.
    """
    effects = [effect(row, found) for row in rows if (found := pairs(records, row))]
    adjusted = holm([1 if each.p is None else each.p for each in effects])
    together = zip(effects, adjusted, strict=True)
    return [each if each.p is None else dataclasses.replace(each, adjusted=value) for each, value in together]


def effect(row, found):
    """Return the effect that pairs of records show, not yet adjusted."""
    minutes = sum(record["seconds"] for record, _ in found) / len(found) / 60
    screened = len(found) < SEEDS
    measure = "val_accuracy" if screened and row.measure == "test_accuracy" else row.measure
    values, controls = ([100 * record[measure] for record in side] for side in zip(*found, strict=True))
    if screened:
        return Effect(row, len(found), statistics.mean(values) - statistics.mean(controls), None, None, minutes)
    return Effect(row, len(found), *paired(values, controls), minutes)
