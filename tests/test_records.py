"""Records: written whole, read, told apart, and what the tables make of them."""

import json
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

from core import cifar100, records
from core.cifar100 import DataError
from core.digests import file_sha256


def record(**changes):
    return {
        "notebook": "n", "dataset": "shapes100", "dataset_md5": "0", "model": "m", "seed": 0, "real_fraction": 1.0,
        "synthetic_per_class": 0, "parameters": {}, "parameter_count": 1, "epochs_run": 1, "steps": 1, "seconds": 1.0,
        "history": {},
    } | changes  # fmt: skip


def test_record_is_written_whole_or_not_at_all(project):
    path = records.write("run", **record(test_accuracy=0.5))
    written = json.loads(path.read_text())
    assert written["test_accuracy"] == 0.5
    assert written["versions"]["keras"] == keras.__version__
    with pytest.raises(ValueError, match="JSON"):
        records.write("run", **record(test_accuracy=float("nan")))
    assert json.loads(path.read_text()) == written
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_a_part_of_a_dataset_has_a_name_a_title_and_records_of_its_own(project):
    assert cifar100.part("cifar100", 1.0) == ("cifar100", "CIFAR-100")
    assert cifar100.part("cifar100", 0.1) == ("cifar100-0.1", "CIFAR-100, 0.1 of its training images")
    paths = [records.write("run", **record(real_fraction=fraction)) for fraction in (1.0, 0.5)]
    assert [path.relative_to(project) for path in paths] == [Path(f"runs/shapes100{end}/run.json") for end in ("", "-0.5")]
    assert records.read("shapes100-0.5")["run"]["real_fraction"] == 0.5
    title = "CIFAR-100, long-tailed (100 to 1)"
    assert cifar100.part("cifar100", 1.0, imbalance=100.0) == ("cifar100-tail100", title)
    assert cifar100.published("cifar100-tail100") == ["cifar100-tail100"]  # never a GAN that has seen all images
    assert cifar100.part("cifar100", 0.1, "gpu") == ("cifar100-0.1-gpu", "CIFAR-100, 0.1 of its training images")
    path = records.write("run", **record(parameters={"VARIANT": "gpu"}))
    assert path == project / "runs" / "shapes100-gpu" / "run.json"


def test_the_commit_is_dirty_where_code_differs_alone(project):
    def git(*command):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run(["git", "-C", project, *identity, *command], check=True, capture_output=True, text=True).stdout

    assert records.environment()["commit"] is None
    git("init", "-q")
    for name in ("utils.py", "results.json"):
        (project / name).write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short", "HEAD").strip()
    (project / "results.json").write_text("2\n")
    assert records.environment()["commit"] == head
    (project / "utils.py").write_text("2\n")
    one = records.environment()["commit"]
    assert one.startswith(f"{head}-dirty-")
    (project / "utils.py").write_text("3\n", encoding="utf-8")
    assert records.environment()["commit"] != one  # another edit is other code


def test_record_without_what_it_needs_is_refused(project):
    incomplete = record()
    del incomplete["seed"]
    with pytest.raises(ValueError, match="missing.*seed"):
        records.write("run", **incomplete)


def test_a_record_cut_at_every_tenth_is_refused_by_name(project):
    path = records.write("run", **record())
    whole = path.read_bytes()
    assert list(records.read("shapes100")) == ["run"]
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(DataError, match=r"run\.json: expected a record"):
            records.read("shapes100")


@pytest.mark.parametrize("text", ["[]", "3", '{"name": "run"}'])
def test_json_that_is_no_record_is_refused_by_name(project, text):
    records.write("run", **record()).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json: expected a record, with dataset, name, parameters, seed and more"):
        records.read("shapes100")


def test_the_optimiser_is_the_compiled_one():
    """A reader edits the cell and not the parameter."""
    assert records.optimizer({"optimizer": "sgd", "parameters": {"OPTIMIZER": "muon"}}) == "sgd"
    assert records.optimizer({"parameters": {"OPTIMIZER": "muon"}}) == "muon"
    assert records.optimizer({"parameters": {}}) == "adam"


def test_comparison_table_is_sorted():
    run = record(train_accuracy=0.6, val_accuracy=0.5, test_top5=0.8)
    table = records.comparison_table(
        [run | {"model": "low", "test_accuracy": 0.4}, run | {"model": "high", "test_accuracy": 0.5}]
    )
    assert table.index("high") < table.index("low")
    assert "| 50.00 % |" in table


