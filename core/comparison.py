"""Tables of records: runs that differ only in their seed, and the effect of GAN images."""

import numpy as np
import pandas

from core import metrics

SYNTHETIC = ["synthetic_per_class", "synthetic_kind", "steps_per_epoch"]  # GAN images may add steps
ALIKE = ["source", "model", "recipe", "precision", "hardware", *SYNTHETIC]
ACCURACIES = {
    "train_accuracy": "train", "val_accuracy": "validation", "test_accuracy": "test",
    "test_top5": "test, top 5", "test_flip_accuracy": "test, with mirror images",
}  # fmt: skip


def frame(records: list[dict]) -> pandas.DataFrame:
    """Return one row per classifier record, sorted by test accuracy, best first.

    Accuracies lie between 0 and 1. Runs whose columns `ALIKE` are equal differ only in their seed.
    """
    runs = pandas.DataFrame([record for record in records if "test_accuracy" in record])
    if runs.empty:
        return runs
    named = runs["parameters"].map(lambda parameters: parameters.get("OPTIMIZER", "adam"))
    defaults = {"recipe": runs["commit"], "optimizer": named, "source": "published"}
    defaults |= {"synthetic_kind": runs["synthetic_digest"]}
    for column, default in defaults.items():  # older records lack these
        if column not in runs:
            runs[column] = None
        runs[column] = runs[column].astype(object).fillna(default)
    runs["hardware"] = np.where(runs["device"].str.contains(r"^\d+ cores"), "CPU", "GPU")
    runs["network"] = runs["model"].str.removesuffix(" + GAN")
    runs["minutes"] = runs["seconds"] / 60
    runs["steps_per_epoch"] = runs["steps"] / runs["epochs_run"]
    return runs.sort_values("test_accuracy", ascending=False, ignore_index=True)


def groups(runs: pandas.DataFrame) -> list[pandas.DataFrame]:
    """Return groups of runs that differ only in their seed, sorted by mean, each seed once."""
    if runs.empty:
        return []
    found = [group for _, group in runs.groupby(ALIKE, dropna=False)]
    found = [group.sort_values("name").drop_duplicates("seed") for group in found]
    return sorted(found, key=lambda group: -group["test_accuracy"].mean())


def label(group: pandas.DataFrame) -> str:
    """Return a short name for a group of runs, such as "VGG-16 x0.25, 12 epochs, Muon"."""
    first = group.iloc[0]
    length = "1 epoch" if first["epochs_run"] == 1 else f"{first['epochs_run']} epochs"
    words = [first["model"], length, first["optimizer"].capitalize()]
    if first["synthetic_per_class"] and first["parameters"].get("STEPS") == "added":
        words.insert(1, "added steps")
    if first["hardware"] == "GPU":
        words.append("GPU")
    if first["source"] == "yours":
        words.append(f"your {first['name']}")
    return ", ".join(words)


def mean_with_interval(fractions) -> str:
    """Return the mean of `fractions` in per cent, and ± half its 95% interval if several."""
    values = 100 * np.asarray(fractions, float)
    if len(values) < 2:
        return f"{values.mean():.1f}%"
    mean, half = metrics.mean_and_interval(values)
    return f"{mean:.1f} ± {half:.1f}%"


def runs_table(runs: pandas.DataFrame) -> str:
    """Return a Markdown table with one row per run."""
    columns = {
        "model": runs["model"], "run": runs["source"] + ": " + runs["name"],
        "optimiser": runs["optimizer"], "seed": runs["seed"],
        "GAN images per class": runs["synthetic_per_class"],
        "parameters": runs["parameter_count"].map("{:,}".format),
        "steps": runs["steps"].map("{:,}".format), "minutes": runs["minutes"].map("{:.1f}".format),
        "hardware": runs["device"].str.partition(",")[0],
    }  # fmt: skip
    for column, words in ACCURACIES.items():
        columns[words] = (100 * runs[column]).map("{:.2f}%".format)
    return markdown(pandas.DataFrame(columns))


def groups_frame(found: list[pandas.DataFrame]) -> pandas.DataFrame:
    """Return one row per group: its name, mean test accuracy with interval, seeds and minutes."""
    rows = []
    for group in found:
        accuracy, minutes = mean_with_interval(group["test_accuracy"]), group["minutes"].mean()
        device = group["device"].iloc[0].partition(" (")[0]
        rows.append([label(group), accuracy, len(group), f"{minutes:.0f}", device])
    columns = ["network", "test accuracy", "seeds", "minutes", "hardware"]
    return pandas.DataFrame(rows, columns=columns)


def groups_table(found: list[pandas.DataFrame]) -> str:
    """Return `groups_frame` as a Markdown table."""
    return markdown(groups_frame(found))


def pairs(runs: pandas.DataFrame) -> list[pandas.DataFrame]:
    """Pair each run with GAN images with the run without them that has the same recipe and seed.

    Returns one frame per recipe and kind of GAN images, with one row per seed. Columns other than
    the shared ones end in _with or _without; `gain` is the test accuracy with minus without, in
    percentage points.
    """
    if runs.empty:
        return []
    same = ["source", "recipe", "network", "precision", "hardware", "seed"]
    runs = runs.sort_values("name").drop_duplicates([*same, *SYNTHETIC])
    with_gan, without = runs[runs.synthetic_per_class > 0], runs[runs.synthetic_per_class == 0]
    both = with_gan.merge(without, on=same, suffixes=("_with", "_without"))
    both["gain"] = 100 * (both["test_accuracy_with"] - both["test_accuracy_without"])
    of_one_kind = both.groupby([*same[:-1], *(f"{name}_with" for name in SYNTHETIC)])
    return [group.sort_values("seed") for _, group in of_one_kind]


def pairs_table(pair: pandas.DataFrame) -> str:
    """Return a Markdown table of one frame of `pairs`, with the mean gain in its last row."""
    rows = [
        [f"{row.seed}", f"{100 * row.test_accuracy_with:.2f}%",
         f"{100 * row.test_accuracy_without:.2f}%", f"{row.gain:+.2f}",
         f"{row.steps_with:,}", f"{row.steps_without:,}"]
        for row in pair.itertuples()
    ]  # fmt: skip
    gain = gain_with_interval(pair["gain"])
    rows.append(["mean (95% confidence interval)", "–", "–", gain, "–", "–"])
    columns = ["seed", "accuracy with GAN images", "accuracy without", "difference in points"]
    columns += ["steps with GAN images", "steps without"]
    return markdown(pandas.DataFrame(rows, columns=columns))


def gain_with_interval(gains) -> str:
    """Return the mean of paired differences in points, with its 95% interval if it has one."""
    if len(gains) < 2:
        return f"{np.mean(gains):+.2f} (one seed gives no interval)"
    mean, half = metrics.mean_and_interval(gains)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def markdown(table: pandas.DataFrame) -> str:
    """Return a table in Markdown, without its index."""
    rows = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
