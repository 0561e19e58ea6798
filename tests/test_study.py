"""The study: what makes each use that use, what the statistics find, and what the page says."""

import csv
import dataclasses
import importlib
import json
import re
import subprocess
import sys

import filelock
import keras
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

import core
import utils
from core import checkpoints, measures, records
from core.cifar100 import DataError
from core.schedules import OneCycle
from tools import pages, publish
from tools.study import __main__ as study
from tools.study import (
    beside,
    distilled,
    in_turn,
    materials,
    mixed,
    partners,
    plan,
    report,
    robust,
    statistics,
    stronger,
    tail,
    training,
    unchosen,
)
from tools.study.batches import Mixture, Part, one_hot

ARMS = {arm.name: arm for arms, _ in plan.BLOCKS for arm in arms}
# of so few steps a quarter is none
HALF = dataclasses.replace(ARMS["all-first-0.25"], name="all-first-0.5", options={"first": 0.5})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The stand-in's materials in a folder of their own, with a teacher of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "ROOT", tmp_path_factory.mktemp("study"))
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32")
        made = materials.Materials(dataclasses.replace(plan.SMOKE, steps=2))
        assert study.make([plan.Run(ARMS[name], 0) for name in ("teacher", "teacher-tenth")], made) == (2, 0)
        yield made
        keras.config.set_dtype_policy(before)


def part(n, value, count, is_real=True):
    """A part of `n` images that all have one grey level, of class 0, 1, 2, ..."""
    return Part(np.full((n, 32, 32, 3), value, np.uint8), one_hot(np.arange(n) % 100), count, is_real)


# ---------------------------------------------------------------------------------------------------- the list


def test_each_row_has_its_arms_and_each_arm_its_use():
    names = [run.name for run in plan.runs()]
    assert len(set(names)) == len(names)
    assert {run.arm.name for run in plan.runs(smoke=True)} == ARMS.keys()
    for row in plan.rows():
        arms = ARMS[row.arm], ARMS[row.control]
        assert (arms[0].longer == arms[1].longer) or row.against == "the steps of all others"
    for arm in ARMS.values():
        assert callable(importlib.import_module(f"tools.study.{arm.use}").prepare)
        assert arm.source in {*mixed.SOURCES, "real", "unchosen"}


def test_teachers_come_before_all_that_need_them():
    listed = plan.runs()
    for place, run in enumerate(listed):
        if run.arm.needs_teacher:
            assert [r for r in listed[:place] if r.arm.kept and r.arm.fraction == run.arm.fraction], run.name
    chosen = plan.chosen(listed, "tenth-distilled-4500-gan")
    assert {run.arm.name for run in chosen} == {"teacher-tenth", "tenth-distilled-4500-gan", "tenth-distilled-4500"}
    chosen = plan.chosen(listed, "tenth-distilled-4500-gan-seed1")
    assert [run.name for run in chosen] == ["teacher-tenth-seed0", "tenth-distilled-4500-gan-seed1", "tenth-distilled-4500-seed1"]


# ---------------------------------------------------------------------------------------------------- batches


def test_a_mixture_shows_each_image_as_often_as_any_other():
    parts = [part(10, 0, 7), part(3, 255, 5, is_real=False)]
    batches = Mixture(parts, seed=0, steps=6)
    assert batches.exposures(epochs=2) == (84, 60)
    for number, one in enumerate(parts):
        seen = sum(one.take((0, number), position)[1].sum(0) for position in range(12))[: len(one.images)]
        assert seen.max() - seen.min() <= 1
    images, labels = batches[0]
    assert images.shape == (12, 32, 32, 3)
    assert (images[:, 0, 0, 0] == 255).sum() == 5
    assert labels.sum() == 12


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    batches, again = (Mixture([part(50, 9, 8)], seed=1, steps=4, cutmix=0.5) for _ in range(2))
    for one in (batches, again):
        one.on_epoch_end()
    again.start = 2  # taken up in the middle of an epoch
    assert all(np.array_equal(a, b) for a, b in zip(batches[3], again[1], strict=True))
    assert len(again) == 2
    assert not np.array_equal(batches[0][1], batches[1][1])


def test_parts_apart_are_not_mixed_with_each_other():
    images, _ = Mixture([part(9, 0, 6), part(9, 255, 3)], seed=0, steps=4, cutmix=1.0, apart=True)[0]
    assert images[:6].max() == 0
    assert images[6:].min() == 255


# ---------------------------------------------------------------------------------------------------- materials


def test_photographs_are_stratified_and_fewer_are_part_of_more(world):
    labels = world.data.y_train[world.chosen(0, 250)]
    assert len(labels) == 250
    assert set(np.bincount(labels, minlength=100)) == {2, 3}
    assert set(world.chosen(0, 100)) < set(world.chosen(0, 250))
    assert set(world.chosen(0, 250)) <= set(world.split()[0])
    assert not np.array_equal(world.chosen(0, 100), world.chosen(1, 100))
    assert np.array_equal(world.chosen(0, 45_000, 0.1), world.split(0.1)[0])


def test_gan_images_are_the_surest_of_the_candidates_and_kept(world):
    generator, _ = world.generator(1.0)
    labels = np.arange(20)
    one, four = (materials.draw(generator, labels, 0, candidates, chunk=8) for candidates in (1, 4))
    assert four.astype(int).sum() > one.astype(int).sum()  # the stand-in is surer of brighter images
    images, labels = world.generated(1.0)
    assert len(list((world.folder / "images").glob("*.npy"))) >= 1
    assert set(np.bincount(labels[:100], minlength=100)) == {1}
    assert images.shape == (1000, 32, 32, 3)


def test_the_teacher_is_this_machine_s_or_the_published_one(project):
    made = materials.Materials(plan.SMOKE)
    own, published = (core.ROOT / folder / made.folder.name / "teacher.keras" for folder in ("runs", "results"))
    assert made.teacher_path(1.0) == own
    published.parent.mkdir(parents=True)
    published.touch()
    assert made.teacher_path(1.0) == published
    assert made.own_teacher_path(1.0) == own  # where a new one is saved, never over the published one
    own.touch()
    assert made.teacher_path(1.0) == own
    assert made.teacher_path(0.1).name == "teacher-tenth.keras"


