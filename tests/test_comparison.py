"""Tables of records: which runs may be averaged or paired, and what their numbers are."""

import numpy as np
import pytest
import scipy.stats

from core import comparison


def run(name="vgg16", seed=0, accuracy=0.5, gan=0, **changes):
    return {
        "name": name, "model": "VGG-16 + GAN" if gan else "VGG-16", "dataset": "cifar100",
        "seed": seed, "test_accuracy": accuracy, "synthetic_per_class": gan,
        "synthetic_digest": "a" if gan else None, "recipe": "r", "optimizer": "muon",
        "precision": "float32", "device": "2 cores, AMD (avx2)", "parameters": {}, "commit": "c",
        "parameter_count": 1234, "epochs_run": 12, "steps": 2112, "seconds": 90.0, "history": {},
    } | changes  # fmt: skip


def earlier(*arguments, **changes):
    """A record of before `recipe` and `optimizer` were recorded."""
    record = run(*arguments, **changes)
    del record["recipe"], record["optimizer"]
    return record


def pair(seed, gain=0.01, make=run, **changes):
    """A run without GAN images and one with 20 per class."""
    with_gan = {"accuracy": 0.5 + gain, "gan": 20} | changes
    return [make(f"s{seed}", seed, **changes), make(f"s{seed}_gan", seed, **with_gan)]


def names(records):
    """Return the names of the runs in each group."""
    return [sorted(each["name"]) for each in comparison.groups(comparison.frame(records))]


def gains(records):
    """Return, for each kind of pairs, the differences in points by seed."""
    found = comparison.pairs(comparison.frame(records))
    return [dict(zip(each["seed"], each["gain"].round(6), strict=True)) for each in found]


def test_runs_that_differ_in_their_seed_alone_form_a_group_best_mean_first():
    records = [run("a", 0, 0.4), run("b", 1, 0.6), run("c", 0, 0.55, model="ResNet"), {"fid": 3.0}]
    records[1] |= {"parameters": {"MY_NOTE": 1}, "commit": "d", "device": "2 cores, Intel"}
    assert names(records) == [["c"], ["a", "b"]]
    assert list(comparison.frame(records)["name"]) == ["b", "c", "a"]
    assert names([]) == gains([]) == gains(records) == []


OTHERS = [{"recipe": "s"}, {"precision": "bfloat16"}, {"device": "GPU"}, {"source": "yours"}]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: next(iter(change)))
def test_runs_of_another_kind_are_never_averaged_or_paired(change):
    assert names([run("a", 0), run("b", 1, 0.4, **change)]) == [["a"], ["b"]]
    kinds = gains(pair(0) + pair(1) + pair(2, 0.05, **change))
    assert sorted(kinds, key=len) == [{2: 5}, {0: 1, 1: 1}]
    assert gains([pair(0)[0], pair(0, **change)[1]]) == []


def test_other_images_are_another_experiment():
    """More of them, or a reader trains another GAN and repeats one of three seeds with it."""
    for change in ({"gan": 50}, {"synthetic_digest": "b"}):
        records = [*pair(0), *pair(1), pair(2)[0], pair(2, 0.05, **change)[1]]
        assert names(records) == [["s2_gan"], ["s0_gan", "s1_gan"], ["s0", "s1", "s2"]]
        assert sorted(gains(records), key=len) == [{2: 5}, {0: 1, 1: 1}]


def test_runs_with_added_steps_are_compared_with_the_same_runs_without_gan_images():
    """They are pairs of their own, apart from those with as many steps."""
    added = run("s0_added", 0, 0.53, gan=20, steps=2352, parameters={"STEPS": "added"})
    records = [*pair(0), *pair(1), added]
    assert sorted(gains(records), key=len) == [{0: 3}, {0: 1, 1: 1}]
    labels = [comparison.label(group) for group in comparison.groups(comparison.frame(records))]
    assert labels[0] == "VGG-16 + GAN, added steps, 12 epochs, Muon"


