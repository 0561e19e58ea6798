"""The check that every notebook begins with."""

import numpy as np
import pytest

import utils
from core import cifar100, parameters
from core.parameters import GAN_RUN, RESNET_RUN, VGG_RUN, check_parameters

LIMITS = {  # "EPOCHS" and the like have limits of their own, in core/parameters.py
    "EPOCHS": (1, 100), "WIDTH": (0.01, 4.0), "DATASET": cifar100.DATASETS, "TRAIN": (True, False), "DEPTH": (8, 14, 20),
    "WEIGHTS": str, "RUN": GAN_RUN,
}  # fmt: skip
RIGHT = {"EPOCHS": 3, "WIDTH": 1, "DATASET": "cifar100", "TRAIN": True, "DEPTH": 14, "WEIGHTS": "imagenet", "RUN": "gan_2"}


def test_parameters_are_the_plain_values_in_capitals():
    notebook = RIGHT | {"lower": 1, "_i1": "x", "In": [], "np": pytest, "FREE": 3}
    assert check_parameters(notebook, **LIMITS) == RIGHT | {"FREE": 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [("EPOCHS", 0), ("EPOCHS", 2.0), ("EPOCHS", "3"), ("EPOCHS", True), ("EPOCHS", 10**9), ("WIDTH", -1), ("WIDTH", float("nan")),
     ("DATASET", "mnist"), ("TRAIN", 1), ("TRAIN", "False"), ("DEPTH", 9), ("DEPTH", 8.0), ("WEIGHTS", None),
     ("RUN", ""), ("RUN", "vgg16"), ("RUN", "gan/../vgg16"), ("RUN", 3)],
)  # fmt: skip
def test_wrong_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value!r}: expected"):
        check_parameters(RIGHT | {name: value}, **LIMITS)


@pytest.mark.parametrize(("name", "right"), [("vgg16", True), ("vgg16_wide", True), ("vgg16_gan", False), ("gan", False)])
def test_names_of_trainings_cannot_meet(name, right):
    """Notebook 2 adds "_gan" to the name of its training with GAN images."""
    assert bool(VGG_RUN.fullmatch(name)) == right


def test_a_file_is_there_before_hours_of_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").touch()
    for value in ("", "cat.jpg", str(tmp_path / "cat.jpg")):
        check_parameters({"PICTURE": value})
    check_parameters({"INCEPTION": "imagenet"})
    monkeypatch.setenv("HOME", str(tmp_path))
    check_parameters({"PICTURE": "~/cat.jpg"})
    for name, value in (("PICTURE", "dog.jpg"), ("PICTURE", "imagenet"), ("IMAGENET_WEIGHTS", "")):
        with pytest.raises(
            ValueError, match=f"{name} = '{value}': expected '.*', or the path of a file that is there, as seen from"
        ):
            check_parameters({name: value})


def test_a_misspelt_parameter_is_named_with_the_one_that_was_meant(capsys):
    own = {"SEEDS": [0, 1], "HEIGHT": 3}
    assert check_parameters(RIGHT | own, **LIMITS) == RIGHT | own
    assert capsys.readouterr().out == ""
    check_parameters(RIGHT | {"EPOCH": 3}, **LIMITS)
    assert capsys.readouterr().out == "EPOCH is no parameter of this notebook. Did you mean EPOCHS?\n"


def test_a_part_of_the_images_holds_one_a_class_at_least():
    check_parameters({"REAL_FRACTION": 0.0025})
    with pytest.raises(ValueError, match="REAL_FRACTION = 0.001: expected a number from 0.0025 to 1.0"):
        check_parameters({"REAL_FRACTION": 0.001})


def test_what_a_name_may_be_is_said_in_words():
    for name, limit in (("RUN", GAN_RUN), ("RUN", VGG_RUN), ("RUN", RESNET_RUN)):
        with pytest.raises(ValueError, match="expected letters, digits and _, beginning with (gan|vgg16|resnet)"):
            check_parameters({name: "a-b"}, **{name: limit})
    with pytest.raises(ValueError, match="VARIANT = 'A': expected small letters, or none"):
        check_parameters({"VARIANT": "A"})


def test_a_training_on_data_of_other_parameters_is_refused():
    """A reader edits a parameter, runs the check and the training, but not the cells that load, split and merge."""
    notebook = {"DATASET": "shapes100", "REAL_FRACTION": 1.0, "IMBALANCE": 1.0, "SYNTHETIC_PER_CLASS": 1, "EPOCHS": 3}
    check_parameters(notebook)

    def make_data():
        labels = utils.load(notebook["DATASET"]).y_train
        kept = utils.long_tail(labels[utils.split(labels, real_fraction=notebook["REAL_FRACTION"])[0]], notebook["IMBALANCE"])
        utils.merge(kept, labels[kept], np.zeros(100), np.arange(100), notebook["SYNTHETIC_PER_CLASS"])

    make_data()
    assert parameters.now() == notebook
    for name, other in {"REAL_FRACTION": 0.5, "IMBALANCE": 10.0, "SYNTHETIC_PER_CLASS": 0, "DATASET": "cifar100"}.items():
        check_parameters(notebook | {name: other})
        with pytest.raises(ValueError, match=f"not those that the parameters name: {name} was .* and is {other!r}"):
            parameters.now()
    notebook |= {"REAL_FRACTION": 0.5, "SYNTHETIC_PER_CLASS": 0, "EPOCHS": 4}
    check_parameters(notebook)
    make_data()
    assert parameters.now() == notebook
    check_parameters({})
    assert parameters.now() == {}


def test_all_wrong_parameters_are_named_at_once():
    with pytest.raises(ValueError, match="(?s)EPOCHS = 0.*a whole number from 1 to 100.*WIDTH = -1.*DATASET = 'x'"):
        check_parameters(RIGHT | {"EPOCHS": 0, "WIDTH": -1, "DATASET": "x"}, **LIMITS)