def test_the_code_of_a_run_is_the_same_for_other_comments_and_line_breaks_only():
    source = 'def f(a):\n    """Add."""\n    return a + 1\n'
    same = 'def f(\n    a,\n):\n    """Add one.\n\n    More."""\n    return a + 1  # why\n'
    assert materials.statements(source) == materials.statements(same)
    assert materials.statements(source) != materials.statements(source.replace("1", "2"))
    assert materials.statements('class A:\n    """Empty."""\n') == materials.statements("class A:\n    pass\n")
    assert all((ROOT / path).exists() for path in materials.CODE)
    assert materials.code() == materials.code.__wrapped__()


def test_a_generator_that_has_seen_other_images_is_refused(project, world):
    folder = project / "results" / "cifar100"
    folder.mkdir(parents=True)
    (folder / "gan_long_generator.keras").write_bytes(b"")
    made = materials.Materials(dataclasses.replace(plan.SMOKE, dataset="cifar100"))
    made.data = world.data
    record = {"dataset": world.data.name, "dataset_md5": world.data.md5, "train_digest": "other", "generator_sha256": "other"}
    for content, words in ((record, "belong to another run"), ({"dataset": "cifar100"}, "does not say")):
        (folder / "gan_long.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(DataError, match=words):
            made.generator(1.0)


# ---------------------------------------------------------------------------------------------------- merged, and controls


def test_shuffled_labels_are_those_of_other_images_and_as_many_a_class(world):
    arm = dataclasses.replace(ARMS["tenth-merged-1-shuffled"], extra=1000)
    images, labels = mixed.shuffled(arm, 0, world)
    drawn, own = mixed.gan(arm, 0, world)
    assert np.array_equal(images, drawn)
    assert np.array_equal(np.bincount(labels), np.bincount(own))
    assert (labels == own).mean() < 0.05


def test_the_filter_drops_the_worst_tenth_of_each_class():
    labels = np.repeat(np.arange(3), 20)
    own = np.tile(np.linspace(1, 0, 20), 3)
    kept = mixed.likeliest(own, labels)
    assert np.array_equal(np.bincount(labels[kept]), [18, 18, 18])
    assert own[kept].min() > np.delete(own, kept).max()


def test_filter_and_teacher_s_labels_come_from_the_teacher(world):
    for name in ("tenth-merged-1-taught", "tenth-merged-1-taught-duplicates"):
        taught = mixed.extra_part(ARMS[name], 0, world, 8)
        expected = world.teacher(0.1).predict(taught.images, verbose=0)
        np.testing.assert_allclose(taught.labels, expected, atol=1e-6)
        assert taught.is_real == name.endswith("duplicates")
    assert not np.allclose(expected, world.teacher(1.0).predict(taught.images, verbose=0))
    images, labels = mixed.filtered(ARMS["all-merged-0.25-filtered"], 0, world)
    assert set(np.bincount(labels)) == {9}  # of ten images a class
    assert len(images) == 900


def test_controls_are_real_images_or_noise(world):
    arm = ARMS["tenth-merged-0.25"]
    photographs, own = world.photographs(0, arm.real, arm.fraction)
    known = {image.tobytes(): label for image, label in zip(photographs, own, strict=True)}
    duplicates, labels = mixed.duplicates(arm, 0, world)
    assert [known[image.tobytes()] for image in duplicates] == labels.tolist()
    changed_more = mixed.extra_part(dataclasses.replace(arm, source="stronger"), 0, world, 8)
    assert changed_more.is_real
    once, again = (Mixture([changed_more], 0, 4)[step][0] for step in (0, 0))
    assert np.array_equal(once, again)
    assert not any(image.tobytes() in known for image in once)
    changed = mixed.changed_more(np.full((500, 32, 32, 3), 200, np.uint8), np.random.default_rng(0))
    hidden = (changed == 128).all(-1).sum((1, 2))
    assert hidden.max() == 16 * 16  # less at the edges
    noise, _ = mixed.noise(arm, 0, world)
    assert abs(noise.mean() - 127.5) < 1


@pytest.mark.parametrize(
    ("name", "real", "other"),
    [("hard-400", 32, 0), ("hard-400-gan", 8, 24), ("hard-gan-alone", 0, 32), ("tenth-merged-1", 16, 16), ("tenth-fewer", 16, 0),
     ("tenth-merged-1-duplicates", 32, 0), ("tenth-more", 48, 0), ("all-first-0.5", 16, 16), ("tail-plain", 32, 0),
     ("tail-repeated", 32, 0)],
)  # fmt: skip
def test_what_a_step_shows(world, name, real, other):
    """A step of the training, on average: as many images with GAN images as without, unless the arm says otherwise."""
    arm = (ARMS | {HALF.name: HALF})[name]
    _, _, batches = importlib.import_module(f"tools.study.{arm.use}").prepare(arm, 0, world)
    steps = batches.steps * world.scale.epochs
    assert steps == world.scale.steps * arm.longer
    assert batches.exposures(world.scale.epochs) == (real * steps, other * steps)


def test_hard_labels_are_smoothed_and_add_up_to_one(world):
    for name in ("hard-400-gan", "tail-filled", "tail-repeated", "all-first-0.25", "tenth-beside"):
        arm = ARMS[name]
        for part in importlib.import_module(f"tools.study.{arm.use}").prepare(arm, 0, world)[2].parts:
            np.testing.assert_allclose(part.labels.sum(1), 1, rtol=1e-5)
            np.testing.assert_allclose(part.labels.max(1), 1 - 0.99 * world.scale.label_smoothing, rtol=1e-5)


def test_pairs_start_from_the_same_weights(world):
    networks = [distilled.prepare(ARMS[name], 0, world)[1] for name in ("distilled-400", "distilled-400-gan")]
    networks.append(mixed.prepare(ARMS["hard-400"], 0, world)[1])
    for network in networks[1:]:
        assert all(
            np.array_equal(a, b) for a, b in zip(network.trainable_variables, networks[0].trainable_variables, strict=True)
        )


# ---------------------------------------------------------------------------------------------------- the other uses


def test_a_wider_student_has_twice_the_channels_and_takes_longer(world):
    numbers = {}
    scale = dataclasses.replace(world.scale, network="vgg16")
    for name in ("hard-400-gan", "hard-400-gan-wide"):
        run = plan.Run(ARMS[name], 0)
        own = materials.Materials(scale)
        network, _, _ = mixed.prepare(run.arm, run.seed, own.of(run.arm))
        first = next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D))
        numbers[name] = training.about(run, own)["model"], first.filters, study.seconds(run, scale, {})
    (small, narrow, short), (large, wide, long) = numbers.values()
    assert (small, large) == ("VGG-16 x0.25", "VGG-16 x0.5")
    assert (narrow, wide) == (16, 32)
    assert long == 4 * short


