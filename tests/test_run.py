"""The program behind `make run`: what it runs, with which parameters, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, process_of

from core.parameters import wrong_values
from tools import cells, run

GAN, VGG16, RESNET = cells.NOTEBOOKS


def started(monkeypatch, *command, execute=None):
    """Start `tools.run`; return the notebooks it would execute, with folder and parameters."""
    ran = []
    monkeypatch.setattr(run, "execute", execute or (lambda *what: ran.append(what) or True))
    monkeypatch.setattr(run, "minutes_here", lambda minutes: 7.2)
    monkeypatch.setattr(sys, "argv", ["run", *command])
    assert run.main() == 0
    return ran


def test_one_notebook_can_be_run_alone_and_paths_are_absolute(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").touch()
    command = ("--dataset", "cifar100", "--only", VGG16, "-p", "PICTURE", "cat.jpg")
    expected = {"PICTURE": str(tmp_path / "cat.jpg")}  # notebooks run in a folder of their own
    assert started(monkeypatch, *command) == [(VGG16, "cifar100", expected)]
    command = ("--dataset", "shapes100", "--only", RESNET, "-p", "EPOCHS", "3")
    expected = {"EPOCHS": 3, "DATASET": "shapes100"}
    assert started(monkeypatch, *command) == [(RESNET, "shapes100", expected)]
    assert "minutes" not in capsys.readouterr().out  # not known for other parameters
    ran = started(monkeypatch, "--dataset", "cifar100")  # overrides nothing: it may be published
    assert ran == [(name, "cifar100", {}) for name in cells.NOTEBOOKS]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("-p EPOCS 3", "There is no parameter EPOCS. Did you mean EPOCHS?"),
        ("-p epochs 3", "Did you mean EPOCHS?"),
        ("-p WIDTH wide", "Invalid parameter values for vgg16_with_gan"),
        ("-p DEPTH 9", "Invalid parameter values for resnet_baseline"),
        ("-p RUN vgg16_mine", "(?s)gan_synthetic_images.*beginning with gan.*--only NOTEBOOK"),
        ("-p RUN ../vgg16", "letters, digits and _"),
        (f"--only {VGG16} --seeds 0 -1", "SEED = -1: expected a whole number"),
        (
            f"--only {RESNET} -p WIDTH 0.5",
            "(?s)WIDTH.*parameters of resnet_baseline are BATCH_SIZE",
        ),
        ("-p DATASET mnist", "DATASET = 'mnist'"),
        pytest.param("gpu", "make gpu needs a GPU, but none was found", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_name_or_value_is_refused_before_anything_runs(monkeypatch, command, words):
    monkeypatch.setattr(run, "choose_dataset", lambda: "shapes100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(SystemExit, match=words):
        started(monkeypatch, *command.split(), execute=lambda *_: pytest.fail("it ran"))


def test_recipes_reach_the_notebooks_and_a_value_given_by_hand_wins(monkeypatch, capsys):
    recipe = run.recipes()["wide"]["parameters"]
    assert started(monkeypatch, "wide", "--dataset", "cifar100") == [(VGG16, "cifar100", recipe)]
    assert (
        "trained for longer. This takes about 7 minutes on this machine" in capsys.readouterr().out
    )
    command = ("wide", "--dataset", "shapes100", "-p", "EPOCHS", "3", "-p", "RUN", "vgg16_mine")
    ((_, _, parameters),) = started(monkeypatch, *command)
    assert (parameters["EPOCHS"], parameters["WIDTH"]) == (3, recipe["WIDTH"])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("trained for longer, with EPOCHS = 3, RUN = 'vgg16_mine'")
    ran = started(monkeypatch, "fast", "--dataset", "cifar100")
    named = [(name, parameters["RUN"], parameters["OPTIMIZER"]) for name, _, parameters in ran]
    assert named == [(VGG16, "vgg16_fast", "muon"), (RESNET, "resnet_fast", "muon")]


def test_seeds_name_their_runs_and_each_trains_a_gan_of_its_own(monkeypatch):
    ran = started(monkeypatch, "wide", "--dataset", "cifar100", "--seeds", "0", "3")
    named = [(parameters["RUN"], parameters["SEED"]) for *_, parameters in ran]
    assert named == [("vgg16_wide", 0), ("vgg16_wide_seed3", 3)]
    ran = started(monkeypatch, "--dataset", "cifar100", "--seeds", "1", "2")
    seeds = [(name, parameters["SEED"]) for name, _, parameters in ran]
    assert seeds == [(name, seed) for seed in (1, 2) for name in (GAN, VGG16, RESNET)]
    ran = started(monkeypatch, "long", "--dataset", "cifar100", "--seeds", "0", "1")
    assert [parameters["SEED"] for *_, parameters in ran] == [0, 1]


def test_a_comment_may_hold_an_equals_sign_and_a_later_value_is_named(
    tmp_path, monkeypatch, capsys
):
    """The run announces one epoch, and a cell below the parameters makes it two."""
    path = tmp_path / f"{VGG16}.ipynb"
    notebook = nbformat.read(cells.FOLDER / path.name, 4)
    parameters = next(cell for cell in notebook.cells if "PATIENCE" in cell.source)
    parameters.source = "EPOCHS = 12  # was EPOCHS=20 before\nRUN = 'vgg16'\nDATASET = 'cifar100'"
    notebook.cells += [nbformat.v4.new_code_cell(text) for text in ("!ls", "EPOCHS = 2")]
    nbformat.write(notebook, path)
    monkeypatch.setattr(cells, "FOLDER", tmp_path)
    command = ("--dataset", "cifar100", "--only", VGG16, "-p", "EPOCHS", "1")
    assert started(monkeypatch, *command) == [(VGG16, "cifar100", {"EPOCHS": 1})]
    number = len(cells.code_cells(notebook))
    words = f"{VGG16}: code cell {number} sets EPOCHS = 2, which overrides the parameter\n"
    assert words in capsys.readouterr().out


def test_minutes_are_scaled_by_how_fast_this_machine_computes(monkeypatch):
    """The GAN computes in float32, and the other notebooks in the faster precision."""
    recipes = {"defaults": {"convolutions": {"float32": 0.03, "bfloat16": 0.02}}}
    monkeypatch.setattr(run, "recipes", lambda: recipes)
    for here, minutes in (((0.06, 0.06), 20 + 15), ((0.03, 0.04), 10 + 7.5), ((0.09, 0.01), 32.5)):
        seconds = dict(zip(("float32", "bfloat16"), here, strict=True))
        monkeypatch.setattr(run, "ask_devices", lambda name, seconds=seconds: seconds)
        assert run.minutes_here({GAN: 10, VGG16: 5}) == pytest.approx(minutes)


@pytest.mark.slow
def test_convolutions_are_timed_in_both_precisions():
    seconds = run.ask_devices("convolution_seconds")
    assert seconds.keys() == {"float32", "bfloat16"}
    assert min(seconds.values()) > 0


def test_every_recipe_is_made_of_parameters_that_its_notebooks_accept():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    (targets,) = [line.partition("=")[2].split() for line in makefile if line[:9] == "RECIPES ="]
    assert sorted(targets) == sorted(run.recipes().keys() - {"defaults"})
    for name, recipe in run.recipes().items():
        for notebook in recipe.get("notebooks", cells.NOTEBOOKS):
            changed = run.changes(recipe, notebook)
            assert changed.keys() <= cells.parameters(notebook).keys(), name
            assert wrong_values(changed, notebook) == []


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_an_unsupported_python_is_refused_in_one_line_and_leaves_no_environment(tmp_path):
    """Otherwise the next attempt would take a half-made environment for a whole one."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python3.14"
    pretend = "import sys; sys.version_info = (3, 14); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n', encoding="utf-8")
    python.chmod(0o755)
    command = ["make", "run", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("Python 3.11, 3.12 or 3.13 is needed: make run PYTHON=")
    assert not (tmp_path / ".venv").exists()


def write_notebook(path, source):
    """Write a notebook with parameters and one other code cell."""
    parameters = nbformat.v4.new_code_cell("RUN = 'gan'", metadata={"tags": ["parameters"]})
    made = [parameters, nbformat.v4.new_code_cell(source)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)


def test_a_run_that_fails_leaves_the_notebook_of_the_one_that_passed(project, monkeypatch, capsys):
    monkeypatch.setattr(cells, "FOLDER", project)
    answer = "from IPython.display import Markdown\nMarkdown('**They** help.')"
    write_notebook(project / "one.ipynb", answer)
    assert run.execute("one", "shapes100", {})
    assert "They help." in capsys.readouterr().out
    made = project / "runs" / "shapes100" / "notebooks"
    passed = (made / "one.ipynb").read_text(encoding="utf-8")
    killed = "its process was killed, possibly because memory ran out.\nIf so, lower BATCH_SIZE"
    for source, words in (
        ("import os\nos.kill(os.getpid(), 9)", f"one failed: {killed}"),
        ("1 / 0", "one failed in cell [2].\nZeroDivisionError"),
    ):
        write_notebook(project / "one.ipynb", source)
        assert not run.execute("one", "shapes100", {})
        assert words in capsys.readouterr().out
        assert (made / "one.ipynb").read_text(encoding="utf-8") == passed
    assert "ZeroDivisionError" in (made / "one-unfinished.ipynb").read_text(encoding="utf-8")


def test_a_long_temporary_path_and_a_site_wide_kernel_do_not_matter(project, monkeypatch):
    """A cluster's TMPDIR may be longer than a socket's path; another python3 may come first."""
    spec = {"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}
    site = project / "jupyter" / "kernels" / "python3"
    site.mkdir(parents=True)
    (site / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(project / "jupyter"))
    long = project / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr(cells, "FOLDER", project)
    write_notebook(project / "one.ipynb", "import sys\nprint('Python: ' + sys.executable)")
    assert run.execute("one", "shapes100", {})
    executed = project / "runs" / "shapes100" / "notebooks" / "one.ipynb"
    assert f"Python: {sys.executable}" in executed.read_text(encoding="utf-8")


def test_a_stopped_run_says_how_to_continue_and_prints_no_traceback(tmp_path):
    """Ctrl-C reaches the program; the kernel's own complaints stay off the screen."""
    write_notebook(tmp_path / "one.ipynb", "import time\nprint('here')\ntime.sleep(60)")
    shutil.copy(ROOT / "recipes.toml", tmp_path)
    script = """
        import pathlib, signal, sys, core
        signal.signal(signal.SIGINT, signal.default_int_handler)
        core.ROOT = pathlib.Path(sys.argv.pop())
        from tools import cells, run
        cells.FOLDER = core.ROOT
        run.run = lambda *_: run.execute("one", "shapes100", {})
        sys.exit(run.main())
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(**process_of(script, tmp_path), **pipes, start_new_session=True)
    next(line for line in process.stdout if line.strip() == "here")
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert printed.endswith(f"\nStopped. {run.CONTINUE}\n")


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    def fail(*what):
        raise PermissionError(13, "Permission denied", "runs")

    with pytest.raises(
        SystemExit, match=r"The run stopped: \[Errno 13\] Permission denied: 'runs'"
    ):
        started(monkeypatch, "--dataset", "shapes100", execute=fail)


def test_without_dataset_or_network_the_stand_in_is_used_and_announced(
    project, monkeypatch, capsys
):
    mirrors = (("http://127.0.0.1:9/none",), "0" * 64, 1)
    monkeypatch.setattr(run.cifar100.download_cifar100, "__defaults__", mirrors)
    assert run.choose_dataset() == "shapes100"
    printed = capsys.readouterr().out
    assert "NOTHING about CIFAR-100" in printed
    assert "http://127.0.0.1:9/none" in printed
    monkeypatch.setenv("CIFAR100_DIR", str(project))  # a wrong dataset is not replaced by it
    with pytest.raises(SystemExit, match="Expected the official files"):
        run.choose_dataset()
