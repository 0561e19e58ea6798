"""The datasets: found, verified, downloaded or refused; the stand-in; the splits."""

import contextlib
import functools
import hashlib
import http.server
import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from conftest import pickled, split_content

import utils
from core import cifar100, datasets, metrics
from core.cifar100 import DataError
from core.files import array_digest, file_sha256
from core.shapes100 import draw_shapes100

NAMES = {
    b"fine_label_names": [b"class %d" % label for label in range(100)],
    b"coarse_label_names": [b"superclass"] * 20,
}
TRAIN = split_content()
FILES = {"train": pickled(TRAIN), "test": pickled(split_content(seed=1)), "meta": pickled(NAMES)}


def md5(data):
    return hashlib.md5(data).hexdigest()


def write_files(folder):
    """Write small files in the official format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def small_files_are_official(monkeypatch):
    monkeypatch.setattr(cifar100, "CIFAR100_MD5", {name: md5(FILES[name]) for name in FILES})


def test_cifar100_is_found_in_the_usual_folders_in_order(project, monkeypatch):
    assert cifar100.find_cifar100() is None
    keras = "keras/datasets/cifar-100-python"
    usual = ["data", "data/cifar-100-python", keras, f"{keras}-target/cifar-100-python"]
    for name in reversed(usual):
        write_files(project / name)
        assert cifar100.find_cifar100() == project / name
    monkeypatch.setenv("CIFAR100_DIR", str(write_files(project / "elsewhere")))
    assert cifar100.find_cifar100() == project / "elsewhere"
    (project / "elsewhere" / "test").unlink()
    with pytest.raises(DataError, match="elsewhere. Expected the official files train, test"):
        cifar100.find_cifar100()


NOTHING = contextlib.nullcontext()


@pytest.mark.parametrize("start", ["home", "project", "elsewhere"])
def test_cifar100_dir_may_be_relative_begin_with_a_tilde_or_lie_above(project, monkeypatch, start):
    folder = write_files(project / "mine" / "cifar-100-python")
    monkeypatch.setenv("HOME", str(project))
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere" if start == "elsewhere" else project)
    name = {"home": "~/mine", "project": "mine/cifar-100-python", "elsewhere": "mine"}[start]
    monkeypatch.setenv("CIFAR100_DIR", name)
    assert cifar100.find_cifar100().samefile(folder)


@pytest.mark.parametrize("place", ["data", "keras/datasets", "given"])
def test_an_archive_is_unpacked_where_it_is_found(project, monkeypatch, capsys, place):
    """It does not matter who packed it: only the hashes of the files in it are compared."""
    made = write_files(project / "made" / "cifar-100-python")
    path = project / place / "cifar-100-python.tar.gz"
    path.parent.mkdir(parents=True)
    if place == "given":
        monkeypatch.setenv("CIFAR100_DIR", str(path))

    def pack():
        archive = shutil.make_archive(project / "a", "gztar", made.parent, made.name)
        shutil.move(archive, path)

    (made / "test").write_bytes(b"damaged")
    pack()
    with pytest.raises(DataError, match="Expected the official") if place == "given" else NOTHING:
        assert cifar100.find_cifar100() is None
    assert f"{path} cannot be used" in capsys.readouterr().out
    (made / "test").write_bytes(FILES["test"])
    pack()
    assert cifar100.find_cifar100() == project / "data" / "cifar-100-python"
    assert datasets.load("cifar100").x_train.shape == (200, 32, 32, 3)


def test_a_damaged_copy_is_named_and_a_complete_one_is_used(project, capsys):
    good = write_files(project / "keras" / "datasets" / "cifar-100-python")
    bad = write_files(project / "data" / "cifar-100-python")
    (bad / "train").write_bytes(FILES["train"][:-1])
    assert cifar100.find_cifar100() == good
    words = f"{bad} is damaged and is skipped: the md5 of train is wrong\n"
    assert capsys.readouterr().out == words
    (good / "meta").write_bytes(b"")
    assert cifar100.find_cifar100() is None  # so that it is downloaded again


def test_a_copy_on_disk_is_loaded_and_an_altered_one_refused(project, monkeypatch):
    path = write_files(project / "data") / "train"
    monkeypatch.setattr(cifar100, "download_cifar100", lambda: pytest.fail("used the network"))
    data = datasets.load("cifar100")
    assert (data.x_train.shape, data.x_train.dtype) == ((200, 32, 32, 3), np.uint8)
    green = TRAIN[b"data"][:, 1024:2048].reshape(-1, 32, 32)  # after the red pixels
    np.testing.assert_array_equal(data.x_train[..., 1], green)
    assert data.y_train.tolist() == TRAIN[b"fine_labels"]
    assert data.class_names[42] == "class 42"
    assert data.superclass_of.tolist() == [label // 5 for label in range(100)]
    path.write_bytes(FILES["train"] + b"x")
    monkeypatch.setenv("CIFAR100_DIR", str(path.parent))
    with pytest.raises(DataError, match="Expected the official files train, test and meta"):
        datasets.load("cifar100")


def test_pickled_code_never_runs(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({b"data": Malicious()}, protocol=4))
    with pytest.raises(DataError, match="expected md5"):  # it is hashed before it is unpickled
        cifar100.read_member(path, "0" * 32)
    with pytest.raises(DataError, match="mkdir is not allowed"):
        cifar100.read_member(path, md5(path.read_bytes()))
    assert not (tmp_path / "harm").exists()


def test_the_stand_in_is_repeatable_and_can_be_learned():
    small, again, another = (draw_shapes100(2, 1, seed) for seed in (0, 0, 1))
    assert array_digest(small.x_train, small.x_test) == array_digest(again.x_train, again.x_test)
    assert small.md5 == again.md5 != another.md5
    data = datasets.load("shapes100")
    assert np.bincount(data.y_train).tolist() == [50] * 100
    with pytest.raises(DataError, match="'cifar10': expected one of cifar100, shapes100"):
        datasets.load("cifar10")
    _, nearest = metrics.nearest(data.x_test, data.x_train)
    assert (data.y_train[nearest] == data.y_test).mean() > 0.3  # chance is 0.01


SIZES = [(1.0, (450, 50)), (0.1, (45, 5)), (0.004, (2, 2))]


@pytest.mark.parametrize(("fraction", "counts"), SIZES)
def test_splits_are_disjoint_and_stratified(fraction, counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    parts = utils.split(labels, real_fraction=fraction, seed=3)
    whole = utils.split(labels, seed=3)  # a smaller fraction keeps some of these and no others
    for part, every, count in zip(parts, whole, counts, strict=True):
        assert set(part) <= set(every)
        assert np.bincount(labels[part]).tolist() == [count] * 100
    assert not set(parts[0]) & set(parts[1])
    another, _ = utils.split(labels, real_fraction=fraction, seed=4)
    assert (parts[0] != another).any()


def test_channel_statistics_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    expected = [images.mean((0, 1, 2)), images.var((0, 1, 2))]
    np.testing.assert_allclose(utils.channel_statistics(images), expected)


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves files, but /stalls and /cuts only in part."""

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(100))
        if self.path == "/stalls":
            time.sleep(5)
        elif self.path != "/cuts":
            super().copyfile(source, outputfile)


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """A function that downloads from mirrors on this machine, which behave as their names say."""
    folder = tmp_path_factory.mktemp("mirrors")
    write_files(folder / "cifar-100-python")
    path = shutil.make_archive(folder / "archive", "gztar", folder, "cifar-100-python")
    for name in ("honest", "stalls", "cuts"):
        shutil.copy(path, folder / name)
    (folder / "lies").write_bytes((folder / "honest").read_bytes() + b"\0")  # can be unpacked too
    handler = functools.partial(Mirror, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def download(*names, sha256=file_sha256(path)):  # noqa: B008
        urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]
        return cifar100.download_cifar100(urls, sha256, timeout=0.5)

    yield download
    server.shutdown()


@pytest.mark.parametrize("name", ["stalls", "cuts", "lies", "missing"])
def test_a_bad_mirror_is_skipped_and_a_folder_is_completed(project, download, name):
    folder, start = project / "data" / "cifar-100-python", time.monotonic()
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(b"damaged")
    assert cifar100.find_cifar100() is None
    assert download(name, "honest") == folder == cifar100.find_cifar100()
    assert time.monotonic() - start < 4
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert list((project / "data").iterdir()) == [folder]


def test_a_failed_download_leaves_nothing_and_explains_what_to_do(project, download, monkeypatch):
    with pytest.raises(cifar100.DownloadError) as error:
        download("lies", "cuts", sha256="0" * 64)
    places = ("/lies: ", "/cuts: ", str(project / "data"), "CIFAR100_DIR", "shapes100")
    for words in (*places, "0" * 64, *cifar100.CIFAR100_MD5.values()):
        assert words in str(error.value)
    monkeypatch.setattr(cifar100, "unpack", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        download("honest")
    assert list((project / "data").iterdir()) == []


def test_simultaneous_downloads_do_not_disturb_each_other(project, download):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(download, ["honest"] * 4))
    assert set(folders) == set((project / "data").iterdir()) == {cifar100.find_cifar100()}
