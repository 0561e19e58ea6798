"""The check of a notebook's parameters: everything wrong is named at once, before anything runs."""

import pytest

from core.parameters import check_parameters, wrong_values

GAN, VGG, RESNET = "gan_synthetic_images", "vgg16_with_gan", "resnet_baseline"
RIGHT = {
    "EPOCHS": 3, "WIDTH": 1, "DATASET": "cifar100", "RESUME": True, "DEPTH": 14,
    "REAL_FRACTION": 0.0025, "STEPS": "equal", "RUN": "vgg16_2",
}  # fmt: skip
WRONG = {
    "EPOCHS": [0, 2.0, "3", True, None, 10**9], "WIDTH": [-1, float("nan"), True, "1"],
    "RESUME": [1, "False", None], "DEPTH": [9, 8.0], "DATASET": ["mnist"], "STEPS": ["more", 1],
    "REAL_FRACTION": [0.001],  # less than one image per class
    "RUN": ["", 3, "vgg16/../gan", "vgg16-2", "vgg16\n"],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"\n  {name} = .*: expected "):
            check_parameters(RIGHT | {name: value}, VGG)


def test_all_wrong_parameters_are_named_at_once():
    wrong = {"EPOCHS": 0, "WIDTH": -1, "RUN": "a-b"}
    with pytest.raises(ValueError, match="wrong") as error:
        check_parameters(RIGHT | wrong, VGG)
    assert str(error.value).splitlines()[1:] == [
        "  EPOCHS = 0: expected a whole number from 1 to 10000",
        "  WIDTH = -1: expected a number from 0.015625 to 4.0",
        "  RUN = 'a-b': expected letters, digits and _, beginning with vgg16, not ending in _gan",
    ]


def test_names_of_runs_cannot_meet():
    """Notebook 2 adds "_gan" to the name of a run of its own."""
    names = ["gan_long", "Gan", "vgg16", "vgg16_gan_like", "vgg16_gan", "vgg16_wide_gan"]
    names += ["resnet", "resnet_wide", "imagenet"]
    expected = {GAN: names[:1], VGG: names[2:4], RESNET: names[6:8]}
    for notebook, accepted in expected.items():
        assert [name for name in names if not wrong_values({"RUN": name}, notebook)] == accepted


def test_a_file_is_looked_for_before_hours_of_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cat.jpg").touch()
    for path in ("", "cat.jpg", str(tmp_path / "cat.jpg"), "~/cat.jpg"):
        check_parameters({"PICTURE": path}, VGG)
    words = "PICTURE = 'dog.jpg': expected the path of an existing file, absolute or relative to"
    with pytest.raises(ValueError, match=f"{words} {tmp_path}"):
        check_parameters({"PICTURE": "dog.jpg"}, VGG)


def test_a_misspelt_parameter_is_named_with_the_one_that_was_meant(capsys):
    """Parameters are the plain values in capitals; a reader may add others."""
    others = {"lower": 1, "_i1": "x", "In": [], "PYTEST": pytest}
    own = {"SEEDS": [0, 1], "HEIGHT": 3, "NOTHING": None}  # far from all others, or a list
    assert check_parameters(RIGHT | own | others, VGG) == RIGHT | own
    assert capsys.readouterr().out == ""
    assert check_parameters(RIGHT | {"EPOCH": 3}, VGG) == RIGHT | {"EPOCH": 3}
    words = "EPOCH is not a parameter of this notebook. Did you mean EPOCHS?\n"
    assert capsys.readouterr().out == words