def test_distillation_learns_the_teacher_s_probabilities_and_no_label(world):
    model, _, batches = distilled.prepare(ARMS["distilled-400"], 0, world)
    images, labels = batches[0]
    teacher = model.teacher.get_weights()
    losses = [float(model.compute_loss(images, y, model(images))) for y in (labels, labels[::-1])]
    assert losses[0] == losses[1] > 0
    model.compile("sgd")
    model.train_on_batch(images, labels)
    assert all(np.array_equal(a, b) for a, b in zip(teacher, model.teacher.get_weights(), strict=True))
    assert float(model.compute_loss(images, labels, model.teacher(images))) == pytest.approx(0, abs=1e-6)
    p = np.array([[0.5, 0.3, 0.2]])
    np.testing.assert_allclose(np.exp(distilled.softened(p, 2.0)), p**0.5 / (p**0.5).sum(), rtol=1e-5)


def test_gan_images_are_changed_as_much_as_the_real_ones_in_their_place(world):
    model, student, batches = stronger.prepare(ARMS["distilled-400-gan-stronger"], 0, world)
    real, other = batches.parts
    control = mixed.prepare(ARMS["distilled-400-stronger"], 0, world)[2].parts
    assert [(part.count, part.change) for part in (real, other)] == [(part.count, part.change) for part in control]
    assert (real.is_real, other.is_real, other.change) == (True, False, mixed.changed_more)
    assert np.array_equal(other.images, world.generated(1.0)[0])
    assert model.student is student


def test_unchosen_images_are_as_many_as_the_others_are_chosen_from(world):
    model, student, batches = unchosen.prepare(ARMS["distilled-gan-alone-unchosen"], 0, world)
    (part,) = batches.parts
    assert len(part.images) == world.scale.gan_images * world.scale.candidates
    assert part.images.mean() < world.generated(1.0)[0].mean()  # the stand-in is surer of brighter images
    assert (part.count, part.is_real, model.student) == (world.scale.batch_size, False, student)
    assert model.temperature == world.scale.temperature


def test_gan_images_come_first_and_then_none():
    batches = in_turn.InTurn([part(5, 255, 4, is_real=False), part(5, 0, 4)], 0, steps=4, cutmix=0.5, first_steps=6)
    levels = []
    for _ in range(2):
        batches.on_epoch_end()  # as fit does before the first epoch
        levels += [int(batches[step][0].mean()) for step in range(4)]
    assert levels == [255] * 6 + [0] * 2
    assert batches.exposures(2) == (8, 24)


def test_partners_show_their_image_s_class_and_leave_its_label():
    values = np.repeat(np.arange(100), 3).astype(np.uint8)
    shown = np.broadcast_to(values[::-1, None, None, None] + np.uint8(100), (300, 32, 32, 3)).copy()
    batches = partners.SameClass([part(100, 0, 50)], 0, 9, 1.0, shown, values[::-1].astype(int))
    pasted = 0
    for step in range(9):
        images, labels = batches[step]
        for image, label in zip(images, labels.argmax(1), strict=True):
            assert set(np.unique(image)) <= {0, label + 100}
            pasted += image.max() > 0
        assert labels.max(1).min() == 1
    assert pasted > 100


def test_images_beside_have_batch_norm_statistics_of_their_own(world):
    model, network, batches = beside.prepare(ARMS["tenth-beside"], 0, world)
    images, labels = batches[0]
    assert (len(images), model.real) == (48, 32)
    normalizations = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.moving_mean.numpy() for layer in normalizations]
    model.compile("sgd", "categorical_crossentropy")
    results = []
    for others in (images[32:], 255 - images[32:]):
        for layer, mean in zip(normalizations, before, strict=True):
            layer.moving_mean.assign(mean)
        model(np.concatenate([images[:32], others]), training=True)
        results.append([layer.moving_mean.numpy() for layer in normalizations])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    assert not np.array_equal(results[0][0], before[0])
    assert model.double.layers[2] is network.layers[2]  # the convolution
    y_pred = model(images, training=True)
    losses = keras.losses.categorical_crossentropy(labels, y_pred).numpy()
    counted = (losses[:32].sum() + 0.5 * losses[32:].sum()) / (32 + 0.5 * 16)  # a mean in which one of the others is half a one
    assert float(model.compute_loss(images, labels, y_pred)) == pytest.approx(counted, rel=1e-5)


def test_a_long_tail_is_filled_up_evenly():
    labels = np.repeat(np.arange(100), 450)
    kept = utils.long_tail(labels, 100)
    counts = np.bincount(labels[kept], minlength=100)
    assert (counts.max(), counts.min()) == (450, 4)
    assert np.median(counts) == pytest.approx(45, abs=2)
    fill = tail.filling(labels[kept], labels)
    assert set(counts + np.bincount(labels[fill], minlength=100)) == {450}
    own = labels[kept]
    again = tail.repeating(own)
    assert set(counts + np.bincount(own[again], minlength=100)) == {450}
    times = np.bincount(again, minlength=len(own))
    assert all(np.ptp(times[own == label]) <= 1 for label in range(100))
    assert utils.long_tail(labels, 1.0).tolist() == list(range(45_000))


def test_the_long_tailed_split_is_that_of_the_notebooks_for_all_seeds(world):
    (train, validation), (few, unseen) = world.split(), world.split("tail")
    assert set(few) < set(train)
    assert np.array_equal(few, train[utils.long_tail(world.data.y_train[train], materials.IMBALANCE)])
    assert np.array_equal(unseen, validation)
    for seed in (1, 2):
        assert np.array_equal(world.chosen(seed, plan.ALL, "tail"), few)


