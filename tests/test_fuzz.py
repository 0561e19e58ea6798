"""Files that are damaged or made up in any way end in the right arrays or in the project's own error.

`make test` tries 40 cases of each kind, `make fuzz` 500 (CASES).
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import pickled, split_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core import cifar100, synthetic
from core.cifar100 import DataError

CASES = settings(
    max_examples=int(os.environ.get("CASES", "40")),
    deadline=20_000,  # milliseconds: a hang is a failure
    suppress_health_check=list(HealthCheck),
    derandomize="CASES" not in os.environ,
)
NAMES = [f"class {i}" for i in range(100)]
damage = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=20)),
    min_size=1,
    max_size=4,
)


def damaged(data, changes):
    """Return `data` with bytes flipped, cut off or inserted at the given relative positions."""
    for kind, where, extra in changes:
        i = int(where * len(data))
        if kind == "cut":
            data = data[:i]
        elif kind == "insert":
            data = data[:i] + extra + data[i:]
        else:
            data = data[:i] + bytes(a ^ b for a, b in zip(data[i : i + len(extra)], extra, strict=False)) + data[i + len(extra) :]
    return data


def encoded(form, mode="RGB", size=(32, 32)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(buffer, form)
    return buffer.getvalue()


IMAGES = [encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "LA"), encoded("PNG", "L", (9, 50)), encoded("GIF", "P"),
          encoded("JPEG", "CMYK"), encoded("TIFF"), encoded("BMP"), encoded("WEBP")]  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return pickled(split_content(20))


@CASES
@given(changes=damage)
def test_a_damaged_dataset_file_is_refused_by_name(whole, changes):
    data = damaged(whole, changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train"
        path.write_bytes(data)
        try:
            content = cifar100.read_member(path, hashlib.md5(whole).hexdigest())
        except DataError as error:
            assert str(path) in str(error)
            assert data != whole
        else:
            assert data == whole
            assert cifar100.image_arrays(content, 20, path)[0].shape == (20, 32, 32, 3)
        assert path.read_bytes() == data


values = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.binary(max_size=5), st.lists(st.integers(-5, 300), max_size=25)
)
contents = st.dictionaries(st.sampled_from([b"data", b"fine_labels", b"coarse_labels"]), values)


@CASES
@given(content=contents)
def test_made_up_content_is_refused_by_name(content):
    """What a pickle with the right hash could hold at worst."""
    with pytest.raises(DataError, match="some/train"):
        cifar100.image_arrays(split_content(20) | {b"data": None} | content, 20, "some/train")


@CASES
@given(image=st.sampled_from(IMAGES), changes=damage, suffix=st.sampled_from([".png", ".jpg", ".gif", ".txt", "", ".PNG"]))
def test_a_damaged_image_is_read_or_refused_by_name(image, changes, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES[7] / f"0000{suffix}"
        path.parent.mkdir()
        path.write_bytes(damaged(image, changes))
        try:
            images, labels, _ = synthetic.load(folder, NAMES)
        except DataError as error:
            assert path.name in str(error)
        else:
            assert images.shape == (1, 32, 32, 3)
            assert images.dtype == np.uint8
            assert labels.tolist() == [7]


@CASES
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_an_odd_folder_is_refused_by_name(name):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NAMES[0]).mkdir()
        (Path(folder) / NAMES[0] / "0000.png").write_bytes(IMAGES[0])
        try:
            (Path(folder) / name).mkdir(exist_ok=True)
        except OSError:
            return  # the file system has it no more than we do
        if name.startswith(".") or name in NAMES:
            assert len(synthetic.load(folder, NAMES)[0]) == 1
        else:
            with pytest.raises(DataError) as error:
                synthetic.load(folder, NAMES)
            assert name in str(error.value)


@CASES
@given(text=st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_any_manifest_is_read_or_refused_by_name(text):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            assert isinstance(synthetic.read_manifest(folder), dict)
        except DataError as error:
            assert "manifest.json" in str(error)


MEMBER = st.sampled_from(
    ["../evil", "/tmp/evil", "cifar-100-python/../../evil", "cifar-100-python/train", "cifar-100-python/x", ""]
)


@CASES
@given(
    names=st.lists(MEMBER, max_size=4), kind=st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE]), changes=damage
)
def test_no_archive_writes_outside_its_folder(names, kind, changes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in [*names, *(f"cifar-100-python/{member}" for member in cifar100.CIFAR100_MD5)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (kind, "/etc/passwd") if name in names else (tarfile.REGTYPE, "")
            tar.addfile(info)
    for data in (buffer.getvalue(), damaged(buffer.getvalue(), changes)):
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "archive"
            archive.write_bytes(data)
            with contextlib.suppress(*cifar100.UNPACK_ERRORS):
                cifar100.unpack(archive, Path(folder) / "in" / "target")
            written = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
            assert written <= {"archive", "in/target/train", "in/target/test", "in/target/meta"}
