"""Folders of synthetic images and a reader's own pictures: saved, chosen, read and refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import utils
from core import pictures, synthetic
from core.cifar100 import DataError
from core.files import array_digest, replace

NAMES = ["apple", "bear", "crab"]
LABELS = np.repeat([0, 1, 2], 2)
RED, BLUE, GREY, WHITE = (200, 0, 0), (0, 0, 200), (200, 200, 200), (255, 255, 255)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def save(folder, run):
    synthetic.save(folder, IMAGES, LABELS, NAMES, {"run": run})


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "set", "first")
    return tmp_path / "set"


def test_what_was_saved_is_loaded_and_a_readers_own_images_too(folder, capsys):
    images, labels, manifest = synthetic.load(folder, NAMES)
    assert array_digest(images, labels) == array_digest(IMAGES, LABELS)
    assert manifest == {"run": "first", "images": 6, "images_sha256": array_digest(IMAGES, LABELS)}
    (folder / "manifest.json").unlink()
    (folder / "Thumbs.db").write_bytes(b"written by Windows")
    Image.new("L", (64, 48), 82).save(folder / "bear" / "more.gif")
    images, labels, manifest = synthetic.load(folder, NAMES)
    assert (labels.tolist(), manifest) == ([0, 0, 1, 1, 1, 2, 2], {})
    assert (images[4] == 82).all()
    assert "Read 7 synthetic images; resized 1 of them" in capsys.readouterr().out


def test_all_faults_are_named_at_once(folder, tmp_path):
    png = (folder / "bear" / "0000.png").read_bytes()
    (tmp_path / "outside.png").write_bytes(png)
    (folder / "no such class").mkdir()
    (folder / "apple" / "empty.png").write_bytes(b"")
    (folder / "apple" / "text.png").write_text("not an image", encoding="utf-8")
    (folder / "bear" / "cut.png").write_bytes(png[:200])
    (folder / "bear" / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "crab" / "circle.png").symlink_to(folder / "crab" / "circle.png")
    Image.new("1", (9999, 8500)).save(folder / "crab" / "bomb.png")
    with pytest.raises(DataError) as error:
        synthetic.load(folder, NAMES)
    faults = ("no such class is not", "empty.png", "text.png", "cut.png", "circle.png", "9999x8500")
    for words in ("7 unusable entries, 6 images", "link.png is a link, not an image", *faults):
        assert words in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 unusable entries, 0 images. Run notebook 1 with"):
        synthetic.load(tmp_path / "empty", NAMES)


def test_misnamed_or_linked_folders_are_refused_with_the_expected_names(tmp_path):
    for name in ("0", "1"):
        (tmp_path / "own" / name).mkdir(parents=True)
    (tmp_path / "own" / "bear").symlink_to(tmp_path / "own" / "0")
    with pytest.raises(DataError) as error:
        synthetic.load(tmp_path / "own", NAMES)
    assert f"0 images. Expected folders named {', '.join(NAMES)}.\n" in str(error.value)
    assert "bear is not a folder named after a class, or is a link" in str(error.value)
    assert "notebook 1" not in str(error.value)


LEFTOVERS = ["__MACOSX", "@eaDir", "Icon\r", "thumbs.db", ".ipynb_checkpoints"]


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_of_operating_systems_are_ignored(folder, name):
    before = synthetic.load(folder, NAMES)[0]
    for place in (folder, folder / "bear"):
        (place / name).mkdir()
    np.testing.assert_array_equal(synthetic.load(folder, NAMES)[0], before)


def test_images_that_do_not_match_the_manifest_are_refused(folder):
    path = folder / "bear" / "0001.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match="manifest.json describes other images.*delete this file"):
        synthetic.load(folder, NAMES)


def test_manifests_hold_no_nan_and_belong_to_one_run(folder):
    with pytest.raises(ValueError, match="JSON"):
        save(folder, float("nan"))
    assert synthetic.read_manifest(folder)["run"] == "first"
    manifest = {"dataset": "cifar100", "seed": 0, "train_digest": "abc"}
    synthetic.check_manifest(manifest, dataset="cifar100", train_digest="abc")
    synthetic.check_manifest({}, dataset="cifar100")
    words = "dataset is 'cifar100', not 'shapes100'; train_digest is 'abc', not 'x'"
    with pytest.raises(DataError, match=words):
        synthetic.check_manifest(manifest, dataset="shapes100", seed=0, train_digest="x")


def test_simultaneous_saves_replace_a_folder_one_after_the_other(folder):
    (folder.with_name(".set.partial") / "apple").mkdir(parents=True)  # of a run that was killed
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, [folder] * 4, range(4)))
    assert len(synthetic.load(folder, NAMES)[0]) == 6
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_images_are_whole_after_a_run_was_killed_between_two_renames(project, monkeypatch):
    folder, rename = synthetic.folder_of_run("cifar100"), Path.replace
    save(folder, "first")

    def interrupted(path, target):
        if target == folder:  # the second rename
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(folder, "second")
    assert not folder.exists()
    assert synthetic.choose("cifar100", "own")[0] == folder
    assert synthetic.load(folder, NAMES)[2]["run"] == "first"


def test_a_folder_that_is_open_elsewhere_is_renamed_when_it_is_free(tmp_path, monkeypatch):
    """As on Windows, where an indexer opens what was just written."""
    (tmp_path / "a").mkdir()
    rename, failures = Path.replace, [PermissionError(13, "in use")] * 2

    def sometimes(source, target):
        if failures:
            raise failures.pop()
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", sometimes)
    replace(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").is_dir()
    failures += [PermissionError(13, "in use")] * 100
    with pytest.raises(PermissionError):
        replace(tmp_path / "b", tmp_path / "c", patience=0.3)


def test_a_readers_own_images_are_preferred_unless_asked_otherwise(project):
    published = project / "synthetic_images" / "cifar100-0.1"
    own = project / "synthetic_images" / "runs" / "cifar100-0.1"
    for source in ("auto", "own", "published"):
        with pytest.raises(DataError, match="There are no GAN images in .*-0.1. Run notebook 1"):
            synthetic.choose("cifar100-0.1", source)
    published.mkdir(parents=True)
    assert synthetic.choose("cifar100-0.1") == (published, "published with this repository")
    own.mkdir(parents=True)
    for source, expected in (("auto", own), ("own", own), ("published", published)):
        assert synthetic.choose("cifar100-0.1", source)[0] == expected
    assert "on this machine" in synthetic.choose("cifar100-0.1")[1]


def test_labels_stay_with_their_images_when_saved_loaded_and_merged(tmp_path):
    """Red holds each image's label; blue tells synthetic images (255) from real ones (0)."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 40))
    real, drawn = np.zeros((2, 120, 32, 32, 3), np.uint8)
    real[..., 0] = drawn[..., 0] = labels[:, None, None]
    drawn[..., 2] = 255
    synthetic.save(tmp_path / "set", drawn, labels, NAMES, {})
    loaded = synthetic.load(tmp_path / "set", NAMES)[:2]
    (merged, merged_labels), again = (utils.merge(real, labels, *loaded, 30, 5) for _ in range(2))
    np.testing.assert_array_equal(merged, again[0])
    np.testing.assert_array_equal(merged[:, 0, 0, 0], merged_labels)
    is_synthetic = merged[:, 0, 0, 2] == 255
    assert np.bincount(merged_labels[is_synthetic]).tolist() == [30] * 3
    assert np.bincount(merged_labels[~is_synthetic]).tolist() == [40] * 3
    assert 0.5 < is_synthetic[:105].mean() / is_synthetic.mean() < 1.5  # shuffled, not appended
    assert utils.merge(real, labels, *loaded, per_class=0) == (real, labels)
    with pytest.raises(DataError, match="SYNTHETIC_PER_CLASS is 50.*only 40"):
        utils.merge(real, labels, *loaded, per_class=50)