def test_logit_adjustment_takes_the_frequencies_off(world):
    model, network, batches = tail.prepare(ARMS["tail-adjusted"], 0, world)
    images, labels = batches[0]
    assert sum(model.frequencies) == pytest.approx(1)
    p = network(images).numpy() * np.array(model.frequencies)
    expected = -(labels * np.log(p / p.sum(1, keepdims=True))).sum(1).mean()
    assert float(model.compute_loss(images, labels, network(images))) == pytest.approx(expected, rel=1e-4)
    assert len(batches.parts) == 1


def test_an_attack_stays_within_its_radius_and_raises_the_loss(world):
    network = world.teacher(1.0)
    images, labels = world.data.x_test[:32].astype("float32"), one_hot(world.data.y_test[:32])
    chain = robust.floating(network)
    np.testing.assert_allclose(chain(images), network(world.data.x_test[:32]), atol=1e-5)
    changed = robust.attacked(chain, images, labels, 8.0, 3, np.zeros_like(images)).numpy()
    assert 0 <= changed.min() <= changed.max() <= 255
    assert 7.9 < abs(changed - images).max() <= 8.001
    losses = [float(np.mean(keras.losses.categorical_crossentropy(labels, chain(x)))) for x in (images, changed)]
    assert losses[1] > losses[0]


def test_robust_is_what_all_attacks_leave(monkeypatch):
    """The network here names an image by its grey level. 240 of 300 are named rightly, and each attack changes some of them."""
    levels = (np.arange(300) % 100).astype("uint8")
    images = np.broadcast_to(levels[:, None, None, None], (300, 32, 32, 3))
    truth = (np.arange(300) + (np.arange(300) < 60)) % 100
    changed = [slice(100, 130), slice(20, 50), slice(120, 150), slice(20, 50)]  # of parts of 250 and 50, in two attacks

    def attack(chain, images, labels, radius, steps, start):
        attempt = images.copy()
        attempt[changed.pop(0)] += radius
        return attempt % 100

    monkeypatch.setattr(robust, "floating", lambda network: lambda images, training: np.eye(100)[images[:, 0, 0, 0].astype(int)])
    monkeypatch.setattr(robust, "attacked", attack)
    monkeypatch.setattr(robust, "compiled", lambda function: function)
    assert robust.robust_accuracy(None, images, truth, 1.0, 1, 2) == pytest.approx((240 - 50 - 30) / 300)
    changed += [slice(0), slice(0)]
    assert robust.robust_accuracy(None, images, truth, 1.0, 1, 1) == pytest.approx(240 / 300)


# ---------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", [
    "hard-400-gan", "distilled-gan-alone", "distilled-gan-alone-unchosen", "distilled-400-gan-stronger", "tenth-first-0.25",
    "tenth-partners-gan", "tenth-beside", "tail-filled", "robust-0.3",
])  # fmt: skip
def test_a_run_of_each_use_leaves_a_record_and_is_made_once(world, monkeypatch, name):
    run, read, rates = plan.Run(ARMS[name], 0), {"test": [], "validation": []}, []
    monkeypatch.setattr(training.measures, "scores", lambda _, labels: read["test"].append(labels) or {"test_accuracy": 0.5})
    monkeypatch.setattr(training.measures, "accuracy", lambda _, images, labels: read["validation"].append(labels) or 0.5)
    monkeypatch.setattr(training, "OneCycle", lambda *numbers: rates.append(numbers) or OneCycle(*numbers))
    asked, teacher = [], materials.Materials.teacher
    monkeypatch.setattr(materials.Materials, "teacher", lambda *of: asked.append(1) or teacher(*of))
    assert study.make([run], world) == (1, 0)
    assert bool(asked) == run.arm.needs_teacher
    record = json.loads((world.folder / f"{run.name}.json").read_text(encoding="utf-8"))
    assert record["parameters"] == run.parameters(world.scale)
    assert record["steps"] == 2
    assert rates == [(world.scale.learning_rate, 2, world.scale.warmup)]
    (test,), (validation,) = read.values()  # once a run each
    assert np.array_equal(test, world.data.y_test)
    assert np.array_equal(validation, world.data.y_train[world.split()[1]])
    assert record["real_exposures"] + record["other_exposures"] == 2 * (48 if run.arm.use == "beside" else 32)
    assert ("generated_digest" in record, "teacher_sha256" in record) == (run.arm.uses_gan, run.arm.needs_teacher)
    for key, use in (("robust_accuracy", "robust"), ("robust_val_accuracy", "robust"), ("unchosen_digest", "unchosen")):
        assert (key in record) == (run.arm.use == use)
    assert {"val_accuracy", "commit", "versions", "device", "definition", "history", "seconds"} <= record.keys()
    assert not training.checkpoint_folder(run, world).exists()
    monkeypatch.setattr(training, "train", None)
    assert study.make([run], world) == (0, 0)
    published = core.ROOT / "results" / world.folder.name
    published.mkdir(parents=True, exist_ok=True)
    (world.folder / f"{run.name}.json").rename(published / f"{run.name}.json")
    assert study.make([run], world) == (0, 0)  # nor is one that another machine has published
    other = dataclasses.replace(world.scale, temperature=3.0)
    assert not study.is_done(run, materials.Materials(other), {run.name: record})


