"""Tables of the study's results, made from its records."""

import numpy as np
import pandas
import scipy.stats

from core import comparison, records
from tools.run import run_name_of_seed
from tools.study.arms import PLANNED, SEEDS

CHOSEN = ("rate", "weight_decay", "trivial_augment", "cutmix", "share", "per_class", "temperature")
ALIKE = ("commit", "precision", "steps", "teacher")  # these and the backend must be equal in a pair


def by_seed(published: bool = True) -> dict[str, dict[int, dict]]:
    """Return records by arm and seed: those of the study and, for comparison A, of notebook 2."""
    found = {}
    for record in records.read("study", published).values():
        if record.get("trial") is False:  # records of the earlier study lack this key
            found.setdefault(record["arm"], {})[record["seed"]] = record
    runs = records.read("cifar100", published)
    for arm, ending in (("vgg16", ""), ("vgg16_gan", "_gan")):
        names = {seed: run_name_of_seed("vgg16", seed) + ending for seed in SEEDS}
        found[arm] = {seed: runs[name] for seed, name in names.items() if name in runs}
    return found


def pairs(found: dict, with_gan: str, without: str) -> list[tuple[dict, dict]]:
    """Return a pair of records, with and without GAN images, for each seed that both arms have.

    Raises `ValueError` if the two runs of a pair differ in a key of `ALIKE` or in the backend.
    """
    both = sorted(found.get(with_gan, {}).keys() & found.get(without, {}).keys())
    made = [(found[with_gan][seed], found[without][seed]) for seed in both]
    for one, other in made:
        differing = [key for key in ALIKE if one.get(key) != other.get(key)]
        if one["versions"]["backend"] != other["versions"]["backend"]:
            differing.append("backend")
        if differing:
            names = f"{one['name']} and {other['name']}"
            raise ValueError(f"{names} cannot be compared: they differ in {', '.join(differing)}")
    return made


def gains(found: dict, with_gan: str, without: str) -> list[float]:
    """Return the gains in test accuracy from GAN images, one per seed, in percentage points."""
    made = pairs(found, with_gan, without)
    return [100 * (one["test_accuracy"] - other["test_accuracy"]) for one, other in made]


def holm(p_values: list[float]) -> list[float]:
    """Return p values adjusted for multiple comparisons by Holm's method (Holm, 1979)."""
    order, adjusted, largest = np.argsort(p_values), np.zeros(len(p_values)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted.tolist()


def planned(found: dict) -> dict[str, dict]:
    """Return the planned comparisons that have all five pairs; p values are adjusted for four."""
    made = {name: gains(found, *arms) for name, arms in PLANNED.items()}
    made = {name: each for name, each in made.items() if len(each) == len(SEEDS)}
    tests = {name: scipy.stats.ttest_1samp(each, 0) for name, each in made.items()}
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
    return "no difference worth having" if low > -1 and high < 1 else "open"


def planned_table(found: dict) -> str:
    """Return a Markdown table with one row per planned comparison."""
    rows = []
    for name, each in planned(found).items():
        means = [
            comparison.mean_with_interval([run["test_accuracy"] for run in found[arm].values()])
            for arm in PLANNED[name]
        ]
        gain = comparison.gain_with_interval(each["gains"])
        rows.append([name, *means, gain, f"{each['p']:.3f}", each["verdict"]])
    columns = ["comparison", "with GAN images", "without", "difference in points (95 % interval)"]
    return comparison.markdown(pandas.DataFrame(rows, columns=[*columns, "adjusted p", "verdict"]))


def arms_table(found: dict) -> str:
    """Return a Markdown table of all arms: mean test accuracy, seeds, steps and chosen recipe."""
    rows = []
    for arm, runs in found.items():
        first = runs[min(runs)]
        accuracy = comparison.mean_with_interval([each["test_accuracy"] for each in runs.values()])
        own = {key: first["parameters"].get(key) for key in CHOSEN}
        recipe = ", ".join(f"{key} {value}" for key, value in own.items() if value)
        rows.append([f"`{arm}`", accuracy, len(runs), f"{first['steps']:,}", recipe or "–"])
    columns = ["arm", "test accuracy", "seeds", "steps", "recipe"]
    return comparison.markdown(pandas.DataFrame(rows, columns=columns))


def write() -> None:
    """Print the tables of the runs on this machine."""
    found = by_seed(published=False)
    print(planned_table(found))
    print(arms_table(found))
