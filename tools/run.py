"""Run the three notebooks top to bottom, headless, at their defaults or at a named scale: `make run`, `make wide`.

Records, figures, models and executed notebooks go to runs/, images to synthetic_images/runs/; what is published stays as it is.
"""

import argparse
import ast
import difflib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

import core
from core import cifar100
from core import parameters as limits
from tools import cells

EXPECTED = {"cifar100": (8, 8, 5), "shapes100": (2, 1, 1)}  # minutes of each notebook's defaults on two fast CPU cores
GO_ON = "The same command goes on from the newest checkpoint."
GPU_CHECK = "from core import devices; raise SystemExit(not devices.has_gpu())"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = {name: recipe for name, recipe in recipes().items() if name != "stand-in"}
    parser.add_argument("recipe", nargs="?", choices=named, help="; ".join(f"{n}: {r['about']}" for n, r in named.items()))
    parser.add_argument("--dataset", choices=cifar100.DATASETS, help="cifar100 where it can be had, else shapes100")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="override a parameter")
    parser.add_argument("--seeds", nargs="+", type=int, help="train once for each seed; names end in the seed, but for 0")
    parser.add_argument("--only", choices=cells.NOTEBOOKS, help="run this notebook alone")
    try:
        return run(parser.parse_args(), named)
    except KeyboardInterrupt:
        print(f"\nStopped. {GO_ON}")
        return 130  # as a shell has it
    except OSError as error:  # a folder that cannot be written, a full disk
        sys.exit(f"This cannot go on: {error}")


def run(arguments, named):
    """Run what a command line asks for, with the recipes by name. Returns the exit status."""
    given = {name: literal(value) for name, value in arguments.p}
    recipe = named.get(arguments.recipe, {})
    chosen = [arguments.only] if arguments.only else recipe.get("notebooks", cells.NOTEBOOKS)
    refuse_unknown(given, chosen)
    refuse_paths(given)
    if recipe.get("needs_gpu") and not has_gpu():
        sys.exit(f"make {arguments.recipe} is for a GPU, and none was found. On a CPU: make run, make wide, make long.")
    dataset = arguments.dataset or given.get("DATASET") or choose_dataset()
    if dataset not in cifar100.DATASETS:
        sys.exit(f"unknown dataset {dataset!r}; known are {', '.join(cifar100.DATASETS)}")
    seeds = arguments.seeds or [None]
    for notebook in chosen:
        refuse_wrong(notebook, parameters_of(notebook, recipe, given, dataset, seeds[0]))
    announce(arguments.recipe, recipe, dataset, chosen, given, plain=len(seeds) == 1 and not (recipe and arguments.only))
    return run_all(chosen, recipe, given, dataset, seeds)


def run_all(chosen, recipe, given, dataset, seeds):
    """Execute the chosen notebooks for each seed. Returns the exit status: 1 where a cell failed."""
    for seed in seeds:
        for notebook in chosen:
            if notebook == cells.NOTEBOOKS[0] and len(chosen) > 1 and seed != seeds[0]:
                continue  # all seeds of notebook 2 get the same GAN images, or no two of its pairs would be alike
            parameters = parameters_of(notebook, recipe, given, dataset, seed)
            part = cifar100.folder(dataset, parameters)
            if not execute(notebook, part, parameters):
                return 1
    print(f"Done: records, figures and executed notebooks are in runs/{part}")
    return 0


def recipes():
    """Return the recipes by name, as recipes.toml has them."""
    return tomllib.loads((core.ROOT / "recipes.toml").read_text(encoding="utf-8"))


def literal(value):
    """Return a command line's text as the Python value it spells, or else as text."""
    try:
        return ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        return value


def known_parameters(notebook):
    return set(papermill.inspect_notebook(str(cells.FOLDER / f"{notebook}.ipynb")))


def refuse_unknown(given, chosen=cells.NOTEBOOKS):
    """Exit where a parameter is given that none of the chosen notebooks has."""
    known = set().union(*(known_parameters(notebook) for notebook in chosen))
    if unknown := sorted(set(given) - known):
        near = [match for name in unknown for match in difflib.get_close_matches(name.upper(), known, 1)]
        meant = f" Did you mean {' and '.join(near)}?" if near else ""
        sys.exit(f"unknown parameter {', '.join(unknown)}; known to {', '.join(chosen)} are {', '.join(sorted(known))}.{meant}")


def refuse_wrong(notebook, parameters):
    """Exit where a notebook's parameters have a value that its first cell would refuse, which may be an hour from now."""
    if found := limits.wrong(parameters, limits.LIMITS | {"RUN": limits.RUNS[notebook]}):
        sys.exit(f"{notebook}, wrong parameters:\n  " + "\n  ".join(found) + "\n--only NOTEBOOK runs one notebook alone.")


def refuse_paths(given):
    """Exit where a parameter that names files or a folder holds more than a name."""
    for name in ("RUN", "VARIANT"):
        value = given.get(name, "")
        if not (isinstance(value, str) and re.fullmatch(r"\w*", value)):
            sys.exit(f"{name} = {value!r}: a name is text of letters, digits and _ alone")


def parameters_of(notebook, recipe, given, dataset, seed=None):
    """Return what a notebook's parameters are overridden with; what is given by hand comes last, and wins."""
    stand_in = recipes()["stand-in"]["parameters"] if dataset == "shapes100" else {}
    parameters = stand_in | recipe.get("parameters", {}) | recipe.get(notebook, {}) | given
    parameters.pop("DATASET", None)
    if seed is not None:
        run = parameters.get("RUN", cells.parameters(notebook)["RUN"])
        parameters |= {"SEED": seed, "RUN": name_of_run(run, seed)}
    if dataset != "cifar100":  # which is the default
        parameters["DATASET"] = dataset
    known = known_parameters(notebook)
    return {name: from_here(name, value) for name, value in parameters.items() if name in known}


