"""Tables of the study's results, made from its records."""

import itertools

import numpy as np
import pandas
import scipy.stats

from core import comparison, records
from tools.run import run_name_of_seed
from tools.study.arms import EXPLORATORY, IN_WORDS, PLANNED, SEEDS, SIZES

TUNED = ("rate", "weight_decay", "trivial_augment", "cutmix", "share", "per_class", "temperature")
DIFFERENCE = "difference in points (95% interval)"
MUST_MATCH = ("commit", "precision", "teacher")  # in a pair, as must backend and steps


def by_seed(published: bool = True) -> dict[str, dict[int, dict]]:
    """Return records by arm and seed: those of the study and those of notebook 2."""
    found = {}
    for record in records.read("study", published).values():
        if record.get("trial") is False:  # records of the earlier study lack this key
            found.setdefault(record["arm"], {})[record["seed"]] = record
    runs = records.read("cifar100", published)
    for name, ending in itertools.product(("vgg16", "vgg16_fast"), ("", "_gan")):
        of_seed = {seed: runs.get(run_name_of_seed(name, seed) + ending, {}) for seed in SEEDS}
        # Earlier records lack the planned number of epochs, so they cannot be paired.
        found[name + ending] = {seed: run for seed, run in of_seed.items() if "epochs" in run}
    return {arm: runs for arm, runs in found.items() if runs}


def pairs(found: dict, with_gan: str, without: str) -> list[tuple[dict, dict]]:
    """Return a pair of records, with and without GAN images, for each seed that both arms have.

    Raises `ValueError` if the two runs of a pair differ in a key of `MUST_MATCH`, in the backend or
    in the number of steps.
    """
    both = sorted(found.get(with_gan, {}).keys() & found.get(without, {}).keys())
    made = [(found[with_gan][seed], found[without][seed]) for seed in both]
    for one, other in made:
        differing = [key for key in MUST_MATCH if one.get(key) != other.get(key)]
        if one["versions"]["backend"] != other["versions"]["backend"]:
            differing.append("backend")
        if steps_without_stopping(one) != steps_without_stopping(other):
            differing.append("steps")
        if differing:
            names = f"{one['name']} and {other['name']}"
            raise ValueError(f"{names} cannot be compared: they differ in {', '.join(differing)}")
    return made


def steps_without_stopping(record: dict) -> int:
    """Return the number of steps that a run would take if early stopping never ended it."""
    return record["steps"] // record["epochs_run"] * record["epochs"]


def gains(found: dict, with_gan: str, without: str) -> list[float]:
    """Return the gains in test accuracy from GAN images, one per seed, in percentage points."""
    return _gains(pairs(found, with_gan, without))


def _gains(made: list[tuple[dict, dict]]) -> list[float]:
    return [100 * (one["test_accuracy"] - other["test_accuracy"]) for one, other in made]