def test_a_run_cut_off_is_taken_up_by_another_process(world, monkeypatch):
    """What defines a training is the same in each process, so that the checkpoints of a killed one are found."""
    listed = [plan.Run(ARMS[name], 1) for name in ("distilled-400-gan", "tenth-partners-real", "all-beside", "robust-0.7")]
    monkeypatch.setattr(training, "measured", lambda *_: 1 / 0)
    for run in listed:
        with pytest.raises(ZeroDivisionError):
            study.make([run], world)
        checkpoints.release(training.checkpoint_folder(run, world))
        assert not (world.folder / f"{run.name}.json").exists()
    names = ", ".join(repr(run.name) for run in listed)
    code = f"""
import dataclasses, pathlib, core
from tools import cells
core.ROOT = pathlib.Path({str(core.ROOT)!r})
from tools.study import __main__ as study, materials, plan
scale = dataclasses.replace(plan.SMOKE, steps=2)
study.make([run for run in plan.runs() if run.name in [{names}]], materials.Materials(scale))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("s of training found") == 4, done.stdout
    assert all((world.folder / f"{run.name}.json").exists() for run in listed)


def test_a_run_that_another_process_makes_or_has_made_is_left_to_it(world):
    run = plan.Run(ARMS["hard-400"], 7)
    other = filelock.FileLock(training.checkpoint_folder(run, world) / "lock")
    training.checkpoint_folder(run, world).mkdir(parents=True)
    with other:
        assert study.make([run], world) == (0, 0)
    assert study.take(run, world)
    training.clear(training.checkpoint_folder(run, world))
    assert study.make([run], world) == (1, 0)
    assert not study.take(run, world)  # made meanwhile, by whomever
    assert not training.checkpoint_folder(run, world).exists()
    (world.folder / f"{run.name}.json").unlink()


def test_no_run_begins_after_the_minutes_and_a_diverged_one_is_named(world, monkeypatch, capsys):
    listed = [plan.Run(ARMS["hard-1000"], 1), plan.Run(ARMS["hard-1000"], 2)]
    assert study.make(listed, world, minutes=0) == (0, 0)
    assert "2 runs left" in capsys.readouterr().out

    def diverging(*_):
        raise checkpoints.DivergedError("nan")

    monkeypatch.setattr(training, "train", diverging)
    assert study.make(listed, world, most=1) == (0, 1)
    assert study.make(listed, world) == (0, 1)  # the first is not tried again
    assert "FAILED hard-1000-seed2" in capsys.readouterr().out
    made = json.loads((world.folder / "hard-1000-seed1.json").read_text(encoding="utf-8"))
    assert made["diverged"] == "nan"
    records.write_whole(world.folder / "hard-1000-seed1.json", made | {"code": "another"})
    assert study.make(listed, world, minutes=0) == (0, 0)
    assert "Made with other code: hard-1000-seed1. " in capsys.readouterr().out  # the teachers' code matters not
    control = simulated({"tenth-hard-4500": 0.0}, seeds=3)
    assert "Without a result, as their loss was no longer finite: hard-1000-seed1." in report.table(
        [made, *control, *simulated({"tenth-merged-1": 0.1}, seeds=3)]
    )


@pytest.mark.parametrize(("done", "failed", "goes_on"), [(40, 0, True), (1, 39, True), (0, 40, False), (39, 0, False)])
def test_a_new_process_goes_on_after_some_runs(project, monkeypatch, policy, done, failed, goes_on):
    started = []
    monkeypatch.setattr(study, "make", lambda *_: (done, failed))
    monkeypatch.setattr(study.os, "execv", lambda _, arguments: started.append(arguments))
    monkeypatch.setattr(study.sys, "argv", ["study", "--smoke"])
    assert study.study([], plan.SMOKE, minutes=5) == failed
    assert [arguments[1:5] for arguments in started] == [["-m", "tools.study", "--smoke", "--minutes"]] * goes_on
    assert all(4.9 < float(arguments[5]) <= 5 for arguments in started)
    checkpoints.release(project)


def test_a_run_without_its_generator_is_named_and_the_others_go_on(world, monkeypatch, capsys):
    def missing(run, *_):
        if run.arm.use == "tail":
            raise DataError("no generator")
        return {"val_accuracy": 0.5, "total_seconds": 1.0}

    monkeypatch.setattr(training, "train", missing)
    monkeypatch.setattr(training, "finish", lambda *_: None)
    assert study.make([plan.Run(ARMS[name], 3) for name in ("tail-filled", "hard-400")], world) == (1, 1)
    printed = capsys.readouterr().out
    assert "FAILED tail-filled-seed3: no generator" in printed
    assert "hard-400-seed3: validation 50.0 %" in printed
    full = materials.Materials(plan.FULL)
    with pytest.raises(DataError, match="no .*cifar100-tail100.*gan_tail_generator.keras with its record"):
        full.generator(materials.TAIL)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (DataError("no teacher"), "no teacher")])
def test_a_study_that_stops_says_why_in_words(project, monkeypatch, capsys, policy, error, status):
    def stop(*_):
        raise error

    monkeypatch.setattr(study, "make", stop)
    monkeypatch.setattr(study.sys, "argv", ["study", "--smoke"])
    if isinstance(status, str):
        with pytest.raises(SystemExit, match=status):
            study.main()
    else:
        assert study.main() == status
        assert "goes on from the newest checkpoint" in capsys.readouterr().out
    checkpoints.release(project / "runs" / "study-smoke")


def test_the_list_says_what_is_done_and_what_is_missing(world, capsys):
    listed = [plan.Run(ARMS["teacher"], 0), plan.Run(ARMS["hard-4500"], 0)]
    study.show(listed, world)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["done", "missing"]
    assert lines[2].startswith("1 of 2 done")


# ---------------------------------------------------------------------------------------------------- statistics


def test_paired_agrees_with_scipy_and_closed_cases():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 20):
        a, b = rng.normal(60, 1, n), rng.normal(59, 1, n)
        mean, half, p = statistics.paired(a, b)
        test = scipy.stats.ttest_rel(a, b)
        low, high = test.confidence_interval(0.95)
        assert (mean, mean - half, mean + half, p) == pytest.approx(((a - b).mean(), low, high, test.pvalue))
    assert statistics.paired([1, 3], [0, 0])[2] == pytest.approx(1 - 2 / np.pi * np.arctan(2))  # one degree: Cauchy, t = 2
    assert statistics.paired([2, 2], [1, 1]) == (1, 0, 0)
    assert statistics.paired([2, 2], [2, 2]) == (0, 0, 1)


def test_holm_in_closed_cases():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1, 1]
    assert statistics.holm([0.02]) == [0.02]
    assert statistics.holm([]) == []


def simulated(effects, seeds=5, spread=0.003, seed=0):
    """Records of arms whose accuracy is 0.4 plus an effect, a part common to a seed, and chance."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.01, seeds)
    base = {
        "commit": "a",
        "code": "a",
        "precision": "float32",
        "dataset": "cifar100",
        "model": "VGG-16 x0.25",
        "seconds": 60,
        "device": "2 cores, a processor",
        "versions": {"backend": "tensorflow"},
        "real_images": 400,
    }
    return [
        base | {"name": f"{arm}-seed{number}", "arm": arm, "seed": number, "val_accuracy": 0.4,
                "test_accuracy": 0.4 + effect + common[number] + rng.normal(0, spread)}
        for arm, effect in effects.items()
        for number in range(seeds)
    ]  # fmt: skip


