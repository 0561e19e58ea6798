"""Synthetic images: saved, loaded, refused and merged."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import utils
from core import synthetic
from core.cifar100 import DataError
from core.digests import digest

NAMES = [f"class {i}" for i in range(100)]


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (300, 32, 32, 3), np.uint8), np.repeat(np.arange(100), 3)


def test_save_then_load_is_the_identity(tmp_path, drawn):
    images, labels = drawn
    synthetic.save(tmp_path / "set", images, labels, NAMES, {"seed": 7})
    loaded, loaded_labels, manifest = synthetic.load(tmp_path / "set", NAMES)
    np.testing.assert_array_equal(loaded, images)
    np.testing.assert_array_equal(loaded_labels, labels)
    assert manifest == {"seed": 7, "images": 300, "images_sha256": digest(loaded, loaded_labels)}


def test_saving_replaces_an_earlier_set(tmp_path, drawn):
    images, labels = drawn
    synthetic.save(tmp_path / "set", images, labels, NAMES, {})
    synthetic.save(tmp_path / "set", images[:1], labels[:1], NAMES, {})
    assert len(synthetic.load(tmp_path / "set", NAMES)[0]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_runs_that_save_at_once_do_not_meet(tmp_path, drawn):
    """One waits for the other, and what a killed one left is taken away."""
    images, labels = drawn
    (tmp_path / ".set.partial" / NAMES[0]).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: synthetic.save(tmp_path / "set", images, labels, NAMES, {"run": run}), range(4)))
    assert len(synthetic.load(tmp_path / "set", NAMES)[0]) == len(images)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_other_sizes_and_modes_are_made_right(tmp_path, capsys):
    folder = tmp_path / "set" / NAMES[3]
    folder.mkdir(parents=True)
    red = Image.new("RGB", (64, 48), (200, 30, 40))
    red.save(folder / "a.png")
    red.resize((32, 32)).convert("L").save(folder / "b.png")
    red.resize((32, 32)).convert("RGBA").save(folder / "c.webp", lossless=True)
    red.resize((32, 32)).quantize(4).save(folder / "d.gif", save_all=True, append_images=[red.resize((32, 32))])
    red.resize((32, 32)).convert("CMYK").save(folder / "e.tiff")
    Image.fromarray(np.full((32, 32), 128 * 257, np.uint16)).save(folder / "f.png")
    images, labels, manifest = synthetic.load(tmp_path / "set", NAMES)
    assert images.shape == (6, 32, 32, 3)
    assert labels.tolist() == [3] * 6
    assert manifest == {}
    for i, colour in (
        (0, (200, 30, 40)),
        (1, (82, 82, 82)),
        (2, (200, 30, 40)),
        (3, (200, 30, 40)),
        (4, (200, 30, 40)),
        (5, (128,) * 3),
    ):
        np.testing.assert_allclose(images[i].mean((0, 1)), colour, atol=3)
    assert "6 synthetic images read, 1 of them resized" in capsys.readouterr().out


def test_everything_wrong_is_named_at_once(tmp_path, drawn):
    images, labels = drawn
    folder = tmp_path / "set"
    synthetic.save(folder, images, labels, NAMES, {})
    (folder / "manifest.json").unlink()  # images of one's own need none
    (folder / "no such class").mkdir()
    (folder / NAMES[0] / "empty.png").write_bytes(b"")
    (folder / NAMES[1] / "text.png").write_text("not an image")
    (folder / NAMES[2] / "cut.png").write_bytes((folder / NAMES[2] / "0000.png").read_bytes()[:200])
    (tmp_path / "outside.png").write_bytes((folder / NAMES[2] / "0000.png").read_bytes())
    (folder / NAMES[3] / "link.png").symlink_to(tmp_path / "outside.png")
    Image.new("1", (5000, 5000)).save(folder / NAMES[4] / "bomb.png")
    with pytest.raises(DataError) as error:
        synthetic.load(folder, NAMES)
    for part in (
        "6 unusable",
        "no such class",
        "empty.png",
        "text.png",
        "cut.png",
        "link.png",
        "a link out of",
        "bomb.png",
        "5000x5000",
    ):
        assert part in str(error.value)


def test_no_folder_and_a_broken_manifest(tmp_path, drawn):
    with pytest.raises(DataError, match="found none. Run notebook 1 first, with the same DATASET"):
        synthetic.load(tmp_path / "none", NAMES)
    images, labels = drawn
    synthetic.save(tmp_path / "set", images, labels, NAMES, {})
    for text in ('{"seed": 1', "[1]"):
        (tmp_path / "set" / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json: expected"):
            synthetic.load(tmp_path / "set", NAMES)


def test_an_empty_folder_says_what_to_do_and_what_windows_leaves_is_no_image(tmp_path, drawn):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="0 unusable entries, 0 images. Run notebook 1 first"):
        synthetic.load(tmp_path / "set", NAMES)
    synthetic.save(tmp_path / "set", *drawn, NAMES, {})
    for folder in (tmp_path / "set", tmp_path / "set" / NAMES[0]):
        (folder / "Thumbs.db").write_bytes(b"0")
    assert len(synthetic.load(tmp_path / "set", NAMES)[0]) == len(drawn[0])


def test_images_are_whole_after_a_run_was_killed_between_two_names(project, drawn, monkeypatch):
    folder = synthetic.folder_of_run("cifar100")
    synthetic.save(folder, *drawn, NAMES, {"which": "first"})
    renames, rename = [], Path.rename

    def killed(path, target):
        renames.append(path)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        synthetic.save(folder, *drawn, NAMES, {"which": "second"})
    assert not folder.exists()
    assert synthetic.choose("cifar100", "own")[0] == folder
    assert synthetic.load(folder, NAMES)[2]["which"] == "first"
    synthetic.save(folder, *drawn, NAMES, {"which": "third"})
    assert synthetic.load(folder, NAMES)[2]["which"] == "third"


def test_a_manifest_of_another_run_is_refused():
    manifest = {"dataset": "cifar100", "seed": 0, "train_digest": "abc"}
    synthetic.check_manifest(manifest, dataset="cifar100", train_digest="abc")
    synthetic.check_manifest({}, dataset="cifar100")  # images of your own need no manifest
    with pytest.raises(DataError, match="dataset: 'cifar100', expected 'shapes100'; train_digest: 'abc', expected 'x'"):
        synthetic.check_manifest(manifest, dataset="shapes100", seed=0, train_digest="x")


def test_planted_labels_survive_save_load_and_merge(tmp_path):
    """Each image carries its label in its pixels: real ones 0 in the blue channel, synthetic ones 255."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 4))
    real, drawn = np.zeros((2, 400, 32, 32, 3), np.uint8)
    real[..., 0] = drawn[..., 0] = labels[:, None, None]
    drawn[..., 2] = 255
    synthetic.save(tmp_path / "set", drawn, labels, NAMES, {})
    images, own_labels, _ = synthetic.load(tmp_path / "set", NAMES)
    merged, merged_labels = utils.merge(real, labels, images, own_labels, per_class=3, seed=5)
    np.testing.assert_array_equal(merged[:, 0, 0, 0], merged_labels)
    is_synthetic = merged[:, 0, 0, 2] == 255
    assert np.bincount(merged_labels[is_synthetic]).tolist() == [3] * 100
    assert np.bincount(merged_labels[~is_synthetic]).tolist() == [4] * 100
    assert 0.2 < is_synthetic[:350].mean() / is_synthetic.mean() < 1.8  # shuffled, not appended
    again, _ = utils.merge(real, labels, images, own_labels, per_class=3, seed=5)
    np.testing.assert_array_equal(merged, again)


