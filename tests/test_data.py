"""CIFAR-100 found, checked and refused; the stand-in; the splits."""

import hashlib
import os
import pickle

import numpy as np
import pytest
from conftest import pickled, split_content

import utils
from core import cifar100
from core.cifar100 import DataError
from core.digests import digest


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def members(project, monkeypatch):
    """Small member files in the official format, with their own hashes taken for the official ones."""

    def write(folder, n=200):
        folder.mkdir(parents=True, exist_ok=True)
        names = {b"fine_label_names": [b"class %d" % i for i in range(100)], b"coarse_label_names": [b"group"] * 20}
        for member, content in (("train", split_content(n)), ("test", split_content(n, 1)), ("meta", names)):
            (folder / member).write_bytes(pickled(content))
        monkeypatch.setattr(cifar100, "CIFAR100_MD5", {name: md5(folder / name) for name in ("train", "test", "meta")})
        return folder

    return write


PLACES = (
    "data",
    "keras/datasets/cifar-100-python",
    "keras/datasets/cifar-100-python-target/cifar-100-python",
    "data/cifar-100-python",
)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_found(project, members, place):
    assert cifar100.find_cifar100() is None
    members(project / place)
    assert cifar100.find_cifar100() == project / place


def test_environment_variable_comes_first(project, members, monkeypatch):
    members(project / "data")
    elsewhere = members(project / "elsewhere")
    monkeypatch.setenv("CIFAR100_DIR", str(elsewhere))
    assert cifar100.find_cifar100() == elsewhere
    os.remove(elsewhere / "test")
    with pytest.raises(DataError, match="missing.*test"):
        cifar100.find_cifar100()


def test_a_found_copy_is_loaded_without_a_network(project, members, monkeypatch):
    members(project / "data")
    monkeypatch.setattr(cifar100, "download_cifar100", lambda: pytest.fail("went to the network"))
    image_arrays = cifar100.image_arrays
    monkeypatch.setattr(cifar100, "image_arrays", lambda content, n, path: image_arrays(content, 200, path))
    data = utils.load("cifar100")
    content = split_content()
    assert data.x_train.shape == (200, 32, 32, 3)
    assert data.x_train.dtype == np.uint8
    assert data.x_train[3, 5, 7, 1] == content[b"data"][3, 1024 + 5 * 32 + 7]  # red plane, green plane, blue plane
    assert data.y_train.tolist() == content[b"fine_labels"]
    assert data.class_names[42] == "class 42"
    assert data.superclass_of.tolist() == [i // 5 for i in range(100)]


@pytest.mark.parametrize("where", ["first", "middle", "cut", "longer"])
def test_altered_files_are_refused_and_left_alone(project, members, where):
    path = members(project / "data") / "train"
    whole = path.read_bytes()
    altered = {
        "first": bytes([whole[0] ^ 1]) + whole[1:],
        "middle": whole[:9999] + bytes([whole[9999] ^ 1]) + whole[10000:],
        "cut": whole[:-100],
        "longer": whole + b"x",
    }[where]
    path.write_bytes(altered)
    with pytest.raises(DataError, match=f"(?s)train.*{hashlib.md5(whole).hexdigest()}.*{md5(path)}"):
        utils.load("cifar100")
    assert path.read_bytes() == altered


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({b"data": Malicious(tmp_path / "harm")}, protocol=4))
    with pytest.raises(DataError, match="mkdir is not allowed"):
        cifar100.read_member(path, md5(path))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"data", np.zeros((200, 3071), np.uint8), r"expected uint8 \(200, 3072\).*3071"),
        (b"data", np.zeros((200, 3072), np.float32), "found float32"),
        (b"data", [1, 2], "found <class 'list'>"),
        (b"fine_labels", [0] * 199 + [100], r"in 0\.\.99"),
        (b"fine_labels", [0] * 199 + [-1], r"in 0\.\.99"),
        (b"fine_labels", [0] * 199, r"\(199,\)"),
        (b"coarse_labels", [20] * 200, r"in 0\.\.19"),
        (b"coarse_labels", None, r"in 0\.\.19"),
    ],
)
def test_wrong_content_is_refused(key, value, message):
    with pytest.raises(DataError, match=f"(?s)some/train.*{message}"):
        cifar100.image_arrays(split_content() | {key: value}, 200, "some/train")


def test_missing_content_and_other_pickles_are_refused(tmp_path):
    with pytest.raises(DataError, match="coarse_labels"):
        cifar100.image_arrays({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}, 2, "train")
    path = tmp_path / "train"
    path.write_bytes(pickled([1, 2]))
    with pytest.raises(DataError, match="expected a dictionary, found list"):
        cifar100.read_member(path, md5(path))


def test_unknown_dataset():
    with pytest.raises(DataError, match="expected one of cifar100, shapes100"):
        utils.load("cifar10")


def test_stand_in_is_the_same_every_time_and_has_the_structure():
    data, again = utils.load("shapes100"), utils.load("shapes100")
    assert digest(data.x_train, data.y_train, data.x_test) == digest(again.x_train, again.y_train, again.x_test)
    assert data.x_train.shape == (5000, 32, 32, 3)
    assert data.x_test.shape == (1000, 32, 32, 3)
    assert data.x_train.dtype == np.uint8
    assert np.bincount(data.y_train).tolist() == [50] * 100
    assert len(set(data.class_names)) == 100
    assert np.bincount(data.superclass_of).tolist() == [5] * 20
    assert "NOT CIFAR-100" in data.title


def test_stand_in_can_be_learned():
    """A nearest-centroid classifier on blurred pixels is far above chance: the classes are there to be seen."""
    data = utils.load("shapes100")
    blur = lambda x: x.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4)).reshape(len(x), -1)  # noqa: E731
    features, test = blur(data.x_train), blur(data.x_test)
    centroids = np.stack([features[data.y_train == c].mean(0) for c in range(100)])
    nearest = ((test[:, None] - centroids) ** 2).sum(2).argmin(1)
    assert (nearest == data.y_test).mean() > 0.05  # chance is 0.01


@pytest.mark.parametrize("real_fraction", [1.0, 0.1])
def test_splits_are_disjoint_stratified_and_repeatable(real_fraction):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 50))
    train, validation = utils.split(labels, real_fraction=real_fraction, seed=3)
    assert not set(train) & set(validation)
    assert np.bincount(labels[validation]).tolist() == [5] * 100
    assert np.bincount(labels[train]).tolist() == [round(45 * real_fraction)] * 100
    for part, again in zip((train, validation), utils.split(labels, real_fraction=real_fraction, seed=3), strict=True):
        np.testing.assert_array_equal(part, again)
    assert (train != utils.split(labels, real_fraction=real_fraction, seed=4)[0]).any()


def test_a_smaller_fraction_is_a_part_of_the_larger_with_the_same_validation():
    labels = np.repeat(np.arange(100), 50)
    large, validation = utils.split(labels, seed=1)
    small, same = utils.split(labels, real_fraction=0.3, seed=1)
    assert set(small) < set(large)
    np.testing.assert_array_equal(validation, same)


def test_what_the_generator_draws_becomes_bytes():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(utils.to_bytes(levels / 127.5 - 1), levels)
    assert utils.to_bytes([-2.0, -1.0, 0.0, 1.0, 2.0]).tolist() == [0, 0, 128, 255, 255]


def test_channel_statistics_are_numpy_s():
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    mean, variance = utils.channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)))
    np.testing.assert_allclose(variance, images.astype(float).var((0, 1, 2)))
