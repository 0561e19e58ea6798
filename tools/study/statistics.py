"""What the records say of each row: paired differences over seeds, their intervals, and p values adjusted for all rows."""

import dataclasses
import statistics

import numpy as np
import scipy.special

from core import measures
from tools.study import plan

SAME_CODE = (  # digests of code that differ in nothing that a student does
    "78f201977967769f", "e31138933630185f", "a2e47041dde9ddf9", "e129b5672daeff94", "ebd86893a4afd625", "eccdd9ca999c62f5",
    "5a823e7c1218e37e", "41f9c90df7e172be", "88214580c619724a", "0d3fddab6157e7d6",
    "dacd5927902a6490", "f7e72552962220a5", "c92fcc73f56e8927", "1713d31b72a1a5b7", "e7e17b6ed9c938d7", "d43e79c8dd089f52",
    "2e71c0055a7d3bce",
)  # fmt: skip
SOURCES = ("teacher_sha256", "generator_sha256", "generated_digest")  # what two runs share that both have one
SEEDS = 3  # that a row is tested with, at least
SCREENED_BY = {"test_accuracy": "val_accuracy", "robust_accuracy": "robust_val_accuracy"}  # of validation images


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a row's arm gains over its control, in percentage points: `mean` with half the width of its 95 % interval.

    `p` is two-sided; `adjusted` is Holm's, over all rows but those that are only screened. A row with fewer than `SEEDS` pairs to
    test it with has a mean alone, and the other three are None. Where the row is screened, that is of the validation images,
    without the seeds of `plan.NEW`.
    `minutes` is what a run of the arm took on a processor, on average, or None.
    """

    row: object
    seeds: int
    mean: float
    half: float | None
    p: float | None
    minutes: float | None
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
    """Return the pairs of records (arm's, control's) of a row, by seed, all of the code that most pairs have.

    Both of a pair are of the same backend, which draws the first weights; it may be another for another seed.
    """
    found = {}
    controls = {(kind(record), backend(record), record["seed"]): record for record in records if record["arm"] == row.control}
    for record in sorted(records, key=lambda record: record["seed"]):
        control = controls.get((kind(record), backend(record), record["seed"]))
        measured = control and row.measure in record.keys() & control.keys()
        if record["arm"] == row.arm and measured and same_sources(record, control):
            both = kind(record), record.get("use_code"), control.get("use_code")
            found.setdefault(both, []).append((record, control))
    return max(found.values(), key=len, default=[])


def kind(record):
    """Return what runs that are compared have in common."""
    return record["dataset"], same_code(record["code"]), record["precision"]


def backend(record):
    """Return the backend of Keras that a run was made with."""
    return record["versions"]["backend"]


def same_code(digest):
    """Return a digest of code, the same for codes that make the same numbers."""
    return SAME_CODE[0] if digest in SAME_CODE else digest


def same_sources(record, control):
    """Whether two runs have the same teacher, generator and GAN images, where both have one."""
    keys = [key for key in SOURCES if key in record and key in control]
    return all(record[key] == control[key] for key in keys)


def compare(records, rows):
    """Return the effects of all rows that have a pair of records, p values adjusted over all rows but those only screened.

    So a p value changes little when other rows get their runs. One that is to be tested and has no p value yet counts as 1.
    Screening makes no test, and what it has chosen is tested with other seeds: only then does a screened row count.
    """
    effects = [effect(row, found) for row in rows if (found := pairs(records, row))]
    tested = [each for each in effects if each.p is not None]
    waiting = sum(not row.screened for row in rows) - sum(not each.row.screened for each in tested)
    adjusted = iter(holm([each.p for each in tested] + [1.0] * waiting))
    return [each if each.p is None else dataclasses.replace(each, adjusted=next(adjusted)) for each in effects]


def effect(row, found):
    """Return the effect that pairs of records show, not yet adjusted."""
    new, screening = (
        [pair for pair in found if not (row.screened and pair[0]["seed"] in seeds)] for seeds in (plan.SCREEN, plan.NEW)
    )
    tested = len(new) >= SEEDS
    found = new if tested else screening or found
    measure = SCREENED_BY[row.measure] if row.screened and not tested else row.measure
    values, controls = ([100 * record[measure] for record in side] for side in zip(*found, strict=True))
    if tested:
        return Effect(row, len(found), *paired(values, controls), minutes(found))
    return Effect(row, len(found), statistics.mean(values) - statistics.mean(controls), None, None, minutes(found))


def minutes(found):
    """Return how long the arm's runs among pairs took on average, those on a processor; None where there is none.

    On a GPU several run at once, and none has minutes of its own.
    """
    seconds = [record["seconds"] for record, _ in found if "cores" in record["device"]]
    return statistics.mean(seconds) / 60 if seconds else None