def from_here(name, value):
    """Return a value that names a file, or the folder of LOGS, by its whole path: notebooks are run in a folder of their own."""
    path = Path(value).expanduser() if isinstance(value, str) else Path()
    return str(path.resolve()) if (name == "LOGS" and value) or (path.suffix and path.is_file()) else value


def name_of_run(run, seed):
    """Return what the training of a seed is called: that of seed 0 has the plain name."""
    return f"{run}_seed{seed}" if seed else run


def has_gpu():
    """Whether a GPU is found. A new process looks, so that this one need not load TensorFlow."""
    return not subprocess.run([sys.executable, "-c", GPU_CHECK], cwd=core.ROOT, check=False).returncode


def announce(name, recipe, dataset, chosen, given, plain):
    """Say what is run and, where it is `plain` (one seed, a whole recipe) and nothing changed by hand, how long it takes."""
    changes = ", ".join(f"{key} = {value!r}" for key, value in given.items() if key != "DATASET")
    each = dict(zip(cells.NOTEBOOKS, EXPECTED[dataset], strict=True))
    minutes = sum(each[notebook] for notebook in chosen)
    if recipe:  # of which only the whole is known, and on CIFAR-100
        minutes = recipe.get("minutes") if dataset == "cifar100" else None
    about = f"{name}, {recipe['about']}" if recipe else "the notebooks' defaults"
    known = minutes and plain and not changes
    time_needed = f". About {minutes} minutes on two fast CPU cores, twice that or more on slow ones" if known else ""
    print(f"{cifar100.TITLES[dataset]}: {about}{f'; changed: {changes}' * bool(changes)}{time_needed}", flush=True)


def choose_dataset():
    """Return cifar100 if it is on disk or can be downloaded, else the stand-in, with a message. An altered copy is an error."""
    try:
        if not cifar100.find_cifar100():
            cifar100.download_cifar100()
    except cifar100.DownloadError as error:
        log = core.ROOT / "runs" / "download.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(f"{error}\n", encoding="utf-8")
        print("CIFAR-100 is not on this machine, and it could not be downloaded.")
        print(f"Where we looked and what failed stands in {log.relative_to(core.ROOT)}.")
        print("This run takes the stand-in shapes100 instead. Its figures say NOTHING about CIFAR-100.")
        print("To give it the data, set CIFAR100_DIR to a folder with CIFAR-100's files train, test and meta.\n")
        return "shapes100"
    except cifar100.DataError as error:
        sys.exit(str(error))
    return "cifar100"


def execute(name, part, parameters):
    """Execute one notebook into runs/<part>/notebooks, and say its answer. Returns whether all cells passed.

    Until then it is <name>-unfinished.ipynb: what an earlier run executed stays.
    """
    worker = json.loads(os.environ.get("TF_CONFIG") or "{}").get("task", {}).get("index", 0)
    copy = parameters.get("RUN", name) + f"-worker{worker}" * bool(worker)  # trainings of several names, workers: a copy each
    output = core.ROOT / "runs" / part / "notebooks" / f"{copy}.ipynb"
    unfinished = output.with_stem(f"{copy}-unfinished")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n== {name} ==", flush=True)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
            papermill.execute_notebook(
                str(cells.FOLDER / f"{name}.ipynb"), str(unfinished), parameters, cwd=str(cells.FOLDER), log_output=True,
                progress_bar=sys.stderr.isatty(), config=Config(KernelManager=transport(sockets)),
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        where = f"In [{error.exec_count}], under {heading(unfinished, error.cell_index)!r}"
        print(f"\nFAILED {name}, {where}\n{error.ename}: {error.evalue}\nExecuted so far: {unfinished}")
        return False
    except DeadKernelError:  # no error of a cell's: the system has ended the kernel
        print(f"\nFAILED {name}: its process died, killed or out of memory. {GO_ON}")
        return False
    unfinished.replace(output)
    if words := answer(output):
        print(words)
    print(f"== {name}: {(time.perf_counter() - start) / 60:.1f} minutes ==", flush=True)
    return True


def transport(folder):
    """Return how to speak with a kernel: through sockets in a folder of its own, as over TCP each kernel prints a warning."""
    return {"transport": "ipc", "ip": str(Path(folder) / "kernel")} if os.name == "posix" else {}


def heading(notebook, index):
    """Return the last heading above a cell."""
    made = nbformat.read(notebook, 4).cells[: index + 1]
    headings = [line for cell in made if cell.cell_type == "markdown" for line in cell.source.splitlines() if line[:1] == "#"]
    return headings[-1].lstrip("# ") if headings else "no heading"


def answer(notebook):
    """Return what an executed notebook prints in Markdown under its last heading, "What we saw", without the marks of bold."""
    made = nbformat.read(notebook, 4).cells
    start = max((i for i, cell in enumerate(made) if "## What we saw" in cell.source), default=len(made))
    outputs = [output for cell in made[start:] for output in cell.get("outputs", [])]
    return "\n".join(
        output.data["text/markdown"].replace("**", "") for output in outputs if "text/markdown" in output.get("data", {})
    )


def is_output(record):
    """Whether a line of papermill's log is a cell's output and not papermill's message. Strips its second line break."""
    record.msg, record.args = record.getMessage().rstrip("\n"), ()
    return not record.msg.startswith(("Executing", "Ending", "Input", "Output", "<Figure", "<IPython"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").addFilter(is_output)
    os.environ |= {"HEADLESS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    sys.exit(main())