def holm(p_values: list[float]) -> list[float]:
    """Return p values adjusted for multiple comparisons by Holm's method (Holm, 1979)."""
    order, adjusted, largest = np.argsort(p_values), np.zeros(len(p_values)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted.tolist()


def planned(found: dict) -> dict[str, dict]:
    """Return the results of the planned comparisons that have all five pairs.

    The p values are adjusted for all four planned comparisons, finished or not.
    """
    made = {name: gains(found, *arms) for name, arms in PLANNED.items()}
    made = {name: points for name, points in made.items() if len(points) == len(SEEDS)}
    tests = {name: scipy.stats.ttest_1samp(points, 0) for name, points in made.items()}
    missing = [1.0] * (len(PLANNED) - len(made))  # unfinished comparisons count with p = 1
    adjusted = holm([test.pvalue for test in tests.values()] + missing)
    return {
        name: {
            "gain": float(np.mean(made[name])), "interval": tuple(test.confidence_interval()),
            "p": p, "verdict": verdict(p, *test.confidence_interval()), "gains": made[name],
        }
        for (name, test), p in zip(tests.items(), adjusted, strict=False)
    }  # fmt: skip


def verdict(p: float, low: float, high: float) -> str:
    """Return the answer to a planned comparison, by the criteria fixed in advance in docs/study.md.

    `p` is the adjusted p value, and `low` and `high` are the ends of the interval in points.
    """
    if p < 0.05:
        return "helps" if low > 0 else "harms"
    return "no relevant difference" if low > -1 and high < 1 else "open"


def planned_table(found: dict, without: tuple[str, ...] = ()) -> str:
    """Return a Markdown table with one row per planned comparison that has runs.

    `without` names columns that are left out.
    """
    rows, finished = [], planned(found)
    for name, arms in PLANNED.items():
        if made := pairs(found, *arms):
            p, answer = "–", f"{len(made)} of {len(SEEDS)} seeds"
            if name in finished:
                p, answer = finished[name]["p"], finished[name]["verdict"]
                p = f"{p:.3f}" if p >= 0.001 else "below 0.001"
            rows.append([name, IN_WORDS[name], *_compared(made), p, answer])
    columns = ["comparison", "what is compared", "with GAN images", "without", DIFFERENCE]
    table = pandas.DataFrame(rows, columns=[*columns, "adjusted p", "verdict"])
    return comparison.markdown(table.drop(columns=list(without)))


def exploratory_table(found: dict) -> str:
    """Return a Markdown table of the exploratory comparisons that have runs."""
    rows = []
    for words, *arms in EXPLORATORY:
        if made := pairs(found, *arms):
            rows.append([words, *_compared(made), len(made)])
    columns = ["comparison", "with", "without", DIFFERENCE, "seeds"]
    return comparison.markdown(pandas.DataFrame(rows, columns=columns))


def _compared(made: list[tuple[dict, dict]]) -> list[str]:
    """Return the cells of a comparison: both accuracies over the pairs' seeds, and the gain."""
    accuracies = [[run["test_accuracy"] for run in side] for side in zip(*made, strict=True)]
    means = map(comparison.mean_with_interval, accuracies)
    return [*means, comparison.gain_with_interval(_gains(made))]


def arms_table(found: dict) -> str:
    """Return a Markdown table of all arms: mean test accuracy, seeds, steps and chosen recipe."""
    rows = []
    for arm, runs in found.items():
        first = runs[min(runs)]
        steps = f"{steps_without_stopping(first):,}"
        rows.append([f"`{arm}`", _mean(found, arm), len(runs), steps, _recipe(first) or "–"])
    columns = ["arm", "test accuracy", "seeds", "steps", "recipe"]
    return comparison.markdown(pandas.DataFrame(rows, columns=columns))


def _recipe(record: dict) -> str:
    """Return those settings of a run that trials may have chosen, without those it does not use."""
    unused = [] if record.get("teacher") else ["temperature"]
    if not record.get("generator_sha256"):
        unused += ["share", "per_class"]
    own = {key: record["parameters"].get(key) for key in TUNED if key not in unused}
    return ", ".join(f"{key} {value}" for key, value in own.items() if value)


def _mean(found: dict, arm: str) -> str:
    return comparison.mean_with_interval([run["test_accuracy"] for run in found[arm].values()])


def worth_in_photographs(found: dict, repeats: int = 10_000) -> tuple[float, float, float]:
    """Return how many photographs are worth as much as GAN images alone, with a 95% interval.

    The accuracy is interpolated linearly in the logarithm of their number. The interval comes
    from a bootstrap that resamples seeds, separately for the photographs and for the GAN images;
    each seed has a GAN of its own.
    """
    curve = np.array([[found[f"few-{size}"][seed]["test_accuracy"] for size in SIZES]
                      for seed in SEEDS])  # fmt: skip
    alone = np.array([found["few-0-gan"][seed]["test_accuracy"] for seed in SEEDS])
    rng, worth = np.random.default_rng(0), []
    for _ in range(repeats):
        photographs, gans = rng.integers(0, len(SEEDS), (2, len(SEEDS)))
        mean = curve[photographs].mean(axis=0)
        worth.append(np.interp(alone[gans].mean(), mean, np.log(SIZES)))
    estimate = np.interp(alone.mean(), curve.mean(axis=0), np.log(SIZES))
    return tuple(np.exp([estimate, *np.quantile(worth, (0.025, 0.975))]).tolist())