def test_a_planted_effect_is_found_and_a_planted_null_is_not():
    rows = [plan.Row(f"use {number}", f"arm{number}", f"control{number}") for number in range(20)]
    nulls = 0
    for trial in range(20):
        effects = {
            f"{kind}{number}": 0.05 * (kind == "arm" and number == 3) for number in range(20) for kind in ("arm", "control")
        }
        found = [effect.row.arm for effect in statistics.compare(simulated(effects, seed=trial), rows) if effect.adjusted < 0.05]
        assert "arm3" in found
        nulls += len(found) > 1
    assert nulls <= 4  # of 20 tables, one in twenty has a false row


def test_both_of_a_pair_are_of_one_backend_and_minutes_are_those_of_a_processor(monkeypatch, capsys):
    row = plan.Row("use", "arm", "control")
    monkeypatch.setattr(plan, "rows", lambda: [row])
    made = simulated({"arm": 0.0, "control": 0.0}, seeds=4)
    for record in made:
        if record["seed"] == 3:
            record |= {"device": "a GPU", "versions": {"backend": "jax"}, "seconds": 6}
    assert [pair[0]["seed"] for pair in statistics.pairs(made, row)] == [0, 1, 2, 3]
    assert statistics.compare(made, [row])[0].minutes == 1
    made[0]["versions"] = {"backend": "jax"}  # the arm's seed 0, whose control is of the other
    assert [pair[0]["seed"] for pair in statistics.pairs(made, row)] == [1, 2, 3]
    study.name_strangers({record["name"]: record for record in made})
    assert capsys.readouterr().out == "Of two backends, so no pairs: arm-seed0 and control.\n"
    assert statistics.compare([record for record in made if record["seed"] == 3], [row])[0].minutes is None


def test_pairs_are_of_the_same_code_and_only_measured_ones_count():
    row = plan.Row("use", "arm", "control")
    made = simulated({"arm": 0.0, "control": 0.0}, seeds=4)
    made[0]["code"] = "b"  # the arm's seed 0
    assert [pair[0]["seed"] for pair in statistics.pairs(made, row)] == [1, 2, 3]
    assert statistics.pairs(made, dataclasses.replace(row, measure="robust_accuracy")) == []
    made[0]["code"], made[1]["code"] = statistics.SAME_CODE[1], statistics.SAME_CODE[0]  # of these it is known
    assert [pair[0]["seed"] for pair in statistics.pairs(made, row)] == [2, 3]
    for record in made[2:]:
        record["code"] = made[1]["code"]
    for key in ("teacher_sha256", "generator_sha256", "generated_digest"):
        other = [record | {key: f"{record['arm']} {record['seed']}" if record["seed"] else "same"} for record in made]
        assert [pair[0]["seed"] for pair in statistics.pairs(other, row)] == [0]
        alone = [record if record["arm"] == "control" else record | {key: "a"} for record in made]  # a control without GAN images
        assert len(statistics.pairs(alone, row)) == 4
    later = [record | {"use_code": "b"} if record["arm"] == "arm" and not record["seed"] else record for record in made]
    assert [pair[0]["seed"] for pair in statistics.pairs(later, row)] == [1, 2, 3]
    assert [pair[0]["seed"] for pair in statistics.pairs(made, row)] == [0, 1, 2, 3]


def test_a_row_of_two_seeds_is_screened_on_validation_and_not_tested():
    rows = [plan.Row("use", "arm", "control"), plan.Row("other", "other", "control")]
    made = simulated({"arm": 0.1, "control": 0.0}, seeds=2) + simulated({"other": 0.1, "control": 0.0}, seeds=3, seed=1)[:3]
    made += [record for record in simulated({"control": 0.0}, seeds=3) if record["seed"] == 2]
    for record in made:
        record["val_accuracy"] += 0.03 * (record["arm"] == "arm")
    begun, tested = statistics.compare(made, rows)
    assert (begun.seeds, begun.half, begun.p, begun.adjusted) == (2, None, None, None)
    assert begun.mean == pytest.approx(10, abs=1)
    assert (tested.seeds, tested.adjusted) == (3, min(2 * tested.p, 1))  # Holm's, of both rows: the other one is to be tested
    screened, alone = statistics.compare(made, [dataclasses.replace(rows[0], screened=True), rows[1]])
    assert screened == dataclasses.replace(begun, row=screened.row, mean=screened.mean)
    assert screened.mean == pytest.approx(3)
    assert alone.adjusted == tested.p


def test_a_screened_row_is_tested_with_new_seeds_alone():
    row = plan.Row("use", "arm", "control", screened=True)
    made = simulated({"arm": 0.1, "control": 0.0}, seeds=6)
    for record in made:  # the seeds of the screening gain much more
        record["test_accuracy"] += 0.5 * (record["arm"] == "arm" and record["seed"] in plan.SCREEN)
    (effect,) = statistics.compare(made, [row])
    assert effect.seeds == 4
    assert effect.mean == pytest.approx(10, abs=3)
    assert effect.adjusted == effect.p
    (effect,) = statistics.compare([record for record in made if record["seed"] in (1, 2, 3, 4)], [row])
    assert (effect.seeds, effect.p) == (2, None)  # two new ones are too few: it shows the screening


def test_rows_with_too_few_pairs_in_the_first_list_are_screened(monkeypatch):
    screened = {(row.arm, row.control): row.screened for row in plan.rows()}
    assert not screened["distilled-400-gan", "distilled-400"]
    assert not screened["distilled-400-gan-stronger", "distilled-400-stronger"]
    assert screened["tenth-merged-1", "tenth-hard-4500"]
    assert screened["distilled-400-gan", "distilled-400-fewer"]
    before = {run.name for run in plan.runs()}
    monkeypatch.setattr(plan, "PROMOTED", ("tail-filled",))
    new = {run.name for run in plan.runs()} - before
    arms = ("tail-filled", "tail-plain", "tail-adjusted", "tail-repeated")
    assert new == {f"{arm}-seed{seed}" for arm in arms for seed in plan.NEW}
    assert {(row.arm, row.control): row.screened for row in plan.rows()} == screened


# ---------------------------------------------------------------------------------------------------- the report


def test_without_records_the_page_says_so():
    assert set(report.texts([]).values()) == {report.NONE_YET}


