"""The program behind `make run`: what it runs, with which parameters, and what it refuses."""

import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT

from core.parameters import check_parameters
from tools import cells, run


def started(monkeypatch, *command, has_gpu=True):
    """Start `tools.run` with a command line; return the notebooks it would execute, with their folder and parameters."""
    ran = []
    monkeypatch.setattr(run, "execute", lambda *what: ran.append(what) or True)
    monkeypatch.setattr(run, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr(sys, "argv", ["run", *command])
    assert run.main() == 0
    return ran


def test_one_notebook_can_be_run_alone(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(run, "execute", lambda name, dataset, parameters: ran.append((name, dataset, parameters)) or True)
    command = ["run", "--dataset", "shapes100", "--only", "resnet_baseline", "-p", "EPOCHS", "3"]
    monkeypatch.setattr(sys, "argv", command)
    assert run.main() == 0
    assert ran == [("resnet_baseline", "shapes100", {"EPOCHS": 3, "BATCH_SIZE": 64, "DATASET": "shapes100"})]
    assert "About" not in capsys.readouterr().out  # the minutes of other parameters are not known


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(SystemExit, match="unknown parameter EPOCS; known to gan_synthetic_images, .* are AUGMENT, BATCH_SIZE"):
        run.refuse_unknown({"EPOCS": 3})
    with pytest.raises(SystemExit, match="unknown parameter WIDTH; known to resnet_baseline are BATCH_SIZE"):
        run.refuse_unknown({"WIDTH": 0.5, "EPOCHS": 3}, ["resnet_baseline"])  # it would be trained in vain
    assert run.literal("3") == 3
    assert run.literal("False") is False
    assert run.literal("true") is True
    with pytest.raises(SystemExit, match="Did you mean EPOCHS?"):
        run.refuse_unknown({"epochs": 3})
    assert run.literal("float32") == "float32"


def test_a_wrong_value_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(run, "execute", lambda *_: pytest.fail("ran"))
    for given, words in ((["WIDTH", "wide"], "vgg16_with_gan, wrong parameters"), (["DEPTH", "9"], "resnet_baseline, wrong")):
        monkeypatch.setattr(sys, "argv", ["run", "--dataset", "shapes100", "-p", *given])
        with pytest.raises(SystemExit, match=words):
            run.main()
    monkeypatch.setattr(sys, "argv", ["run", "--dataset", "shapes100", "-p", "RUN", "vgg16_mine"])
    with pytest.raises(SystemExit, match="(?s)gan_synthetic_images.*beginning with gan.*--only NOTEBOOK"):
        run.main()


@pytest.mark.parametrize(("name", "value"), [("RUN", "../vgg16"), ("VARIANT", "../../x"), ("RUN", "a/b"), ("VARIANT", "3")])
def test_a_name_that_is_a_path_is_refused_before_anything_is_written(monkeypatch, name, value):
    with pytest.raises(SystemExit, match=f"{name} = '?{value}'?: a name is text of letters"):
        started(monkeypatch, "--dataset", "shapes100", "-p", name, value)


def test_what_is_changed_by_hand_is_said_first(monkeypatch, capsys):
    started(monkeypatch, "wide", "--dataset", "cifar100", "-p", "EPOCHS", "3", "-p", "RUN", "vgg16_mine")
    assert capsys.readouterr().out.splitlines()[0].endswith("trained for longer; changed: EPOCHS = 3, RUN = 'vgg16_mine'")
    started(monkeypatch, "wide", "--dataset", "cifar100")
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .endswith("for longer. About 29 minutes on two fast CPU cores, twice that or more on slow ones")
    )


def test_a_stopped_run_says_how_to_go_on(monkeypatch, capsys):
    def stop(*what):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "execute", stop)
    monkeypatch.setattr(sys, "argv", ["run", "--dataset", "shapes100"])
    assert run.main() == 130
    assert "The same command goes on from the newest checkpoint." in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    def fail(*what):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(run, "execute", fail)
    monkeypatch.setattr(sys, "argv", ["run", "--dataset", "shapes100"])
    with pytest.raises(SystemExit, match=r"This cannot go on: \[Errno 13\] Permission denied: 'runs'"):
        run.main()


def test_a_log_goes_where_the_command_line_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # notebooks run in a folder of their own
    parameters = run.parameters_of("vgg16_with_gan", {}, {"LOGS": "runs/logs", "RUN": "vgg16"}, "cifar100")
    assert parameters == {"LOGS": str(tmp_path / "runs" / "logs"), "RUN": "vgg16"}
    assert run.parameters_of("vgg16_with_gan", {}, {"LOGS": ""}, "cifar100") == {"LOGS": ""}


