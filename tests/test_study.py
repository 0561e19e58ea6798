"""The study: its plan as data, its trainer on tiny data, and the statistics of its report."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from core import devices, export, records
from tools import cells
from tools.study import __main__, arms, figures, report, trainer

PUBLISHED = report.by_seed()


def test_both_runs_of_every_published_pair_are_alike():
    for with_gan, without in arms.PLANNED.values():
        for one, other in report.pairs(PUBLISHED, with_gan, without):
            if one["generator_sha256" if "arm" in one else "synthetic_digest"] is None:
                pytest.fail(f"{one['name']} has no GAN images")
            assert one["seed"] == other["seed"]


def test_seed_i_of_an_arm_uses_gan_i():
    """So an interval includes the luck of the generator, and not that of the classifier alone."""
    for arm, runs in PUBLISHED.items():
        for key in ("generator_sha256", "synthetic_digest"):
            used = [run[key] for run in runs.values() if run.get(key)]
            assert len(set(used)) == len(used), arm


def test_planned_arms_exist_and_have_as_many_trials_and_steps_on_both_sides():
    by_name = {arm.name: arm for arm in arms.ARMS}
    assert len(by_name) == len(arms.ARMS)
    for name in "BCD":
        one, other = (by_name[arm] for arm in arms.PLANNED[name])
        assert sum(map(len, one.stages)) == sum(map(len, other.stages)) > 0
        assert (one.steps, one.trial_steps) == (other.steps, other.trial_steps)
        assert one.teacher == other.teacher
    assert all(arm.borrowed in ("", *by_name) for arm in arms.ARMS)
    with open(ROOT / "docs" / "study.md", encoding="utf-8") as page:
        plan = page.read()
    assert all(f"**Planned comparison {name}.**" in plan for name in arms.PLANNED)


def test_holm_and_the_verdicts_follow_the_plan():
    assert report.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert report.holm([0.5, 0.6]) == [1.0, 1.0]
    assert report.verdict(0.01, 0.2, 3.0) == "helps"
    assert report.verdict(0.01, -3.0, -0.2) == "harms"
    assert report.verdict(0.3, -0.9, 0.6) == "no relevant difference"
    assert report.verdict(0.3, -1.2, 0.6) == "open"


def found(gains, **changes):
    """Records of two arms, five seeds each, that differ by `gains` points."""
    alike = {"commit": "c", "precision": "float32", "steps": 12, "epochs_run": 3, "epochs": 3,
             "teacher": None, "versions": {"backend": "tensorflow"}, "name": "n"}  # fmt: skip
    names = arms.PLANNED["C"]
    made = {name: {} for name in names}
    for seed, gain in enumerate(gains):
        made[names[0]][seed] = alike | {"test_accuracy": 0.3 + gain / 100}
        made[names[1]][seed] = alike | {"test_accuracy": 0.3}
    made[names[0]][0] |= changes
    return made


def test_a_planned_comparison_is_a_t_test_of_paired_differences():
    gains = [1.0, 2.0, 1.5, 0.5, 2.5]
    made = report.planned(found(gains))["C"]
    test = scipy.stats.ttest_1samp(gains, 0)
    assert made["gain"] == pytest.approx(1.5)
    assert made["interval"] == pytest.approx(tuple(test.confidence_interval()))
    assert made["p"] == pytest.approx(4 * test.pvalue)  # the other three count, too
    assert report.planned(found(gains[:4])) == {}  # only with all five seeds


def test_a_run_that_stopped_early_is_compared_with_one_that_did_not():
    stopped = report.planned(found([1.0, 2.0] * 2 + [1.0], steps=8, epochs_run=2))
    assert len(stopped["C"]["gains"]) == 5


UNLIKE = [
    {"commit": "d"}, {"steps": 15}, {"precision": "bfloat16"}, {"teacher": "t"},
    {"versions": {"backend": "jax"}},
]  # fmt: skip


@pytest.mark.parametrize("change", UNLIKE)
def test_runs_that_differ_in_more_than_the_images_are_no_pair(change):
    with pytest.raises(ValueError, match="cannot be compared"):
        report.planned(found([1.0] * 5, **change))


def runs(*accuracies):
    return {seed: {"test_accuracy": each} for seed, each in enumerate(accuracies)}


def test_the_worth_in_photographs_is_read_off_their_curve():
    """GAN images are as good as 1,000 photographs; their luck, and that of seeds, is resampled."""
    curve = {100: 0.1, 400: 0.2, 1_000: 0.3, 4_500: 0.4}
    made = {f"few-{size}": runs(*[each] * 5) for size, each in curve.items()}
    made["few-0-gan"] = runs(*[0.3] * 5)
    assert report.worth_in_photographs(made, repeats=20) == pytest.approx((1_000,) * 3)
    made["few-0-gan"] = runs(0.2, 0.25, 0.3, 0.35, 0.4)
    middle, low, high = report.worth_in_photographs(made, repeats=500)
    assert middle == pytest.approx(1_000)
    assert 400 < low < 800 < 1_200 < high < 4_500


def test_figures_are_drawn_of_the_arms_that_are_there(tmp_path):
    made = found([1.0, 2.0, 1.5, 0.5, 2.5]) | {"compress-gan": runs(0.02)}
    figures.draw(made, tmp_path)
    names = {"study", "study_stand_in", "study_compress"}  # question 1 has no runs
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    figures.draw({}, tmp_path / "without-runs")  # draws nothing


def test_the_figure_of_quality_shows_both_classifiers_for_each_gan(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: shown.extend(figure.axes))
    gans = {
        "gan": {"seconds": 420, "gan_train_ratio": 0.6},
        "gan_long": {"seconds": 1_800, "gan_train_ratio": 0.7},
    }
    made = {"dose-0": runs(0.5, 0.6), "alone-short": runs(0.22), "alone-long": runs(0.33)}
    figures.draw_quality(gans, made, tmp_path / "quality.png")
    student, vgg16 = (line.get_xydata() for line in shown[0].lines)
    assert student == pytest.approx(np.array([[7, 0.6], [30, 0.7]]))
    assert vgg16 == pytest.approx(np.array([[7, 0.4], [30, 0.6]]))


@pytest.fixture
def study(project, monkeypatch):
    """The trainer on the stand-in, with an untrained generator and a tiny teacher and student."""
    monkeypatch.setattr(trainer, "DATASET", "shapes100")
    (project / "results" / "cifar100").mkdir(parents=True)
    monkeypatch.setattr(trainer, "STUDENT_WIDTH", 0.03)
    monkeypatch.setattr(trainer, "TEACHER_WIDTH", 0.03)
    notebook = cells.define("gan_synthetic_images")
    runs = records.run_folder("cifar100")
    export.save(notebook["build_generator"](2), runs / "gan_long_generator.keras")
    statistics = {"mean": np.zeros(3), "variance": np.ones(3)}
    teacher = cells.define("vgg16_with_gan", **statistics)["build_vgg16"](0.03)
    export.save(teacher, project / "results" / "cifar100" / f"{trainer.TEACHER}.keras")
    yield project
    for cached in (trainer.load, trainer.gan_images):
        cached.cache_clear()


@pytest.mark.slow
def test_an_arm_chooses_by_validation_images_and_is_not_trained_twice(study, capsys):
    (arm,) = [arm for arm in arms.ARMS if arm.name == "few-400-gan"]
    stages = (arms.grid(rate=(1e-5, 1e-2)), ({"share": 0.25},))
    small = dataclasses.replace(arm, steps=48, per_class=5, stages=stages)
    chosen = trainer.choose(small)
    folder = records.run_folder("study")
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    trials = [json.loads(path.read_text()) for path in paths]  # in the order of their runs
    assert len(trials) == 3
    assert all("test_accuracy" not in trial for trial in trials)  # the test images choose nothing
    best = max(trials, key=lambda trial: trial["val_accuracy"])["parameters"]
    assert (chosen.rate, chosen.share) == (best["rate"], best["share"])
    record = trainer.train(chosen, 0)
    repeats = round(500 * (1 / chosen.share - 1) / 400)  # of the photographs, for that share
    images = 500 + max(1, repeats) * 400
    assert (record["steps"], record["seed"], record["trained_on"]) == (48, 0, images)
    assert len(record["generator_sha256"]) == 64
    capsys.readouterr()
    assert trainer.train(chosen, 0) == record
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_photographs_are_those_that_the_plan_names(study):
    data, train, validation = trainer.load("train")
    by_name = {arm.name: arm for arm in arms.ARMS}
    held_out, none = trainer.photographs(by_name["few-400"], 0, trial=False)
    assert set(held_out) <= set(validation)
    assert len(none) == 0
    chosen, kept = trainer.photographs(by_name["few-400"], 0, trial=True)
    assert np.bincount(data.y_train[kept]).tolist() == [1] * 100
    assert set(chosen) | set(kept) == set(held_out)
    other, _ = trainer.photographs(by_name["few-400"], 1, trial=False)
    assert set(other) != set(held_out)
    few, judged_by = trainer.photographs(by_name["compress-400"], 0, trial=True)
    assert set(few) <= set(train)
    assert np.array_equal(judged_by, validation)


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_thinks(study):
    (arm,) = [arm for arm in arms.ARMS if arm.name == "compress-400"]
    few = dataclasses.replace(arm, steps=120, rate=1e-2, temperature=2.0, stages=())
    images = trainer.load("train")[0].x_train[:64]
    model = trainer.build(few, 120, images)
    one_hot = np.eye(100, dtype="float32")[np.zeros(64, int)]  # not what the student learns
    before = [weight.numpy() for weight in model.teacher.weights]
    losses = [model.train_on_batch(images, one_hot, return_dict=True)["loss"] for _ in range(30)]
    assert losses[-1] < losses[0]
    for old, new in zip(before, model.teacher.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@pytest.mark.slow
def test_the_teacher_is_the_published_network_or_a_named_one_of_the_reader(study):
    published = trainer.build_teacher(arms.Arm("large", teacher=True))
    statistics = {"mean": np.zeros(3), "variance": np.ones(3)}
    own = cells.define("vgg16_with_gan", **statistics)["build_vgg16"](0.03)
    export.save(own, records.run_folder("cifar100") / "vgg16.keras")
    named = trainer.build_teacher(arms.Arm("small", teacher="vgg16"))
    for one, other in zip(named.get_weights(), own.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)  # saved as float16
    assert not np.array_equal(named.get_weights()[-2], published.get_weights()[-2])
    names = [trainer.teacher_name(arms.Arm("", teacher=each)) for each in (False, True, "vgg16")]
    assert names == [None, trainer.TEACHER, "vgg16"]


@pytest.mark.slow
def test_make_study_runs_what_is_missing_and_says_how_long_the_rest_takes(
    study, policy, monkeypatch, capsys
):
    (arm,) = [arm for arm in arms.ARMS if arm.name == "few-400"]
    small = dataclasses.replace(arm, steps=12, stages=(), seeds=(0, 1))
    later = dataclasses.replace(small, name="later", teacher=True, steps=1_000_000)
    monkeypatch.setattr(arms, "ARMS", [small, later])
    monkeypatch.setattr(sys, "argv", ["study", "--only", "few-400"])
    monkeypatch.setattr(devices, "_faster_precision", lambda: "mixed_bfloat16")
    for _ in range(2):  # the second time, nothing is left to do
        __main__.main()
        printed = capsys.readouterr().out
        assert re.search(r"few-400-seed1: \d+\.\d%\. About [1-9]\d*\.\d hours are left", printed)
    assert "steps" not in printed
    made = records.read("study")
    assert made.keys() == {"few-400-seed0", "few-400-seed1"}
    assert {record["precision"] for record in made.values()} == {"mixed_bfloat16"}