def test_the_page_and_the_figure_say_what_the_records_say(tmp_path):
    made = simulated({"distilled-gan-alone": 0.05, "hard-gan-alone": -0.1, "teacher": 0.2}, seeds=3, spread=0)
    for place, real in enumerate(plan.REAL):
        arms = {f"{labels}-{real}": 0.1 * place for labels in report.CURVES} | {f"distilled-{real}-gan": 0.1 * place + 0.02}
        made += [record | {"real_images": real} for record in simulated(arms, seeds=3, spread=0)]
    made += simulated({"distilled-gan-alone-long": 0.1, "distilled-400-gan-long": 0.12}, seeds=2, spread=0)
    texts = report.texts(made)
    assert report.like_photographs(made, "distilled") == "200 photographs with labels of a teacher (200 to 200)"
    assert report.like_photographs(made, "hard") is None
    teacher, alone, hard, beside = (
        [100 * record["test_accuracy"] for record in made if record["arm"] == arm]
        for arm in ("teacher", "distilled-gan-alone-long", "hard-gan-alone", "distilled-400-gan-long")
    )
    mean, half = measures.mean_and_interval(hard)
    assert f"- GAN images alone, hard labels: test accuracy {mean:.1f} ± {half:.1f} %." in texts["worth"]
    part = f"{np.mean(alone):.1f} %, {np.mean(alone) / teacher[0]:.2f} of that."  # of two seeds there is no interval
    assert f"- GAN images alone with its labels, 3 times the steps: {part}" in texts["worth"]
    words = f"labels of a teacher, 3 times the steps: {np.mean(beside):.1f} %."
    assert f"- 400 photographs with GAN images, {words}" in texts["worth"]
    assert report.alone_longer_in_words(made) == ""  # two seeds
    more = simulated({"distilled-gan-alone-long": 0.1, "teacher": 0.2}, seeds=3, spread=0)
    (mean, half), teacher = measures.mean_and_interval([100 * record["test_accuracy"] for record in more[:3]]), more[3]
    part = f"they reach {mean:.1f} ± {half:.1f} %: {mean / teacher['test_accuracy'] / 100:.2f} of the teacher."
    assert part in report.alone_longer_in_words(more)
    assert "| beside 400 real images, distilled | the same without GAN images | 3 | +2.00 |" in texts["table"]
    few = made + simulated({"tail-filled": 0.1, "tail-plain": 0.0, "hard-400-gan": 0.0, "hard-400": 0.0}, seeds=2)
    table = report.texts(few)["table"]
    assert re.search(r"\| long tail filled up \| the same without GAN images \| 2 \| \S+ \| screened \|", table)
    assert re.search(r"\| beside 400 real images, hard labels \| [a-zA-Z ]+ \| 2 \| \S+ \| seeds to come \|", table)
    report.draw_figures(made, tmp_path)
    assert (tmp_path / "worth.png").stat().st_size > 10_000
    assert not (tmp_path / "worth_tenth.png").exists()  # of which there are no runs
    report.write_effects(made, tmp_path / "effects.csv")
    effects = list(csv.DictReader((tmp_path / "effects.csv").open(encoding="utf-8")))
    assert ("beside 400 real images, distilled", "3") in [(e["use"], e["seeds"]) for e in effects]
    assert {e["points"] for e in effects if e["use"].startswith("beside")} == {"2"}


def test_a_generator_of_a_tenth_has_a_figure_of_its_own(tmp_path):
    accuracies = {"tenth-distilled-100": 0.0, "tenth-distilled-1000": 0.1, "tenth-distilled-gan-alone": 0.05}
    made = simulated({"distilled-gan-alone": 0.3, "teacher": 0.2} | accuracies, seeds=3, spread=0)
    made = [record | {"generator_sha256": record["arm"][:5]} for record in made]  # each figure is of one generator
    made = [record | {"real_images": 100 if "-100-" in record["name"] else 1_000} for record in made]
    made += simulated({"teacher-tenth": -0.05}, seeds=1)
    text = report.texts(made)["worth in a tenth"]
    assert f"- The teacher: test accuracy {100 * made[-1]['test_accuracy']:.1f} %." in text
    mean, half = measures.mean_and_interval(
        [100 * record["test_accuracy"] for record in made if "tenth-distilled-gan" in record["arm"]]
    )
    alone = f"GAN images alone, labels of a teacher: {mean:.1f} ± {half:.1f} %"
    assert f"- {alone}, like 320 photographs with labels of a teacher (320 to 320)." in text
    assert "tenth" not in "".join(record["arm"] for record in report.drawn(made) if record["arm"] != "teacher-tenth")
    report.draw_figures(made, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"worth.png", "worth_tenth.png"}


def test_the_figure_compares_runs_of_one_code_teacher_and_generator():
    alone = simulated({"distilled-gan-alone": 0.05}, seeds=3, spread=0)
    made = [record | {"teacher_sha256": "a", "generator_sha256": "a"} for record in alone]
    made += simulated({"distilled-400": 0.0, "tenth-hard-4500": 0.0, "teacher": 0.2}, seeds=3, spread=0)
    names = {record["name"] for record in report.drawn(made)}
    assert names == {f"{arm}-seed{seed}" for arm in ("distilled-gan-alone", "distilled-400", "teacher") for seed in range(3)}
    for key in ("code", "teacher_sha256", "generator_sha256"):
        other = [made[0] | {key: "b"}, *made[1:]]
        assert {record["name"] for record in report.drawn(other)} == names - {made[0]["name"]}
    teacher = [record | {"code": "older"} if record["arm"] == "teacher" else record for record in made]
    assert len(report.drawn(teacher)) == 9


def test_worth_is_read_off_where_the_curve_reaches_the_line():
    assert report.worth((100, 1000), (20, 40), 30) == pytest.approx(100 * 10**0.5)
    assert report.worth((100, 1000), (20, 40), 50) is None
    assert report.worth((), (), 50) is None


def test_the_page_says_where_a_gain_turns_into_a_loss():
    gains = {100: 0.05, 400: 0.02, 1_000: -0.3, 4_500: -0.01, 45_000: -0.02}
    made = simulated({"teacher": 0.2, "hard-gan-alone": 0.0}, seeds=3, spread=0)
    for real, gain in gains.items():
        made += simulated({f"hard-{real}-gan": gain, f"hard-{real}": 0.0}, seeds=2 if real == 1_000 else 3, spread=0)
    assert report.crossings(made, "hard") == [(400, 4_500)]  # 1,000 has too few seeds
    assert report.crossings(made, "distilled") == []
    words = "- With hard labels, what GAN images add on average turns from a gain to a loss between 400 and 4,500 real images."
    assert words in report.texts(made)["worth"]


