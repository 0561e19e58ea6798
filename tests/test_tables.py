"""Tables and numbers in the README, the docs and the notebooks are those of the records."""

import itertools
import re

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from core import comparison, metrics, records
from tools import cells, tables
from tools.study.arms import PLANNED

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# What no record holds: results of others, levels of significance, of intervals and of quantiles,
# versions of Python.
CITED = {"0.05", "44.83", "71.10", "95", "99", "3.11", "3.12", "3.13"}


def test_every_table_is_what_the_records_give():
    wrong = []
    for page, marks in tables.tables().items():
        for mark, table in marks.items():
            if tables.filled(PAGES[page], mark, table) != PAGES[page]:
                wrong.append((page, mark))
    for name in cells.NOTEBOOKS:
        first = nbformat.read(cells.FOLDER / f"{name}.ipynb", 4).cells[0].source
        if tables.filled(first, "expected", tables.expected(name)) != first:
            wrong.append(name)
    assert wrong == []


def test_a_table_replaces_only_what_is_between_its_marks():
    page = "a\n<!-- x -->\nold<!-- /x -->\nb"
    assert tables.filled(page, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    for mark, broken in (("y", page), ("x", page.replace("<!-- /x -->", ""))):
        with pytest.raises(ValueError, match=f"no marks '{mark}'"):
            tables.filled(broken, mark, "new")


def accuracies():
    """Return test accuracies (%) by seed: of groups of runs, of pairs, and of the study's arms."""
    runs, arms = comparison.frame(list(records.read("cifar100", published=True).values())), {}
    groups = [dict(zip(group["seed"], 100 * group["test_accuracy"], strict=True))
              for group in comparison.groups(runs)]  # fmt: skip
    pairs = [[dict(zip(pair["seed"], 100 * pair[f"test_accuracy_{kind}"], strict=True))
              for kind in ("with", "without")] for pair in comparison.pairs(runs)]  # fmt: skip
    for record in records.read("study", published=True).values():
        if not record.get("trial"):
            arms.setdefault(record["arm"], {})[record["seed"]] = 100 * record["test_accuracy"]
    return groups, pairs, arms


def overfitting():
    """Return, for each group of runs, training accuracies (%) and how far test ones are below."""
    runs = comparison.frame(list(records.read("cifar100", published=True).values()))
    found = []
    for group in comparison.groups(runs):
        found.append((100 * group["train_accuracy"]).tolist())
        found.append((100 * (group["train_accuracy"] - group["test_accuracy"])).tolist())
    for pair in comparison.pairs(runs):  # how much smaller the difference is with GAN images
        gaps = [pair[f"train_accuracy_{kind}"] - pair[f"test_accuracy_{kind}"]
                for kind in ("without", "with")]  # fmt: skip
        found.append((100 * (gaps[0] - gaps[1])).tolist())
    return found


def generators():
    """Return scores of the generators of `make long`: GAN-test, that of real images, GAN-train."""
    found = records.read("cifar100", published=True).items()
    made = [record for name, record in found if name.startswith("gan_long")]
    scores = {"gan_test": 100, "gan_test_real": 100, "gan_train_ratio": 1,
              "gan_train_test_split": 100}  # fmt: skip
    return [[scale * record[key] for record in made] for key, scale in scores.items()]


def trials():
    """Return the validation accuracies (%) of the study's trials, each in a list of its own."""
    found = records.read("study", published=True).values()
    return [[100 * record["val_accuracy"]] for record in found if record.get("trial")]


def differences(arm, control):
    return [arm[seed] - control[seed] for seed in sorted(arm.keys() & control.keys())]


def facts(samples):
    """Return the mean of each sample, the ends of its interval, and half the interval's width."""
    found = [np.mean(each) for each in samples]
    for mean, half in (metrics.mean_and_interval(each) for each in samples if len(each) > 1):
        found += [mean - half, mean + half, half]
    return found


def numbers(page):
    """Return the numbers in a page's sentences that are decimal, in per cent or in points."""
    code = r"(?m)<!-- (\w+) -->(?s:.*)<!-- /\1 -->|`[^`]*`|\]\([^)]*\)|^    .*$"
    number = r"(?<![\w.,])[+-]?(?:\d+\.\d+|\d+(?= ?%| (?:percentage )?points))(?![\w.]*\d)"
    return re.findall(number, re.sub(code, " ", page))


def test_numbers_in_sentences_are_found():
    text = "VGG-16 x0.25 (2015): -1.42 points, 3 runs, 9%, 10,000 images, 2 percentage points.\n"
    text += "    0.5\n`0.5` [0.7](0.8.md)\n<!-- a -->\n0.9\n<!-- /a -->"
    assert numbers(text) == ["-1.42", "9", "2", "0.7"]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/study.md"])
def test_every_number_in_a_sentence_comes_from_the_records(page):
    groups, pairs, arms = accuracies()
    pairs += [[arms[one], arms[other]] for one, other in PLANNED.values() if one in arms]
    gains = facts([differences(*pair) for pair in pairs])
    others = facts([list(each.values()) for each in (*groups, *arms.values())])
    others += facts(overfitting() + generators() + trials())
    others += facts([differences(*pair) for pair in itertools.combinations(groups, 2)])
    wrong = []
    for number in set(numbers(PAGES[page])) - CITED:
        places = len(number.partition(".")[2])
        known = {f"{gain:+.{places}f}" for gain in gains}  # a sign belongs to a difference
        known |= {f"{abs(fact):.{places}f}" for fact in (*gains, *others)}
        if number not in known:
            wrong.append(number)
    assert wrong == []


def test_links_lead_somewhere_and_tests_that_the_docs_name_exist():
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT / "tests").glob("*.py")}
    every, broken = "\n".join(sources.values()), []
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists():
                broken.append((page, link))
        for name in set(re.findall(r"\btest_\w+", text)) - sources.keys():
            if f"def {name}(" not in every:
                broken.append((page, name))
    assert broken == []