def test_minutes_of_a_gpu_are_named_as_such():
    run = record(train_accuracy=0.6, val_accuracy=0.5, test_top5=0.8, test_accuracy=0.5)
    for device, words, how in (
        ("16 cores, AMD (avx2)", "16 cores", "Adam"),
        ("NVIDIA H100", "GPU", "Adam, GPU"),
        ("", "", "Adam"),
    ):
        made = run | {"device": device}
        assert records.device_in_short(made) == words
        assert records.how(made).endswith(f" epochs, {how}")
        assert f" | {words} | 60.00 % |" in records.comparison_table([made])


def training(seed, accuracy, run="vgg16", images=None, **others):
    parameters = {"SEED": seed, "RUN": run, "RESUME": True, "WIDTH": 0.25} | others
    code = {"commit": "abc", "precision": "float32", "replicas": 1, "train_images": 9}
    return {"seed": seed, "test_accuracy": accuracy, "parameters": parameters, "synthetic_digest": images} | code


def seeds_of(made, mixed):
    return [run["seed"] for run, _ in records.gan_pairs(made, mixed)]


def test_pairs_are_alike_but_for_seed_and_name():
    made = {"resnet": training(0, 0.4), "gan": {"seed": 0, "parameters": {}}, "vgg16": training(0, 0.50)}
    made |= {"vgg16_gan": training(0, 0.51, images="a"), "vgg16_seed1": training(1, 0.52, "vgg16_seed1")}
    made |= {"vgg16_seed1_gan": training(1, 0.55, "vgg16_seed1", "a"), "vgg16_alone_gan": training(2, 0.9, images="a")}
    for name, others in {"wide": {"WIDTH": 0.5}, "other": {"images": "b"}}.items():
        made[f"vgg16_{name}"] = training(3, 0.6, name, **{key: others[key] for key in others.keys() - {"images"}})
        made[f"vgg16_{name}_gan"] = training(3, 0.7, name, **{"images": "a"} | others)
    pairs = records.gan_pairs(made, "vgg16_gan")
    assert pairs == [(made["vgg16_gan"], made["vgg16"]), (made["vgg16_seed1_gan"], made["vgg16_seed1"])]
    assert records.accuracies(pairs) == ([0, 1], {"with GAN images": [0.51, 0.55], "without": [0.50, 0.52]})
    assert seeds_of(made, "vgg16_wide_gan") == [3]


def test_a_seed_counts_once_whatever_its_runs_are_called():
    made = {}
    for name, seed, gain in (("vgg16", 0, 0.01), ("vgg16_again", 0, 0.02), ("vgg16_seed1", 1, 0.03)):
        made |= {name: training(seed, 0.5, name), f"{name}_gan": training(seed, 0.5 + gain, name, "a")}
    for mixed, gain in (("vgg16_gan", 0.01), ("vgg16_again_gan", 0.02)):
        pairs = records.gan_pairs(made, mixed)
        assert [run["seed"] for run, _ in pairs] == [0, 1]
        assert pairs[0][0]["test_accuracy"] == 0.5 + gain
    kinds = [run | {"model": "m", "synthetic_per_class": 20 * bool(run["synthetic_digest"])} for run in made.values()]
    assert [len(group) for group in records.groups(kinds)] == [2, 2]


def test_pairs_are_of_one_seed_and_of_as_many_real_images():
    made = {"vgg16": training(0, 0.5), "vgg16_gan": training(1, 0.6, images="a")}
    assert seeds_of(made, "vgg16_gan") == []
    made["vgg16_gan"] = training(0, 0.6, images="a") | {"train_images": 8}
    assert seeds_of(made, "vgg16_gan") == []


def test_a_constant_of_the_reader_s_own_parts_no_runs():
    made = {"vgg16": training(0, 0.5), "vgg16_gan": training(0, 0.6, images="a")}
    made |= {"vgg16_seed1": training(1, 0.5, N=3), "vgg16_seed1_gan": training(1, 0.6, images="a", N=4)}
    assert seeds_of(made, "vgg16_gan") == [0, 1]


@pytest.mark.parametrize("key", ["commit", "recipe", "precision", "replicas"])
@pytest.mark.parametrize("which", [["vgg16_seed1", "vgg16_seed1_gan"], ["vgg16_seed1"]])
def test_pairs_of_other_code_or_precision_are_not_averaged(key, which):
    records_by_name = {"vgg16": training(0, 0.5), "vgg16_gan": training(0, 0.51, images="a")}
    records_by_name |= {"vgg16_seed1": training(1, 0.5), "vgg16_seed1_gan": training(1, 0.51, images="a")}
    assert seeds_of(records_by_name, "vgg16_gan") == [0, 1]
    for name in which:
        records_by_name[name][key] = "other"
    assert seeds_of(records_by_name, "vgg16_gan") == [0]


