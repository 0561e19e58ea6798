"""What only a person sees: figures that grow during training, sliders, and a picture classified."""

import sys
import types

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import run_script
from PIL import Image
from test_training import Stop, StopAt, train

import core
from core import datasets, export, interactive
from tools import classify, draw


def network(classes):
    dense = keras.layers.Dense(classes, activation="softmax")
    return keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), dense])


@pytest.fixture
def screen(monkeypatch):
    """Jupyter's: its places for figures, the figures shown there, and the histories drawn."""
    shown = types.SimpleNamespace(places=[], figures=[], histories=[])

    def display(content, display_id):
        shown.places.append(display_id)
        return types.SimpleNamespace(update=shown.figures.append)

    shown.draw = lambda history: shown.histories.append(history) or plt.figure()
    monkeypatch.setattr(core, "HEADLESS", False)
    monkeypatch.setattr(interactive, "get_ipython", lambda: "a kernel")
    monkeypatch.setattr(interactive, "display", display)
    return shown


def test_one_figure_grows_and_a_resumed_run_shows_earlier_epochs_too(tmp_path, screen):
    figure = interactive.LiveFigure(screen.draw)
    with pytest.raises(Stop):
        train(tmp_path, 4, callbacks=[figure, StopAt(2, 0)])
    assert (screen.places, len(screen.figures)) == ([True], 2)
    _, run = train(tmp_path, 4, callbacks=[figure])  # the reader runs the cell again
    assert (screen.places, screen.histories[-1]) == ([True, True], run["history"])
    assert len(run["history"]["loss"]) == 4
    assert not plt.get_fignums()  # Jupyter would show an open figure once more


def test_watching_changes_nothing_and_headless_draws_nothing(tmp_path, screen, monkeypatch):
    def watched(name):
        _, run = train(tmp_path / name, 3, callbacks=[interactive.LiveFigure(screen.draw)])
        return run | {"seconds": 0}

    plain = train(tmp_path / "plain", 3)[1] | {"seconds": 0}
    assert watched("in Jupyter") == plain  # the fingerprint, too
    assert len(screen.figures) == 3
    monkeypatch.setattr(interactive, "get_ipython", lambda: None)
    assert watched("in a script") == plain
    monkeypatch.setattr(interactive, "get_ipython", lambda: "a kernel")
    monkeypatch.setattr(core, "HEADLESS", True)
    assert watched("headless") == plain
    assert (len(screen.places), len(screen.histories)) == (1, 3)


def test_a_range_becomes_a_slider_and_a_headless_run_takes_the_first_values(monkeypatch):
    given, widgets = [], interactive.ipywidgets
    monkeypatch.setattr(widgets, "interact", lambda show, **choices: given.append(choices))
    for headless in (False, True):
        monkeypatch.setattr(core, "HEADLESS", headless)
        show = lambda **values: given.append(values)  # noqa: E731
        interactive.play(show, name=["apple", "bear"], seed=range(3, 9))
    assert given[0]["name"] == ["apple", "bear"]
    assert isinstance(given[0]["seed"], widgets.SelectionSlider)
    assert given[0]["seed"].options == tuple(range(3, 9))
    assert given[1] == {"name": "apple", "seed": 3}


def test_a_picture_is_classified_by_the_published_network_or_by_a_given_one(
    project, monkeypatch, capsys
):
    other, picture = project / "other.keras", project / "picture.png"
    Image.new("RGB", (32, 32)).save(picture)
    monkeypatch.setattr(classify, "NETWORK", project / "published.keras")

    def classified(*arguments):
        monkeypatch.setattr(sys, "argv", ["classify", str(picture), *map(str, arguments)])
        classify.main()
        return capsys.readouterr().out.splitlines()

    def refused(words, *arguments):
        with pytest.raises(SystemExit, match=words):
            classified(*arguments)

    refused("There is no file .*published.keras")
    export.save(network(100), classify.NETWORK, datasets.class_names("cifar100"))
    title, *likely = classified()
    assert "the most likely of the network's 100 classes" in title
    names = {name.replace("_", " ") for name in datasets.class_names("cifar100")}
    assert len(likely) == 5
    assert {line.partition("%  ")[2] for line in likely} < names
    export.save(network(100), other, [f"class {i}" for i in range(100)])
    assert all("%  class " in line for line in classified("--network", other)[1:])
    network(100).save(other)  # by plain Keras: nobody knows its classes
    refused("other.keras contains no class names", "--network", other)
    other.write_text("not a network", encoding="utf-8")
    refused("other.keras contains no class names", "--network", other)
    export.save(network(7), other, ["a"])
    refused("other.keras: not a classifier that Keras can load", "--network", other)
    picture.write_bytes(b"not a picture")
    refused(r"picture\.png cannot be used as an image")


def test_images_of_a_class_are_drawn_with_the_published_generator(project, monkeypatch, capsys):
    def drawn(*arguments):
        monkeypatch.setattr(sys, "argv", ["draw", *arguments])
        draw.main()
        return np.asarray(Image.open(capsys.readouterr().out.strip().partition(": ")[2]))

    first, other = drawn("rocket"), drawn("rocket", "--seed", "1")
    assert first.shape == (128, 1280, 3)
    assert first.std() > 20
    assert not np.array_equal(first, other)
    with pytest.raises(SystemExit, match="no class 'dog'. Its classes: apple, aquarium_fish"):
        drawn("dog")


@pytest.mark.slow
def test_the_published_network_classifies_the_example_within_a_minute(tmp_path):
    """This needs neither CIFAR-100 nor training."""
    script = "import runpy; runpy.run_module('tools.classify', run_name='__main__')"
    done = run_script(script, timeout=60, HOME=str(tmp_path))
    assert "%  apple" in done.stdout, done.stderr
    assert done.stdout.count("%  ") == 5
