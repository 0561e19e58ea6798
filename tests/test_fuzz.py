"""Files that are damaged or made up in any way give the right arrays or the project's own error.

`make test` tries 40 cases of each kind, `make fuzz` 500 (CASES).
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from unittest import mock

import numpy as np
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
PLACE, LENGTH = st.floats(0, 1), st.sampled_from([0, 1, 20, 10**9])
DAMAGE = st.lists(st.tuples(PLACE, LENGTH, st.binary(max_size=20)), min_size=1, max_size=4)


def damaged(data, changes):
    """Return `data` with bytes inserted, replaced or cut off at relative places."""
    for place, length, extra in changes:
        start = int(place * len(data))
        data = data[:start] + extra + data[start + length :]
    return data


CONTENT = split_content(20)
WHOLE = pickled(CONTENT)


@CASES
@given(changes=DAMAGE)
def test_a_damaged_dataset_is_refused_by_name(tmp_path_factory, changes):
    path, data = tmp_path_factory.getbasetemp() / "train", damaged(WHOLE, changes)
    path.write_bytes(data)
    try:
        content = cifar100.read_member(path, hashlib.md5(WHOLE).hexdigest())
        assert cifar100.image_arrays(content)[0].shape == (20, 32, 32, 3)
        assert data == WHOLE
    except DataError as error:
        assert data != WHOLE
        assert str(path) in str(error)
    assert path.read_bytes() == data  # it is left as it is


def encoded(form, mode="RGB", size=(32, 32)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


IMAGES = [encoded(form) for form in ("PNG", "GIF", "TIFF", "BMP", "WEBP")]
IMAGES += [encoded("PNG", "P"), encoded("PNG", "LA", (9, 50)), encoded("JPEG", "CMYK")]
IMAGE = st.builds(damaged, st.sampled_from(IMAGES), st.just([]) | DAMAGE)
JSON = st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)


@CASES
@given(image=IMAGE, manifest=st.binary(max_size=200) | JSON)
def test_a_made_up_folder_of_images_is_read_or_refused_by_name(tmp_path_factory, image, manifest):
    folder = tmp_path_factory.mktemp("images")
    (folder / "class 1").mkdir()
    (folder / "class 1" / "0000.png").write_bytes(image)
    try:
        images, labels, _ = synthetic.load(folder, ["class 0", "class 1"])
        assert (images.shape, images.dtype, labels) == ((1, 32, 32, 3), np.uint8, [1])
    except DataError as error:
        assert "0000.png" in str(error)
    (folder / "manifest.json").write_bytes(manifest)
    try:
        assert isinstance(synthetic.read_manifest(folder), dict)
    except DataError as error:
        assert "manifest.json" in str(error)


EVIL = ["../evil", "ABSOLUTE/evil", "cifar-100-python/../../evil", "cifar-100-python/train", ""]
KIND = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])


@CASES
@given(names=st.lists(st.sampled_from(EVIL), max_size=4), kind=KIND, changes=DAMAGE)
def test_no_archive_writes_outside_its_folder(tmp_path_factory, names, kind, changes):
    buffer, outside = io.BytesIO(), tmp_path_factory.mktemp("outside")
    names = [name.replace("ABSOLUTE", str(outside)) for name in names]
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in (*names, *(f"cifar-100-python/{file}" for file in cifar100.CIFAR100_MD5)):
            info = tarfile.TarInfo(name)
            if name in names:
                info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    for data in (buffer.getvalue(), damaged(buffer.getvalue(), changes)):
        folder = tmp_path_factory.mktemp("archive")
        (folder / "archive").write_bytes(data)
        empty = dict.fromkeys(cifar100.CIFAR100_MD5, cifar100.md5_of(b""))
        right = mock.patch.object(cifar100, "CIFAR100_MD5", empty)
        with right, contextlib.suppress(Exception):
            cifar100.unpack(folder / "archive", folder / "in" / "target")
        files = {path for path in folder.rglob("*") if path.is_file()}
        written = {path.relative_to(folder).as_posix() for path in files}
        assert written <= {"archive", "in/target/train", "in/target/test", "in/target/meta"}
        assert not list(outside.iterdir())