def notebook_of(source, *, above="## Title"):
    """A notebook with one code cell."""
    made = [nbformat.v4.new_markdown_cell(above), nbformat.v4.new_code_cell("RUN = 'gan'", metadata={"tags": ["parameters"]})]
    return nbformat.v4.new_notebook(cells=[*made, nbformat.v4.new_code_cell(source)], metadata={"kernelspec": KERNEL})


KERNEL = {"name": "python3", "language": "python", "display_name": "Python 3"}


def test_a_run_that_fails_leaves_the_notebook_of_the_one_that_passed(project, monkeypatch, capsys):
    monkeypatch.setattr(cells, "FOLDER", project / "notebooks")
    (project / "notebooks").mkdir(exist_ok=True)
    answer = "from IPython.display import Markdown\nMarkdown('**They** help.')"
    nbformat.write(notebook_of(answer, above="## What we saw"), cells.FOLDER / "one.ipynb")
    assert run.execute("one", "shapes100", {})
    assert "They help." in capsys.readouterr().out
    folder = project / "runs" / "shapes100" / "notebooks"
    passed = (folder / "one.ipynb").read_text(encoding="utf-8")
    nbformat.write(notebook_of("1 / 0"), cells.FOLDER / "one.ipynb")
    assert not run.execute("one", "shapes100", {})
    assert "FAILED one, In [2], under 'Title'\nZeroDivisionError" in capsys.readouterr().out
    assert (folder / "one.ipynb").read_text(encoding="utf-8") == passed
    assert "ZeroDivisionError" in (folder / "one-unfinished.ipynb").read_text(encoding="utf-8")


def test_a_kernel_that_dies_is_no_traceback(project, monkeypatch, capsys):
    monkeypatch.setattr(cells, "FOLDER", project / "notebooks")
    (project / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook_of("import os\nos.kill(os.getpid(), 9)"), cells.FOLDER / "one.ipynb")
    assert not run.execute("one", "shapes100", {})
    assert "FAILED one: its process died, killed or out of memory. The same command goes on" in capsys.readouterr().out


def test_without_dataset_and_network_the_stand_in_is_taken_loudly(project, monkeypatch, capsys):
    monkeypatch.setattr(run.cifar100.download_cifar100, "__defaults__", (("http://127.0.0.1:9/none",), "0" * 64, 1))
    assert run.choose_dataset() == "shapes100"
    printed = capsys.readouterr().out
    assert "NOTHING about CIFAR-100" in printed
    assert len(printed.strip().splitlines()) == 4
    log = (project / "runs" / "download.log").read_text(encoding="utf-8")
    assert "http://127.0.0.1:9/none" in log
    assert "Looked in" in log


def test_an_altered_dataset_is_not_replaced_by_the_stand_in(project, monkeypatch):
    monkeypatch.setenv("CIFAR100_DIR", str(project))
    with pytest.raises(SystemExit, match="missing"):
        run.choose_dataset()


def test_a_recipe_s_parameters_reach_the_notebooks_that_have_them(monkeypatch):
    (only,) = started(monkeypatch, "wide", "--dataset", "cifar100")
    assert only == ("vgg16_with_gan", "cifar100", {"RUN": "vgg16_wide", **run.recipes()["wide"]["parameters"]})
    scarce = started(monkeypatch, "scarce", "--dataset", "cifar100")
    assert [(name, part) for name, part, _ in scarce] == [(name, "cifar100-0.1") for name in cells.NOTEBOOKS]
    assert "WIDTH" not in scarce[0][2]
    paper = {name: parameters for name, part, parameters in started(monkeypatch, "paper", "--dataset", "cifar100")}
    assert paper["gan_synthetic_images"]["EPOCHS"] != paper["vgg16_with_gan"]["EPOCHS"]


def test_seeds_name_their_trainings(monkeypatch):
    ran = started(monkeypatch, "wide", "--dataset", "cifar100", "--seeds", "0", "3")
    assert [(parameters["RUN"], parameters["SEED"]) for *_, parameters in ran] == [("vgg16_wide", 0), ("vgg16_wide_seed3", 3)]
    ran = started(monkeypatch, "--dataset", "cifar100", "--only", "resnet_baseline", "--seeds", "1")
    assert [(parameters["RUN"], parameters["SEED"]) for *_, parameters in ran] == [("resnet_seed1", 1)]