@pytest.mark.parametrize("change", [{"EPOCHS": 1}, {"WIDTH": 0.5}])
def test_a_plain_training_of_other_parameters_is_no_partner(change):
    made = {"vgg16": training(0, 0.1, SYNTHETIC_PER_CLASS=0, **change), "vgg16_gan": training(0, 0.6, images="a", EPOCHS=12)}
    assert seeds_of(made, "vgg16_gan") == []
    made["vgg16"] = training(0, 0.5, SYNTHETIC_PER_CLASS=0, EPOCHS=12)
    assert seeds_of(made, "vgg16_gan") == [0]


def test_the_change_of_a_class_is_told_from_what_seeds_do():
    """200 classes of which one gains 20 points; the others change by chance, and 5 % of them by more than the band."""
    rng = np.random.default_rng(0)
    effect = np.r_[0.2, np.zeros(199)]
    pairs = [
        ({"test_by_class": 0.5 + effect + rng.normal(0, 0.03, 200)}, {"test_by_class": 0.5 + rng.normal(0, 0.03, 200)})
        for _ in range(4)
    ]
    change, chance = records.class_changes(pairs)
    assert chance == pytest.approx(1.96 * 100 * 0.03 * (2 / 4) ** 0.5, rel=0.1)
    assert change[0] == pytest.approx(20, abs=2 * chance)
    assert 0.02 < np.mean(np.abs(change[1:]) > chance) < 0.08
    one, none = records.class_changes(pairs[:1])
    assert none is None
    assert one == pytest.approx(100 * (pairs[0][0]["test_by_class"] - pairs[0][1]["test_by_class"]))


def test_pairs_table_counts_in_percentage_points_and_gives_an_interval():
    text = records.pairs_table([0, 1, 2], {"one": [0.31, 0.33, 0.32], "other": [0.30, 0.30, 0.30]})
    assert "| seed | one | other | difference |" in text
    assert "| 1 | 33.00 % | 30.00 % | +3.00 |" in text
    assert "Mean difference +2.00 percentage points, 95 % interval -0.48 to +4.48 (Student's t, 3 seeds)." in text
    assert "95 %" not in records.pairs_table([0], {"one": [0.31], "other": [0.30]})


def test_own_and_published_records_are_told_apart(project):
    """A reader's record never hides ours, and one that is both is listed once."""
    own = json.loads(records.write("vgg16", **record(test_accuracy=0.5)).read_text(encoding="utf-8"))
    results = project / "results" / "shapes100"
    results.mkdir(parents=True)
    for name, accuracy in (("vgg16", 0.6), ("resnet", 0.4)):
        text = json.dumps(own | {"name": name, "test_accuracy": accuracy})
        (results / f"{name}.json").write_text(text, encoding="utf-8")
    found = [(each["name"], each["whose"], each["test_accuracy"]) for each in records.read_both("shapes100")]
    assert sorted(found) == [("resnet", "published", 0.4), ("vgg16", "published", 0.6), ("vgg16", "yours", 0.5)]
    again = own | {"peak_memory_mb": 1, "commit": "later"}  # found again in another process
    (results / "vgg16.json").write_text(json.dumps(again), encoding="utf-8")
    assert [each["whose"] for each in records.read_both("shapes100")] == ["published"] * 2
    run = record(train_accuracy=0.6, val_accuracy=0.5, test_top5=0.8, test_accuracy=0.5)
    table = records.comparison_table([run | {"whose": "yours", "name": "mine_seed1"}, run | {"whose": "published"}])
    assert table.splitlines()[0].startswith("| model | run |")
    assert "| m | yours: mine | adam |" in table
    assert "| m | published | adam |" in table


