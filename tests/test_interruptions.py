"""Training runs that are killed, run out of disk, or are stopped; and folders of others."""

import errno
import os
import signal
import time
from unittest import mock

import filelock
import keras
import numpy as np
import pytest
from conftest import run_script, start_script
from test_training import assert_same, train

from core import checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


class PressStop(keras.callbacks.Callback):
    only_watches = True

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 33:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_full_disk_only_causes_a_warning(tmp_path):
    """A limit on file sizes makes the kernel refuse to write more, as a full disk does."""
    script = """
        import resource, signal, sys, test_training
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        print(test_training.train(sys.argv[1], epochs=2)[1]["steps"])
    """
    done = run_script(script, tmp_path)
    assert done.stdout.strip().endswith("20"), done.stderr
    assert "Could not write the checkpoint" in done.stderr
    assert "File too large" in done.stderr
    assert not [path for path in tmp_path.glob("*/*") if path.suffix in (".npz", ".partial")]


def test_a_file_system_without_locks_only_causes_a_warning(tmp_path, monkeypatch):
    """Some network file systems do not support locks."""
    without = OSError(errno.EOPNOTSUPP, "Operation not supported")
    monkeypatch.setattr(filelock.FileLock, "acquire", mock.Mock(side_effect=without))
    with pytest.warns(UserWarning, match="has no locks, so a second run of this notebook goes"):
        checkpoints.claim(tmp_path)
    checkpoints.release(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(filelock.FileLock, "acquire", mock.Mock(side_effect=full))
    with pytest.raises(checkpoints.CheckpointError, match="cannot be written to"):
        checkpoints.claim(tmp_path)


def test_a_second_run_is_refused_at_once_and_touches_nothing(tmp_path):
    with filelock.FileLock(tmp_path / "lock"):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(checkpoints.CheckpointError, match="in use by another run"):
            train(tmp_path)
        assert sorted(tmp_path.iterdir()) == before
    checkpoints.claim(tmp_path)
    checkpoints.release(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(checkpoints.CheckpointError, match=r"results.* cannot be written to"):
        checkpoints.claim(tmp_path / "results" / "run")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return  # only root can give up its right to write everywhere
    tmp_path.chmod(0o755)
    (tmp_path / "run").mkdir(mode=0o755)
    os.seteuid(65534)
    try:
        refused = r"run cannot be written to \(.*denied"
        with pytest.raises(checkpoints.CheckpointError, match=refused):
            checkpoints.claim(tmp_path / "run")
    finally:
        os.seteuid(0)
        checkpoints.release(tmp_path / "run")


def test_an_interrupted_cell_can_be_run_again(tmp_path, whole):
    """SIGINT, as Jupyter's stop button sends it; the kernel and its claim on the folder live on."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a kernel
    try:
        with pytest.raises(KeyboardInterrupt, match="Run this cell again to train from the start"):
            train(tmp_path, callbacks=[PressStop()], resume=False)
        with pytest.raises(KeyboardInterrupt, match="Run this cell again to continue") as error:
            train(tmp_path, callbacks=[PressStop()])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not any("keras" in str(entry.path) for entry in error.traceback)
    assert_same(train(tmp_path), whole)


@pytest.mark.slow
def test_a_flipped_byte_never_changes_what_is_read(tmp_path):
    train(tmp_path, epochs=1)
    (path,) = tmp_path.glob("*/*.npz")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    original = checkpoints.read(path)
    for position in rng.integers(0, len(content), 60):
        flipped = bytes([content[position] ^ 255])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            state = checkpoints.read(path)
        except Exception:
            continue
        for group, arrays in original["arrays"].items():  # a byte that no reader looks at
            for mine, theirs in zip(state["arrays"][group], arrays, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def kill_at_random_moments(folder, module, trainer):
    """Kill a run with -9 during steps and saves and start it again; the caller trains to the end.

    `make soak` kills twenty times (KILLS), `make test` twice.
    """
    kills = int(os.environ.get("KILLS", "2"))
    script = f"""
        import os, sys, time, core, keras, {module}
        class Tell(keras.callbacks.Callback):
            only_watches = True
            def on_train_batch_end(self, batch, logs=None):
                print("step", flush=True)
        fsync = os.fsync
        def slow_disk(file):
            fsync(file)
            print("save", flush=True)
            time.sleep(float(sys.argv[2]))
        os.fsync = slow_disk
        {module}.{trainer}(sys.argv[1], callbacks=[Tell()])
    """
    rng, torn = np.random.default_rng(0), 0
    for kill in range(kills):
        event, disk = ("save", 60) if kill % 2 else ("step", 0.2)
        since = time.time()
        process = start_script(script, folder, disk)
        next(line for line in process.stdout if line.strip() == event)
        time.sleep(0 if kill % 2 else rng.uniform(0, 0.4))
        process.kill()
        process.wait()
        # Not counting what an earlier kill left behind:
        torn += any(path.stat().st_mtime > since for path in folder.glob("*/*.partial"))
    print(f"{trainer}: {kills} kills, {torn} of them in the middle of a save")
    assert torn >= kills // 2


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, whole):
    kill_at_random_moments(tmp_path / "run", "test_training", "train")
    assert_same(train(tmp_path / "run"), whole)
