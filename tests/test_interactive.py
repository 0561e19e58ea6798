"""What only a person sees: figures that grow during training, sliders, and a picture classified."""

import os
import subprocess
import sys
import types

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import core
from core import datasets, export, interactive, training
from core.batches import Batches
from tools import classify


def network(classes):
    dense = keras.layers.Dense(classes, activation="softmax")
    return keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), dense])


def train(folder, callbacks=(), epochs=3):
    keras.utils.set_random_seed(0)
    model = network(4)
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    batches = Batches(images, np.arange(16) % 4, 8, classes=4)
    return training.fit(model, batches, epochs=epochs, folder=folder, callbacks=callbacks)


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


def test_one_figure_is_updated_after_each_epoch_and_a_resumed_run_shows_earlier_ones(
    tmp_path, screen
):
    class Stop(keras.callbacks.Callback):
        only_watches = True

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    figure = interactive.LiveFigure(screen.draw)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [figure, Stop()], epochs=4)
    assert (screen.places, len(screen.figures)) == ([True], 2)
    run = train(tmp_path, [figure], epochs=4)  # the reader runs the cell again
    assert (screen.places, screen.histories[-1]) == ([True, True], run["history"])
    assert len(run["history"]["loss"]) == 4
    assert not plt.get_fignums()  # Jupyter would show an open figure once more


def test_nothing_is_drawn_if_nobody_watches_and_watching_changes_nothing(
    tmp_path, screen, monkeypatch
):
    def watched(name):
        return train(tmp_path / name, [interactive.LiveFigure(screen.draw)]) | {"seconds": 0}

    plain = train(tmp_path / "plain") | {"seconds": 0}
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


def test_a_picture_is_classified_by_the_only_network_or_by_a_given_one(
    project, monkeypatch, capsys
):
    folder, picture = project / "results" / "cifar100", project / "picture.png"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(picture)

    def classified(*arguments):
        monkeypatch.setattr(sys, "argv", ["classify", str(picture), *map(str, arguments)])
        classify.main()
        return capsys.readouterr().out.splitlines()

    def refused(words, *arguments):
        with pytest.raises(SystemExit, match=words):
            classified(*arguments)

    refused("expected one network, found none")
    export.save(network(100), folder / "a.keras", datasets.class_names("cifar100"))
    (folder / "gan_generator.keras").touch()  # no classifier
    title, *likely = classified()
    assert "the most likely of the network's 100 classes" in title
    names = {name.replace("_", " ") for name in datasets.class_names("cifar100")}
    assert len(likely) == 5
    assert {line.partition("%  ")[2] for line in likely} < names
    export.save(network(100), folder / "b.keras", [f"class {i}" for i in range(100)])
    refused(r"found a\.keras, b\.keras\. Name one with --network")
    assert all("%  class " in line for line in classified("--network", folder / "b.keras")[1:])
    network(100).save(folder / "b.keras")  # by plain Keras: nobody knows its classes
    refused("b.keras contains no class names", "--network", folder / "b.keras")
    (folder / "b.keras").write_text("not a network", encoding="utf-8")
    refused("b.keras contains no class names", "--network", folder / "b.keras")
    export.save(network(7), folder / "b.keras", ["a"])
    refused("b.keras: not a classifier that Keras can load", "--network", folder / "b.keras")
    picture.write_bytes(b"not a picture")
    refused(r"picture\.png: expected an image")


@pytest.mark.slow
def test_the_published_network_classifies_the_example_within_seconds(tmp_path):
    """In a home without CIFAR-100, and without training."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.classify"], env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert "%  apple" in done.stdout, done.stderr
    assert done.stdout.count("%  ") == 5