def test_a_run_s_file_comes_before_the_published_one(project):
    published, own = project / "results" / "cifar100" / "x.keras", project / "runs" / "cifar100" / "x.keras"
    with pytest.raises(DataError, match=r"no x\.keras in .*TRAIN = True"):
        records.find("cifar100", "x.keras")
    for path in (published, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert records.find("cifar100", "x.keras") == path
    assert records.find("cifar100-gpu", "x.keras") == published  # this variant has nothing published of its own
    assert cifar100.published("cifar100-0.1-gpu") == ["cifar100-0.1-gpu", "cifar100-0.1"]
    assert cifar100.published("shapes100") == ["shapes100"]


def test_what_defines_a_record_s_training_stands_in_it(project):
    written = json.loads(records.write("run", **record(definition="0a1b2c3d")).read_text(encoding="utf-8"))
    assert written["definition"] == "0a1b2c3d"


def test_runs_of_other_code_are_not_averaged():
    run = training(0, 0.5) | {"model": "m", "synthetic_per_class": 0}
    later = [training(seed, 0.6) | {"commit": f"{seed}", "recipe": "r", "model": "m"} for seed in (4, 5)]
    assert [len(group) for group in records.groups(later)] == [2]  # the README was edited between them
    others = [
        run | {"commit": "b"},
        run | {"replicas": 4},
        run | {"trained_on": 3},
        run | {"precision": "bfloat16"},
        run | {"synthetic_per_class": 20, "synthetic_digest": "a"},
        run | {"synthetic_per_class": 20, "synthetic_digest": "b"},
    ]
    alike = training(1, 0.6, "vgg16_seed1") | {"model": "m", "synthetic_per_class": 0}
    assert [len(group) for group in records.groups([alike, run, *others])] == [2, 1, 1, 1, 1, 1, 1]
    wide = training(2, 0.7, WIDTH=0.5) | {"model": "m", "synthetic_per_class": 0}
    logged = training(3, 0.7, "vgg16_seed3", LOGS="logs", PICTURE="p.png") | {"model": "m", "synthetic_per_class": 0}
    assert [len(group) for group in records.groups([run, wide, logged])] == [2, 1]  # a log and a picture change no training


def test_pairs_are_found_for_each_network_and_owner():
    made = [training(seed, 0.5, f"vgg16_seed{seed}") | {"name": f"vgg16_seed{seed}"} for seed in (1, 2)]
    made += [training(seed, 0.6, f"vgg16_seed{seed}", "a") | {"name": f"vgg16_seed{seed}_gan"} for seed in (1, 2)]
    made = [run | {"model": "m", "epochs_run": 12, "synthetic_per_class": 0, "whose": "published"} for run in made]
    yours = [run | {"whose": "yours"} for run in made[1::2]]
    found = records.paired_groups([*made, *yours])
    assert found["m, 12 epochs, Adam (published)"] == [(made[2], made[0]), (made[3], made[1])]
    assert [run["seed"] for run, _ in found["m, 12 epochs, Adam (yours: vgg16)"]] == [2]
    assert records.paired_groups(made[:2]) == {}
    others = [run | {"synthetic_digest": "b", "test_accuracy": 0.7} if run["name"].endswith("_gan") else run for run in made]
    others = [run | {"name": run["name"].replace("seed", "more"), "whose": "published"} for run in others]
    found = records.paired_groups([*made, *others])  # two questions on one network
    assert list(found) == ["m, 12 epochs, Adam (published)", "m, 12 epochs, Adam (published), vgg16_more1_gan"]


def test_what_is_measured_of_a_classifier_is_its_saved_file(project, policy, capsys):
    """A network in bfloat16 and its file differ in the last digits, and others will use the file."""
    data = cifar100.load("shapes100")
    keras.config.set_dtype_policy("mixed_bfloat16")
    image = keras.Input((32, 32, 3), dtype="uint8")
    outputs = keras.layers.Dense(100, activation="softmax", dtype="float32")(keras.layers.Flatten()(image))
    model = keras.Model(image, outputs)
    model.compile("sgd", "categorical_crossentropy")
    run = {"history": {"loss": [1.0]}, "seconds": 1.0, "steps": 1, "trained_on": 90}
    probabilities = records.evaluate_and_write(
        "m", model, run, data, np.arange(100), np.arange(100, 200), notebook="n", model="m", seed=0,
        real_fraction=1.0, synthetic_per_class=0, parameters={},
    )  # fmt: skip
    assert "m: trained on 90 images. The parameters say 100" in capsys.readouterr().out
    file = project / "runs" / "shapes100" / "m.keras"
    written = records.read("shapes100")["m"]
    np.testing.assert_array_equal(probabilities, keras.saving.load_model(file).predict(data.x_test, batch_size=500, verbose=0))
    assert written["weights_sha256"] == file_sha256(file)
    assert written["precision"] == "mixed_bfloat16"
    assert written["optimizer"] == "sgd"
    assert len(written["test_by_class"]) == 100
    assert np.mean(written["test_by_class"]) == pytest.approx(written["test_accuracy"])


def test_minutes_to_an_accuracy():
    record = {"seconds": 600.0, "history": {"val_accuracy": [0.2, 0.5, 0.4, 0.7]}}
    assert records.minutes_to(0.45, record) == 5.0
    assert records.minutes_to(0.6, record) == 10.0
    assert records.minutes_to(0.8, record) is None


def test_effects_of_the_study_are_read_as_words_and_numbers(project):
    folder = project / "results" / "study"
    folder.mkdir(parents=True)
    text = 'use,against,seeds,points,half_interval,adjusted_p\n"beside 1,000",none,3,-1.5,0.2,0.01\n'
    (folder / "effects.csv").write_text(text, encoding="utf-8")
    (effect,) = records.study_effects()
    assert effect["use"] == "beside 1,000"
    assert effect["points"] + effect["half_interval"] == pytest.approx(-1.3)
