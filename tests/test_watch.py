"""What a person sees while a network trains, and what a person plays with."""

import os
import subprocess
import sys
import textwrap

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import core
import utils
from core import checkpoints, cifar100
from core.batches import Batches
from tools import cells, classify


class Shown:
    """Stands for Jupyter's display: what was shown first, and what took its place."""

    def __init__(self):
        self.first, self.later = [], []

    def display(self, figure, display_id):
        assert display_id
        self.first.append(figure)
        return self

    def update(self, figure):
        self.later.append(figure)


@pytest.fixture
def shown(monkeypatch):
    screen = Shown()
    monkeypatch.setattr(core, "HEADLESS", False)
    monkeypatch.setattr(utils, "get_ipython", lambda: "a kernel")
    monkeypatch.setattr(utils, "display", screen.display)
    return screen


def train(folder, callbacks, epochs=3, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    images, labels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8), np.arange(16) % 4
    batches = Batches(images, labels, 8, classes=4)
    return checkpoints.fit(model, batches, epochs=epochs, folder=folder, callbacks=callbacks, **arguments)


def test_one_figure_is_drawn_anew_after_each_epoch(tmp_path, shown):
    lengths = []
    run = train(tmp_path, utils.watch(lambda history: lengths.append(len(history["loss"])) or plt.figure()))
    assert lengths == [1, 2, 3]
    assert (len(shown.first), len(shown.later)) == (1, 2)
    assert not plt.get_fignums()  # none is left open, which Jupyter would show once more
    assert len(run["history"]["loss"]) == 3


def test_a_training_taken_up_again_shows_its_earlier_epochs_too(tmp_path, shown):
    class Stop(keras.callbacks.Callback):
        only_watches = True

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [Stop()], epochs=4)
    histories = []
    run = train(tmp_path, utils.watch(lambda history: histories.append(history) or plt.figure()), epochs=4)
    assert [len(history["loss"]) for history in histories] == [3, 4]
    assert histories[-1]["loss"] == pytest.approx(run["history"]["loss"])


@pytest.mark.parametrize("where", ["headless", "no kernel"])
def test_nothing_is_drawn_where_nobody_watches(tmp_path, shown, monkeypatch, where):
    if where == "headless":
        monkeypatch.setattr(core, "HEADLESS", True)
    else:
        monkeypatch.setattr(utils, "get_ipython", lambda: None)
    train(tmp_path, utils.watch(lambda history: pytest.fail("drawn")))
    assert not shown.first


def test_watching_changes_no_training(tmp_path, shown):
    plain = train(tmp_path / "plain", [])
    watched = train(tmp_path / "watched", utils.watch(lambda history: plt.figure(), str(tmp_path / "logs")))
    assert watched["definition"] == plain["definition"]
    assert watched["history"] == plain["history"]


def test_tensorboard_s_log_holds_every_epoch(tmp_path):
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path / "run", utils.watch(lambda history: plt.figure(), str(tmp_path / "logs")))
    log = EventAccumulator(str(tmp_path / "logs" / "train"))
    log.Reload()
    losses = [float(tf.make_ndarray(event.tensor_proto)) for event in log.Tensors("epoch_loss")]
    assert losses == pytest.approx(run["history"]["loss"])


def test_curves_are_in_per_cent_and_start_at_epoch_one():
    history = {"loss": [2.0, 1.0], "val_loss": [3.0, 2.0], "accuracy": [0.1, 0.5], "val_accuracy": [0.2, 0.4]}
    figure = utils.draw_curves({"net": history})
    loss, accuracy = figure.axes
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[10, 50], [20, 40]]
    assert list(loss.lines[0].get_xdata()) == [1, 2]
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["net, training", "net, validation"]
    plt.close(figure)


def test_rows_of_images_have_names_beside_them(monkeypatch):
    drawn = []
    monkeypatch.setattr(utils, "save_figure", lambda figure, title, path: drawn.append(figure))
    utils.plot_images(np.zeros((7, 32, 32, 3), np.uint8), ["a", "b", "c"], "title", columns=3, rows=["one", "two", "three"])
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["a", "b", "c"] + [""] * 6
    assert [axis.get_ylabel() for axis in axes[::3]] == ["one", "two", "three"]
    assert [len(axis.images) for axis in axes] == [1] * 7 + [0] * 2
    plt.close(drawn[0])


def test_a_range_becomes_a_slider_and_headless_the_first_values_are_taken(monkeypatch):
    given = []
    monkeypatch.setattr(utils.ipywidgets, "interact", lambda show, **widgets: given.append(widgets))
    utils.play(print, name=["apple", "bear"], seed=range(3, 9))
    assert given[0]["name"] == ["apple", "bear"]
    assert given[0]["seed"].options == tuple(range(3, 9))
    monkeypatch.setattr(core, "HEADLESS", True)
    utils.play(lambda **values: given.append(values), name=["apple", "bear"], seed=range(3, 9))
    assert given[1] == {"name": "apple", "seed": 3}


# ------------------------------------------------------------------------------------------ the generator


