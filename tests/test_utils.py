"""utils.py, which is pure, and the two small modules below it: files and random streams."""

import random
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, real_cifar100

import utils
from core import files, synthetic
from core.files import array_digest, atomic_write, short_digest
from core.streams import random_stream


def test_functions_called_on_the_side_change_nothing():
    """A reader tries `utils.split(y, real_fraction=0.5)` in a cell between two training runs."""
    data = utils.load("shapes100")
    images, labels = data.x_train[:200], data.y_train[:200]
    before = array_digest(images, labels)
    drawn = []
    for aside in (False, True):
        keras.utils.set_random_seed(0)
        if aside:
            utils.split(labels, real_fraction=0.5)
            utils.merge(images, labels, images, labels, 1)
        drawn.append((random.random(), np.random.random(), float(keras.random.normal(()))))
    assert drawn[0] == drawn[1]
    assert array_digest(images, labels) == before
    assert utils.merge(images, labels, images, labels, 0) == (images, labels)


def test_a_folder_that_is_open_elsewhere_is_renamed_when_it_is_free(tmp_path, monkeypatch):
    """As on Windows, where an indexer opens what was just written."""
    (tmp_path / "a").mkdir()
    rename, failures = Path.replace, [PermissionError(13, "in use")] * 2

    def sometimes(source, target):
        if failures:
            raise failures.pop()
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", sometimes)
    files.replace(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").is_dir()
    failures += [PermissionError(13, "in use")] * 100
    with pytest.raises(PermissionError):
        files.replace(tmp_path / "b", tmp_path / "c", patience=0.3)


def test_splits_are_those_that_the_published_generators_were_trained_on(monkeypatch):
    """The digests were computed by the code that trained them."""
    made = array_digest(utils.split(np.arange(2000) % 100)[0])
    assert made == "06b83fc88a699cab5dea357c56c6793a659e1a4e6c9567659170a1d235532c6e"
    train, _ = utils.split(real_cifar100(monkeypatch).y_train)
    manifest = synthetic.read_manifest(ROOT / "synthetic_images" / "cifar100")
    assert array_digest(train) == manifest["train_digest"]


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that a test draws, which is closed after it."""
    monkeypatch.setattr(plt, "show", lambda: None)
    yield lambda: plt.gcf().axes
    plt.close("all")


def test_curves_are_in_per_cent_start_at_epoch_one_and_are_saved(tmp_path, axes):
    history = {"loss": [2.0, 1.0], "val_loss": [3.0, 2.0]}
    history |= {"accuracy": [0.1, 0.5], "val_accuracy": [0.2, 0.4]}
    utils.plot_curves({"one": history, "two": history}, "a title", tmp_path / "curves.png")
    loss, accuracy = axes()
    assert [list(line.get_ydata()) for line in accuracy.lines[:2]] == [[10, 50], [20, 40]]
    assert list(loss.lines[0].get_xdata()) == [1, 2]
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["one, training", "one, validation", "two, training", "two, validation"]
    assert plt.imread(tmp_path / "curves.png").std() > 0.05


def test_images_have_captions_rows_have_labels_and_classes_their_places(axes):
    images, captions = np.zeros((4, 32, 32, 3), np.uint8), ["a long caption of one class", "b"]
    utils.plot_images(images, captions, "title", columns=3, row_labels=["one", "two"])
    assert [axis.get_title() for axis in axes()[:3]] == ["a long caption\nof one class", "b", ""]
    assert [axis.get_ylabel() for axis in axes()] == ["one", "", "", "two", "", ""]
    grey = np.repeat(np.arange(100, dtype=np.uint8), 10)[:, None, None, None]  # shows the class
    images = np.broadcast_to(grey, (1000, 32, 32, 3))
    utils.plot_classes(images, [f"class_{label}" for label in range(100)], "title")
    names = [text.get_text() for axis in axes() for text in axis.get_yticklabels()]
    assert names == [f"class {label}" for label in range(100)]
    rows = np.concatenate([axis.images[0].get_array()[16::32] for axis in axes()])
    assert (rows == np.arange(100)[:, None, None]).all()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"three", None])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"file.json": b"two"}


def test_digests_and_random_streams_differ_if_and_only_if_their_arguments_do():
    array = np.arange(6).reshape(2, 3)
    others = [array.T, array.reshape(3, 2), array.astype("float64"), array.astype("int32"), -array]
    assert len({array_digest(each) for each in (array, *others)}) == 6
    assert array_digest(np.asfortranarray(array)) == array_digest(array)
    assert short_digest({"a": 1, "b": 2}) == short_digest({"b": 2, "a": 1}) != short_digest({})
    keys = [("order", 0, 0), ("order", 0, 1), ("order", 1, 0), ("augment", 0, 0), ("order", 0, 0)]
    first = [random_stream(*key).integers(2**63) for key in keys]
    assert len(set(first)) == 4
    assert first[0] == first[4]