def test_all_seeds_get_the_same_gan_images(monkeypatch, capsys):
    """Or no two pairs of trainings would be alike."""
    ran = started(monkeypatch, "--dataset", "cifar100", "--seeds", "1", "2")
    gan, vgg16, resnet = cells.NOTEBOOKS
    assert [(name, parameters["SEED"]) for name, _, parameters in ran] == [
        (gan, 1),
        (vgg16, 1),
        (resnet, 1),
        (vgg16, 2),
        (resnet, 2),
    ]
    assert "About" not in capsys.readouterr().out
    ran = started(monkeypatch, "long", "--dataset", "cifar100", "--seeds", "0", "1")
    assert [parameters["SEED"] for *_, parameters in ran] == [0, 1]


def test_a_file_is_named_from_where_the_command_is_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").touch()
    ran = started(monkeypatch, "--dataset", "cifar100", "--only", "vgg16_with_gan", "-p", "PICTURE", "cat.jpg")
    assert ran[0][2] == {"PICTURE": str(tmp_path / "cat.jpg")}


def test_a_parameter_given_by_hand_wins_over_a_recipe(monkeypatch):
    ((_, _, parameters),) = started(monkeypatch, "wide", "--dataset", "shapes100", "-p", "EPOCHS", "3")
    assert parameters["EPOCHS"] == 3
    assert parameters["WIDTH"] == run.recipes()["wide"]["parameters"]["WIDTH"]
    ((_, _, parameters),) = started(monkeypatch, "wide", "--dataset", "shapes100")
    assert parameters["EPOCHS"] == run.recipes()["wide"]["parameters"]["EPOCHS"]  # the stand-in's own six are weaker still


def test_every_recipe_is_made_of_parameters_that_its_notebooks_accept():
    known = {name: run.known_parameters(name) for name in cells.NOTEBOOKS}
    for name, recipe in run.recipes().items():
        assert recipe["about"]
        notebooks = recipe.get("notebooks", cells.NOTEBOOKS)
        for notebook in notebooks:
            own = recipe.get("parameters", {}) | recipe.get(notebook, {})
            check_parameters({key: value for key, value in own.items() if key in known[notebook]})
            assert recipe.get(notebook, {}).keys() <= known[notebook], name
        assert recipe.get("parameters", {}).keys() <= set().union(*(known[each] for each in notebooks)), name


def test_make_gpu_refuses_without_a_gpu(monkeypatch):
    with pytest.raises(SystemExit, match="make gpu is for a GPU, and none was found"):
        started(monkeypatch, "gpu", "--dataset", "shapes100", has_gpu=False)


def test_without_a_gpu_none_is_seen():
    """In a process that sees none; where there is one, it is hidden."""
    script = "from tools import run; print(run.has_gpu())"
    environment = {"CUDA_VISIBLE_DEVICES": "-1"}
    import os

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_default_run_is_given_nothing_so_that_its_notebook_can_be_published(monkeypatch):
    assert [parameters for *_, parameters in started(monkeypatch, "--dataset", "cifar100")] == [{}, {}, {}]


def test_the_makefile_names_every_recipe():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = [line.split("=")[1].split() for line in makefile.splitlines() if line.startswith("SCALES =")]
    assert sorted(targets) == sorted(set(run.recipes()) - {"stand-in"})


def test_the_networks_of_make_paper_take_a_step():
    """What can be rehearsed of it without a GPU: the full-size networks are built, and learn."""
    import keras
    import numpy as np

    from core.muon import Muon

    recipe, statistics = run.recipes()["paper"], {"mean": np.full(3, 120.0), "variance": np.full(3, 4000.0)}
    vgg16 = cells.define("vgg16_with_gan", **statistics)["build_vgg16"](recipe["vgg16_with_gan"]["WIDTH"])
    resnet = cells.define("resnet_baseline", **statistics)["build_resnet"](recipe["resnet_baseline"]["DEPTH"], 16)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for network in (vgg16, resnet):
        before = network.layers[2].get_weights()[0].copy()
        network.compile(Muon(0.025), "categorical_crossentropy")
        losses = network.fit(images, np.eye(100, dtype="float32")[:8], batch_size=4, epochs=1, verbose=0).history["loss"]
        assert np.isfinite(losses).all()
        assert np.abs(network.layers[2].get_weights()[0] - before).max() > 0
    keras.utils.clear_session()