@pytest.fixture(scope="module")
def play():
    names = cifar100.class_names("cifar100")
    generator = keras.saving.load_model(ROOT / "results" / "cifar100" / "gan_long_generator.keras")
    return cells.define("gan_synthetic_images", generator=generator, names=names)


def test_noise_depends_on_its_seed_alone(play):
    np.testing.assert_array_equal(play["noise_vectors"](3), play["noise_vectors"](3))
    assert play["noise_vectors"](3).shape == (10, 64)
    assert np.abs(play["noise_vectors"](3) - play["noise_vectors"](4)).mean() > 0.5
    np.testing.assert_array_equal(play["noise_vectors"](3, 1), play["noise_vectors"](3)[:1])


def test_a_walk_goes_from_one_vector_to_the_other_along_the_sphere(play):
    start, end = play["noise_vectors"](0, 2)
    steps = play["between"](start, end, 7)
    np.testing.assert_allclose(steps[[0, -1]], [start, end], rtol=1e-5)
    lengths = np.linalg.norm(steps, axis=1)
    assert min(np.linalg.norm([start, end], axis=1)) * 0.97 < lengths.min()  # a straight line would pass nearer to the centre
    np.testing.assert_allclose(np.linalg.norm(np.diff(steps, axis=0), axis=1).std(), 0, atol=0.2)


def test_what_is_drawn_depends_on_noise_and_class(play):
    noise = play["noise_vectors"](0, 3)
    images = play["paint"](noise, "apple")
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(images, play["paint"](noise, ["apple"] * 3))
    assert np.abs(images.astype(int) - play["paint"](noise, "sea")).mean() > 10
    assert np.abs(images[0].astype(int) - images[1]).mean() > 10
    with pytest.raises(ValueError, match="unicorn"):
        play["paint"](noise, "unicorn")


def test_playing_needs_no_dataset_and_no_training(tmp_path):
    """As a new user would: imports, parameters, the set-up and the part that plays, in a home without CIFAR-100."""
    code = [cell.source for cell in cells.read("gan_synthetic_images")]
    first = next(i for i, source in enumerate(code) if source.startswith("generator = keras.saving") and "class_names" in source)
    last = next(i for i, source in enumerate(code) if "play(show_noise" in source)
    script = """
        import time, matplotlib.pyplot as plt
        before = time.perf_counter()
        show_class("apple", 1)
        plt.close("all")
        show_walk("apple", 0, 1)
        assert time.perf_counter() - before < 4, "slow"
    """
    source = "\n".join([*code[:4], *code[first : last + 1], textwrap.dedent(script)])
    environment = os.environ | {"HOME": str(tmp_path), "HEADLESS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT / "notebooks", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_log_without_tensorboard_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(utils.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="LOGS needs TensorBoard: pip install tensorboard"):
        utils.watch(None, "logs")
    assert len(utils.watch(None)) == 1


def test_a_picture_is_named_by_one_network_alone(project, monkeypatch, capsys):
    folder = project / "results" / "cifar100"
    folder.mkdir(parents=True)
    monkeypatch.setattr(classify, "likeliest", lambda image, network, names: [(network.name, 1.0)])
    for names, expected in (([], "found none"), (["a"], None), (["a", "b"], "found a.keras, b.keras. Name one with --network")):
        for name in names:
            (folder / f"{name}.keras").touch()
        monkeypatch.setattr(sys, "argv", ["classify", str(cifar_picture(project))])
        if expected:
            with pytest.raises(SystemExit, match=expected):
                classify.main()
        else:
            classify.main()
            assert "100.0%  a.keras" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["classify", str(cifar_picture(project)), "--network", str(folder / "b.keras")])
    classify.main()
    assert "100.0%  b.keras" in capsys.readouterr().out


def test_a_network_of_the_stand_in_names_its_classes(project, monkeypatch, capsys):
    network = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(100, activation="softmax")])
    network.save(project / "mine.keras")
    (project / "mine.json").write_text('{"dataset": "shapes100"}', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["classify", str(cifar_picture(project)), "--network", str(project / "mine.keras")])
    classify.main()
    printed = capsys.readouterr().out
    assert "100 classes of shapes100" in printed
    assert "circle" in printed or "filled" in printed or "hollow" in printed, printed
    (project / "mine.keras").write_text("no network", encoding="utf-8")
    with pytest.raises(SystemExit, match="mine.keras: not a classifier that Keras can load"):
        classify.main()


def cifar_picture(folder):
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    return folder / "picture.png"


def test_a_picture_is_named_within_seconds_of_the_command(tmp_path):
    """With the published network: no dataset, no training."""
    command = [sys.executable, "-m", "tools.classify"]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert "%  apple" in done.stdout, done.stderr
    assert done.stdout.count("%  ") == 5
    (tmp_path / "broken.png").write_bytes(b"no picture")
    done = subprocess.run([*command, str(tmp_path / "broken.png")], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken.png: expected an image" in done.stderr
    assert "Traceback" not in done.stderr
