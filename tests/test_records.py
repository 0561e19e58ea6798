"""Records: written whole or not at all, read, and told apart by whose they are."""

import json
import os

import pytest
from conftest import git

from core import records
from core.cifar100 import DataError
from core.files import file_sha256

GIVEN = {
    "dataset": "shapes100", "model": "m", "seed": 0, "parameters": {"OPTIMIZER": "adam"},
    "steps": 1, "seconds": 1.0, "history": {}, "optimizer": "sgd", "test_accuracy": 0.5,
}  # fmt: skip


@pytest.fixture
def folder(project):
    return records.run_folder("shapes100")


def test_a_record_contains_what_it_was_given_and_is_written_whole_or_not_at_all(folder):
    """What a run really used counts, whatever the parameters of its notebook say."""
    records.write(folder, "run", **GIVEN)
    written = records.read("shapes100")
    surroundings = {"device", "versions", "commit", "date"}
    assert written["run"].items() >= ({"name": "run"} | GIVEN).items()
    assert written["run"].keys() == {"name"} | GIVEN.keys() | surroundings
    for value, error in ((float("nan"), ValueError), (float("inf"), ValueError), ({1}, TypeError)):
        with pytest.raises(error, match="JSON"):
            records.write(folder, "run", **GIVEN | {"test_accuracy": value})
    incomplete = {key: GIVEN[key] for key in GIVEN.keys() - {"seed", "history"}}
    with pytest.raises(ValueError, match="The record run has no history, seed"):
        records.write(folder, "run", **incomplete)
    assert records.read("shapes100") == written
    assert os.listdir(folder) == ["run.json"]


def test_a_commit_is_dirty_only_if_code_differs_from_it(project):
    def commit_after(name, text):
        (project / name).write_text(text, encoding="utf-8")
        return records.environment()["commit"]

    assert commit_after("utils.py", "1") is None
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    head = git(project, "rev-parse", "--short", "HEAD")
    assert commit_after("results.json", "2") == head
    one, other = commit_after("utils.py", "2"), commit_after("utils.py", "3")
    assert one != other  # two edits are two states of the code
    assert one.startswith(f"{head}-dirty-")
    assert commit_after("utils.py", "1") == head


def test_a_record_cut_at_every_tenth_is_refused_by_name(folder):
    path = records.write(folder, "run", **GIVEN)
    whole = path.read_bytes()
    cut = [whole[: len(whole) * tenth // 10] for tenth in range(10)]
    for content in (*cut, b"[]", b'{"name": "run"}', b"\xff\xfe", b"[" * 10**5):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"run\.json is not a usable JSON file"):
            records.read("shapes100")


def test_a_readers_records_and_published_ones_are_told_apart(project, folder):
    """A reader's record never hides a published one, and one that is both is listed once."""
    results = project / "results" / "shapes100"
    results.mkdir(parents=True)
    own = json.loads(records.write(folder, "vgg16", **GIVEN).read_text(encoding="utf-8"))

    def found_beside(**changes):
        (results / "vgg16.json").write_text(json.dumps(own | changes), encoding="utf-8")
        every = records.read_all("shapes100")
        return [(each["source"], each["test_accuracy"]) for each in every]

    assert found_beside(test_accuracy=0.6) == [("published", 0.6), ("yours", 0.5)]
    assert records.read("shapes100") == {"vgg16": own}
    assert records.read("shapes100", published=True) == {"vgg16": own | {"test_accuracy": 0.6}}
    assert found_beside(commit="later", date="later") == [("published", 0.5)]


def test_a_readers_file_comes_before_the_published_one(project):
    with pytest.raises(DataError, match=r"no x\.keras in .*runs.* or .*results.*Run the notebook"):
        records.find("cifar100", "x.keras")
    for folder in (project / "results" / "cifar100", project / "runs" / "cifar100"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x.keras").touch()
        assert records.find("cifar100", "x.keras") == folder / "x.keras"
    with pytest.raises(DataError):
        records.find("cifar100-0.1", "x.keras")  # what has seen all images is no substitute


def test_a_manifest_comes_from_the_record_of_its_own_generator(folder):
    generator = folder / "gan_generator.keras"
    generator.write_bytes(b"weights")
    made = {"dataset_md5": "0", "train_digest": "1", "generator_sha256": file_sha256(generator)}
    records.write(folder, "gan", **GIVEN | made)
    expected = made | {"run": "gan", "dataset": "shapes100", "seed": 0, "steps": 1}
    expected |= {"parameters": {"OPTIMIZER": "adam", "CANDIDATES": 4}}
    assert records.image_manifest("shapes100", "gan", CANDIDATES=4) == expected
    generator.write_bytes(b"weights of another run")
    with pytest.raises(DataError, match=r"does not belong to the record gan\.json.*TRAIN = True"):
        records.image_manifest("shapes100", "gan")