def test_the_interval_of_worth_is_of_the_seeds_own_numbers():
    made = simulated({"distilled-gan-alone": 0.05}, seeds=3, spread=0)
    for real, accuracy in ((100, 0.0), (1000, 0.1)):
        made += [record | {"real_images": real} for record in simulated({f"distilled-{real}": accuracy}, seeds=3, spread=0)]
    for record, gain in zip(made, (0.02, 0.0, -0.02), strict=False):
        record["test_accuracy"] += gain
    logs = np.log(100) + np.log(10) * np.array([0.7, 0.5, 0.3])
    low, high = scipy.stats.t.interval(0.95, 2, logs.mean(), scipy.stats.sem(logs))
    interval = pytest.approx((np.exp(logs.mean()), np.exp(low), np.exp(high)))
    assert report.worth_and_interval(made, "distilled") == interval
    made[0]["test_accuracy"] += 0.1  # more than 1,000 real images teach
    assert report.worth_and_interval(made, "distilled") is None
    few = [record for record in made if record["seed"] < 2]
    assert report.worth_and_interval(few, "distilled") is None
    assert report.like_photographs(few, "distilled") is None
    assert report.part_of_teacher(few, "", 60.0) == "GAN images alone with its labels: 51.0 %, 0.85 of that."
    made[0]["test_accuracy"] -= 0.1
    more = simulated({"distilled-gan-alone": 0.05}, seeds=5, spread=0)[3:]  # of which there are no students of real images
    assert report.worth_and_interval(made + more, "distilled")[1:] == pytest.approx((np.exp(low), np.exp(high)))


def study_answer():
    made = pages.study_records()
    return pages.study_lines(made, pages.study_effects(made))


def test_the_readme_s_answer_is_made_of_tested_rows(project):
    gains = {"distilled-400-gan": 0.05, "distilled-400": 0.0, "distilled-400-stronger": 0.06, "distilled-gan-alone": 0.03}
    gains |= {"distilled-1000": 0.06}
    made = {record["name"]: record for record in simulated(gains | {"hard-gan-alone": -0.1}, seeds=4, spread=0)}
    for number, run in enumerate(run for run in plan.runs() if run.name in made):
        real = {"real_images": run.arm.real, "parameters": run.parameters(plan.FULL)}
        path = project / "results" / "study" / f"{run.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_whole(path, made[run.name] | real)
        assert number or study_answer() == []
    (line,) = study_answer()  # of hard labels there are no runs with and without
    with_gan, without = (f"{100 * np.mean([made[f'{arm}-seed{seed}']['test_accuracy'] for seed in (1, 2, 3)]):.1f} %"
                         for arm in ("distilled-400-gan", "distilled-400"))  # fmt: skip
    numbers = f"| {with_gan} | {without} | +5.00 (+5.00 to +5.00) | 3 | help | 46.2 %: GAN images do worse |"
    assert line == f"| 400, labels of a teacher {numbers}"
    half_of_the_way = "630 photographs with labels of a teacher (630 to 630)"  # from 400 to 1,000, in the logarithm
    assert f"teach as much as\n\n- {half_of_the_way}.\n" in pages.alone_in_words(pages.study_records())
    longer = simulated({"distilled-400-gan-long": 0.11, "distilled-400-long": 0.1}, seeds=4, spread=0)
    longer = {record["name"]: record for record in longer}
    for run in sorted(plan.runs(), key=lambda run: run.seed):
        if run.name in longer:
            record = longer[run.name] | {"real_images": 400, "parameters": run.parameters(plan.FULL)}
            records.write_whole(project / "results" / "study" / f"{run.name}.json", record)
            if run.seed == 1 and len(study_answer()) == 2:
                assert study_answer()[1].endswith("| +1.00 | 1 | too few seeds |  |")
    _, line = study_answer()
    assert line == "| 400, labels of a teacher, 3 times the steps | 51.2 % | 50.2 % | +1.00 (+1.00 to +1.00) | 3 | help |  |"
    tenth = {f"tenth-distilled-{real}{kind}": 0.02 * bool(kind) for real in (400, 4500) for kind in ("-gan", "")}
    tenth = {record["name"]: record for record in simulated(tenth, seeds=4, spread=0)}
    for run in plan.runs():
        if run.name in tenth:
            record = tenth[run.name] | {"real_images": run.arm.real, "parameters": run.parameters(plan.FULL)}
            records.write_whole(project / "results" / "study" / f"{run.name}.json", record)
    *_, of_few, of_all = study_answer()
    assert of_few == "| 400 of 4,500, labels of a teacher | 42.2 % | 40.2 % | +2.00 (+2.00 to +2.00) | 3 | help |  |"
    assert of_all.startswith("| all 4,500, labels of a teacher | 42.2 % |")


def test_only_listed_runs_of_committed_code_are_published(project, capsys):
    run = plan.Run(ARMS["hard-400"], 1)
    record = simulated({"hard-400": 0.0}, seeds=2)[1] | {"name": run.name, "parameters": run.parameters(plan.FULL)}
    for name, changes in {"a": {}, "b": {"commit": "x-dirty-1"}, "c": {"parameters": {}}}.items():
        records.write_whole(records.run_folder("study") / f"{name}.json", record | changes)
    teacher = plan.Run(ARMS["teacher"], 0)
    own = record | {"name": teacher.name, "arm": "teacher", "parameters": teacher.parameters(plan.FULL)}
    records.write_whole(records.run_folder("study") / "teacher-seed0.json", own)
    for name in ("teacher", "teacher-tenth"):
        (records.run_folder("study") / f"{name}.keras").touch()  # that of a tenth has no record
    publish.copy_study()
    published = project / "results" / "study"
    assert {path.name for path in published.iterdir()} == {
        "a.json",
        "worth.png",
        "effects.csv",
        "teacher-seed0.json",
        "teacher.keras",
    }
    assert capsys.readouterr().out.count("not published") == 2