def test_each_class_is_drawn_beside_its_name():
    grey = np.repeat(np.arange(100, dtype=np.uint8), 10)[:, None, None, None]  # shows the class
    images = np.broadcast_to(grey, (1000, 32, 32, 3))
    utils.plot_classes(images, [f"class_{label}" for label in range(100)], "title")
    axes = plt.gcf().axes
    names = [text.get_text() for axis in axes for text in axis.get_yticklabels()]
    assert names == [f"class {label}" for label in range(100)]
    rows = np.concatenate([axis.images[0].get_array()[16::32] for axis in axes])
    assert (rows == np.arange(100)[:, None, None]).all()


def plain(colour, mode="RGB", size=(40, 40)):
    return Image.new("RGB", size, colour).convert(mode)


def red_above_blue(width, height):
    image = plain(RED, size=(width, height))
    image.paste(BLUE, (0, height // 2, width, height))
    return image


def read(folder, image, name="picture.png", **arguments):
    image.save(folder / name, **arguments)
    return pictures.read(folder / name).astype(int)


def test_any_size_becomes_32_by_32_of_the_middle_without_aliasing(tmp_path):
    for size in ((32, 32), (60, 100), (641, 479), (6, 6), (4000, 40)):
        pixels = read(tmp_path, red_above_blue(*size))
        assert pixels.shape == (32, 32, 3)
        np.testing.assert_allclose(pixels[:12].mean((0, 1)), RED, atol=25)
        np.testing.assert_allclose(pixels[-12:].mean((0, 1)), BLUE, atol=25)
    wide = plain(WHITE, size=(300, 100))
    wide.paste("black", (100, 0, 200, 100))
    assert read(tmp_path, wide).max() < 30
    stripes = np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (320, 160, 1))
    assert np.abs(read(tmp_path, Image.fromarray(stripes)) - 127).max() < 12


EXIF = Image.Exif()
EXIF[274] = 6  # the sensor's left was up
TURNED = red_above_blue(64, 64).rotate(90)
FRAMES = {"save_all": True, "append_images": [plain(BLUE)]}
TRANSPARENT = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
PICTURES = [
    *((plain(GREY, mode), "p.tiff", {}, GREY) for mode in ("L", "P", "CMYK", "LA", "RGBA")),
    (Image.fromarray(np.full((40, 40), 200 * 257, np.uint16)), "p.tiff", {}, GREY),
    (Image.new("1", (40, 40), 1), "p.png", {}, WHITE),
    (plain(RED), "animation.gif", FRAMES, RED),
    (TURNED, "photo.jpg", {"exif": EXIF, "quality": 95}, RED),
    (TRANSPARENT, "p.png", {}, WHITE),
    (TRANSPARENT.convert("P"), "p.gif", {"transparency": 0}, WHITE),
]


@pytest.mark.parametrize(("image", "name", "arguments", "expected"), PICTURES)
def test_any_mode_becomes_rgb(tmp_path, image, name, arguments, expected):
    """Photographs are turned upright, animations stop at once, transparent pixels become white."""
    top = read(tmp_path, image, name, **arguments)[:12]
    np.testing.assert_allclose(top.mean((0, 1)), expected, atol=4)


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_images_of_unknown_range_are_refused(tmp_path, kind):
    """A float image may hold values from 0 to 1 or to 255. With 16 bits, 257 levels become one."""
    for level in (0, 1, 200, 70_000):
        with pytest.raises(DataError, match="p.tiff.*: it has 32 bits per channel. Save it"):
            read(tmp_path, Image.fromarray(np.full((40, 40), level, kind)), "p.tiff")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(DataError, match="HEIC.*export it as JPEG"):
        pictures.read(tmp_path / "IMG_1.HEIC")
    dark = Image.fromarray(np.full((40, 40), 200, np.uint16))  # would fit into 8 bits as it is
    assert read(tmp_path, dark, "p.png").max() == 0


def test_what_cannot_be_read_is_refused_with_name_and_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text").write_bytes(b"not an image")
    (tmp_path / "folder").mkdir()
    Image.new("1", (10_000, 8_500)).save(tmp_path / "huge", "PNG")  # refused before it is decoded
    reasons = {"text": "cannot identify", "folder": "not a file", "missing": "no such file"}
    reasons["huge"] = "10000x8500 pixels, and at most 80 million"
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=rf"{name} cannot be used as an image: .*{reason}"):
            pictures.read(f"~/{name}")
    assert pictures.read().std() > 20  # the example