def test_a_seed_counts_once_whatever_its_runs_are_called():
    again = [each | {"name": f"z{each['name']}", "test_accuracy": 0.9} for each in pair(0)]
    assert names(again + pair(0) + pair(1)) == [["s0_gan", "s1_gan"], ["s0", "s1"]]
    assert gains(again + pair(0) + pair(1)) == [{0: 1, 1: 1}]
    assert gains([pair(0)[0], pair(1)[1]]) == []


def test_earlier_records_are_grouped_by_their_commit():
    records = pair(0, make=earlier) + pair(1, make=earlier) + [earlier("s2", 2, 0.4, commit="d")]
    assert names(records) == [["s0_gan", "s1_gan"], ["s0", "s1"], ["s2"]]
    resnet = earlier("resnet", 0, 0.1, model="ResNet-14")  # by name before the right partner
    assert gains([resnet, *records]) == [{0: 1, 1: 1}]
    of_muon = earlier("muon", accuracy=0.1, parameters={"OPTIMIZER": "muon"})
    mixed = comparison.frame([earlier(accuracy=0.2), of_muon, run(optimizer="sgd")])
    assert list(mixed["optimizer"]) == ["sgd", "adam", "muon"]


def test_means_and_students_intervals_agree_with_scipy():
    differences = [-1.08, -1.38, -1.79]  # as published
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    expected = f"{np.mean(differences):+.2f} ({low:+.2f} to {high:+.2f})"
    assert comparison.gain_with_interval(differences) == expected == "-1.42 (-2.30 to -0.53)"
    assert comparison.gain_with_interval([0.5]) == "+0.50 (one seed gives no interval)"
    assert comparison.mean_with_interval([0.5899]) == "59.0 %"


def test_the_table_of_runs_marks_missing_values(recwarn):
    records = [run("a", test_top5=0.8, val_accuracy=0.55), run("r", model="R", accuracy=0.6)]
    records[1] |= {"source": "yours", "device": "NVIDIA H100"}
    del records[1]["parameter_count"]
    header, _, *rows = comparison.runs_table(comparison.frame(records)).splitlines()
    assert header.endswith("| train | validation | test | test, top 5 | test, with mirror images |")
    first, second = "| 0 | 0 | – | 2,112 | 1.5 |", "| 0 | 0 | 1,234 | 2,112 | 1.5 |"
    assert rows == [
        f"| R | yours: r | muon {first} NVIDIA H100 | – | – | 60.00 % | – | – |",
        f"| VGG-16 | published: a | muon {second} 2 cores | – | 55.00 % | 50.00 % | 80.00 % | – |",
    ]
    assert not recwarn.list


def test_the_table_of_groups_names_network_length_optimiser_and_whose_it_is():
    records = [run("a", 0, 0.5), run("b", 1, 0.6, seconds=210.0)]
    records += [run("c", accuracy=0.4, device="H100", optimizer="adam", source="yours")]
    table = comparison.groups_table(comparison.groups(comparison.frame(records)))
    assert "| VGG-16, 12 epochs, Muon | 55.0 ± 63.5 % | 2 | 2 | 2 cores, AMD |\n" in table
    assert "| VGG-16, 12 epochs, Adam, GPU, your c | 40.0 % | 1 | 2 | H100 |\n" in table


def test_the_table_of_pairs_shows_the_steps_of_both_runs():
    """Early stopping may have ended one of them before the other."""
    records = [*pair(1, -0.02), *pair(0, 0.01)]
    records[1] |= {"steps": 1056, "epochs_run": 6}
    rows = comparison.pairs_table(comparison.pairs(comparison.frame(records))[0]).splitlines()[2:]
    assert rows[0] == "| 0 | 51.00 % | 50.00 % | +1.00 | 2,112 | 2,112 |"
    assert rows[1] == "| 1 | 48.00 % | 50.00 % | -2.00 | 1,056 | 2,112 |"
    assert (
        rows[2] == "| mean (95 % confidence interval) | – | – | -0.50 (-19.56 to +18.56) | – | – |"
    )