def test_more_images_than_there_are_is_refused(drawn):
    images, labels = drawn
    with pytest.raises(DataError, match="SYNTHETIC_PER_CLASS = 4: a class has only 3 .notebook 1 draws IMAGES_PER_CLASS"):
        utils.merge(images, labels, images, labels, per_class=4)


def test_manifest_is_json_without_nan(tmp_path, drawn):
    images, labels = drawn
    with pytest.raises(ValueError, match="JSON"):
        synthetic.save(tmp_path / "set", images, labels, NAMES, {"score": float("nan")})
    synthetic.save(tmp_path / "set", images, labels, NAMES, {"score": 0.5})
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["score"] == 0.5


def test_images_that_are_not_their_manifest_s_are_refused(tmp_path, drawn):
    """One pixel of one image is another, or one image is missing."""
    images, labels = drawn
    folder = tmp_path / "set"
    for change in ("pixel", "missing"):
        synthetic.save(folder, images, labels, NAMES, {})
        path = folder / NAMES[5] / "0001.png"
        if change == "pixel":
            pixels = np.array(Image.open(path))
            pixels[3, 4, 1] ^= 1
            Image.fromarray(pixels).save(path)
        else:
            path.unlink()
        with pytest.raises(DataError, match="not the images that its manifest.json names.*remove manifest.json"):
            synthetic.load(folder, NAMES)
        (folder / "manifest.json").unlink()
        assert len(synthetic.load(folder, NAMES)[0]) == 300 - (change == "missing")


def test_a_run_s_own_images_come_before_the_published_ones_unless_asked_otherwise(project):
    published, own = project / "synthetic_images" / "cifar100", project / "synthetic_images" / "runs" / "cifar100"
    advice = "Run notebook 1 first, with the same DATASET"
    for source, words in {"auto": advice, "own": advice, "published": f"Your own are taken by .*'auto'. {advice}"}.items():
        with pytest.raises(DataError, match=f"no GAN images in .*cifar100. {words}"):
            synthetic.choose("cifar100", source)
    published.mkdir(parents=True)
    assert synthetic.choose("cifar100") == (published, "the published ones")
    own.mkdir(parents=True)
    assert synthetic.choose("cifar100")[0] == own
    assert "your own" in synthetic.choose("cifar100")[1]
    assert synthetic.choose("cifar100", "published")[0] == published
    assert synthetic.choose("cifar100", "own")[0] == own
