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
        "train_accuracy": 0.7, "val_accuracy": 0.55, "test_top5": 0.8, "test_flip_accuracy": 0.51,
    } | changes  # fmt: skip


def pair(seed, gain=0.01, **changes):
    """A run without GAN images and one with 20 per class."""
    with_gan = {"accuracy": 0.5 + gain, "gan": 20} | changes
    return [run(f"s{seed}", seed, **changes), run(f"s{seed}_gan", seed, **with_gan)]


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
    """For example, one of three seeds was repeated with more images, or with another GAN."""
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


def test_records_without_a_recipe_are_grouped_by_their_commit():
    records = [run(f"s{i}", i, recipe=None, commit=commit) for i, commit in enumerate("ccd")]
    assert names(records) == [["s0", "s1"], ["s2"]]


def test_means_and_students_intervals_agree_with_scipy():
    differences = [-1.08, -1.38, -1.79]  # as published
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    expected = f"{np.mean(differences):+.2f} ({low:+.2f} to {high:+.2f})"
    assert comparison.gain_with_interval(differences) == expected == "-1.42 (-2.30 to -0.53)"
    assert comparison.gain_with_interval([0.5]) == "+0.50 (one seed gives no interval)"
    assert comparison.mean_with_interval([0.5899]) == "59.0%"


def test_tables_mark_runs_as_published_or_yours(recwarn):
    records = [run("a"), run("r", model="R", accuracy=0.6)]
    records[1] |= {"source": "yours", "device": "NVIDIA H100"}
    runs = comparison.frame(records)
    numbers = "| 0 | 0 | 1,234 | 2,112 | 1.5 |"
    assert comparison.runs_table(runs).splitlines()[2:] == [
        f"| R | yours: r | muon {numbers} NVIDIA H100 "
        "| 70.00% | 55.00% | 60.00% | 80.00% | 51.00% |",
        f"| VGG-16 | published: a | muon {numbers} 2 cores "
        "| 70.00% | 55.00% | 50.00% | 80.00% | 51.00% |",
    ]
    rows = comparison.groups_table(comparison.groups(runs)).splitlines()
    assert "| R, 12 epochs, Muon, GPU, your r | 60.0% | 1 | 2 | NVIDIA H100 |" in rows
    assert not recwarn.list
