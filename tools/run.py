"""Run the notebooks from top to bottom without Jupyter, with default parameters or a recipe's.

`make run`, `make wide` and so on call this program. Records, figures, networks and executed
notebooks are written to runs/, and images to synthetic_images/runs/. Published files do not change.
"""

import argparse
import ast
import json
import logging
import os
import re
import subprocess
import sys
import time
import tomllib
from difflib import get_close_matches
from pathlib import Path

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError

import core
from core import cifar100, datasets, files
from core.parameters import wrong_values
from tools import cells

CONTINUE = "Run the same command again to continue from the newest checkpoint."


def main() -> int:
    named = {name: recipe for name, recipe in recipes().items() if name != "defaults"}
    about = "; ".join(f"{name}: {recipe['about']}" for name, recipe in named.items())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", choices=named, help=about)
    parser.add_argument("--dataset", choices=datasets.DATASETS,
                        help="default: cifar100, or shapes100 if that is unavailable")  # fmt: skip
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="set a parameter, such as -p EPOCHS 2; repeatable")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, help="run the notebooks once per seed")
    parser.add_argument("--only", choices=cells.NOTEBOOKS, help="run only this notebook")
    arguments = parser.parse_args()
    logging.getLogger("asyncio").setLevel("CRITICAL")  # hides its errors about a stopped kernel
    try:
        return run(arguments, named.get(arguments.recipe, {}))
    except KeyboardInterrupt:
        print(f"\nStopped. {CONTINUE}")
        return 130  # the usual exit status after Ctrl-C
    except OSError as error:  # such as a full disk or a read-only folder
        sys.exit(f"The run stopped: {error}. Fix this first. {CONTINUE}")


def run(arguments, recipe: dict) -> int:
    """Check everything that the command line asks for, run it, and return the exit status."""
    given = {name: literal(value) for name, value in arguments.p}
    if given.get("PICTURE"):  # notebooks run in another folder
        given["PICTURE"] = str(Path(str(given["PICTURE"])).expanduser().absolute())
    notebooks = [arguments.only] if arguments.only else recipe.get("notebooks", cells.NOTEBOOKS)
    reject_unknown(given, notebooks)
    if recipe.get("needs_gpu") and not ask_devices("has_gpu"):
        sys.exit(
            f"make {arguments.recipe} needs a GPU, but none was found. Use make wide on a CPU."
        )
    asked = given.pop("DATASET", None)
    dataset = arguments.dataset or asked or choose_dataset()
    planned = []
    for seed in arguments.seeds or [None]:  # notebook 1 trains one GAN per seed
        for notebook in notebooks:
            parameters = parameters_of(notebook, recipe, given, dataset, seed)
            planned.append((notebook, parameters))
            if wrong := wrong_values(parameters, notebook):
                faults = "\n  ".join([f"Invalid parameter values for {notebook}:", *wrong])
                hint = "" if arguments.only else "\nTo run a single notebook, add --only NOTEBOOK."
                sys.exit(faults + hint)
    for notebook in notebooks:
        warn_about_later_values(notebook)
    announce(arguments, recipe, dataset, given)
    for notebook, parameters in planned:
        fraction = parameters.get("REAL_FRACTION", 1.0)
        folder_name = datasets.run_folder_name(dataset, fraction)
        if not execute(notebook, folder_name, parameters):
            return 1
    print(f"Done: records, figures and executed notebooks are in runs/{folder_name}")
    return 0


def recipes() -> dict:
    """Return the recipes in recipes.toml by name."""
    return tomllib.loads((core.ROOT / "recipes.toml").read_text(encoding="utf-8"))


def warn_about_later_values(notebook: str):
    """Print which parameters a later code cell sets again, because the later value is used."""
    parameters = cells.parameters(notebook).keys()
    for number, cell in enumerate(cells.read(notebook), 1):
        if "parameters" in cell.metadata.get("tags", []):
            continue
        for name, value in re.findall(r"(?m)^ *([A-Z_]+) = ([^#\n]+)", cell.source):
            if name in parameters:
                words = f"code cell {number} sets {name} = {value.strip()}"
                print(f"{notebook}: {words}, which overrides the parameter")


def literal(text: str):
    """Return the value of a Python literal, of "true" or of "false", or else the text itself."""
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text


def reject_unknown(given: dict, notebooks):
    """Exit with a message if a parameter is given that none of the notebooks has."""
    known = set().union(*(cells.parameters(notebook) for notebook in notebooks))
    for name in sorted(given.keys() - known):
        near = get_close_matches(name.upper(), known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        listed = f"The parameters of {', '.join(notebooks)} are {', '.join(sorted(known))}."
        sys.exit(f"There is no parameter {name}.{hint}\n{listed}")


def changes(recipe: dict, notebook: str) -> dict:
    """Return the parameters of a notebook that a recipe changes."""
    return recipe.get("parameters", {}) | recipe.get(notebook, {})


def parameters_of(notebook: str, recipe: dict, given: dict, dataset: str, seed=None) -> dict:
    """Return the values that replace a notebook's defaults.

    They come from the recipe, the dataset, the seed and the command line (`given`), which wins.
    """
    parameters = changes(recipe, notebook) | given
    defaults = cells.parameters(notebook)
    if seed is not None:
        run_name = run_name_of_seed(parameters.get("RUN", defaults["RUN"]), seed)
        parameters |= {"SEED": seed, "RUN": run_name}
    if dataset != defaults["DATASET"]:
        parameters["DATASET"] = dataset
    return {name: value for name, value in parameters.items() if name in defaults}


def run_name_of_seed(run_name: str, seed: int) -> str:
    return f"{run_name}_seed{seed}" if seed else run_name


def ask_devices(function: str):
    """Return what a function of core/devices.py returns, without loading TensorFlow here."""
    script = f"import json; from core import devices; print(json.dumps(devices.{function}()))"
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, cwd=core.ROOT, capture_output=True, text=True, check=True)
    return json.loads(printed.stdout.splitlines()[-1])


def announce(arguments, recipe: dict, dataset: str, given: dict):
    """Print what will run and, unless parameters were changed, how many minutes it takes here."""
    words = f"{arguments.recipe}, {recipe['about']}" if recipe else "the notebooks' defaults"
    minutes = (recipe or recipes()["defaults"]).get("minutes")
    if given:
        values = [f"{name} = {value!r}" for name, value in given.items()]
        words += f", with {', '.join(values)}"
    elif minutes and dataset == "cifar100" and not (arguments.seeds or arguments.only):
        minutes = f"{minutes_here(minutes):.0f} minutes"
        words += f". This takes about {minutes} on this machine if nothing else is running"
    print(f"{datasets.TITLES[dataset]}: {words}", flush=True)


def minutes_here(minutes: dict) -> float:
    """Return how many minutes notebooks take on this machine, estimated from those on another.

    The same convolutions have been timed on both. The GAN (notebook 1) computes in float32, and the
    other notebooks in the faster precision.
    """
    here, there = ask_devices("convolution_seconds"), recipes()["defaults"]["convolutions"]
    slower = min(here.values()) / min(there.values())
    slower_gan = here["float32"] / there["float32"]
    return sum(
        value * (slower_gan if notebook == cells.NOTEBOOKS[0] else slower)
        for notebook, value in minutes.items()
    )


def choose_dataset() -> str:
    """Return "cifar100" if it is found or can be downloaded, and otherwise "shapes100"."""
    try:
        if not cifar100.find_cifar100():
            cifar100.download_cifar100()
    except cifar100.DownloadError as error:
        words = "This run uses shapes100, the built-in substitute, instead."
        words += " Its results say NOTHING about CIFAR-100."
        print(f"{error}\n{words}\n")
        return "shapes100"
    except cifar100.DataError as error:  # CIFAR100_DIR is set, but holds no intact copy
        sys.exit(str(error))
    return "cifar100"


def execute(notebook: str, folder_name: str, parameters: dict) -> bool:
    """Execute one notebook into runs/<folder name>/notebooks, and return whether all cells passed.

    Until they have, the file is named <name>-unfinished.ipynb, so that an earlier one is not lost.
    """
    name = parameters.get("RUN", notebook)
    if worker := json.loads(os.environ.get("TF_CONFIG") or "{}").get("task", {}).get("index"):
        name = f"{name}-worker{worker}"
    output = core.ROOT / "runs" / folder_name / "notebooks" / f"{name}.ipynb"
    unfinished = output.with_stem(f"{name}-unfinished")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n== {notebook} ==", flush=True)
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            cells.FOLDER / f"{notebook}.ipynb", unfinished, parameters, cwd=cells.FOLDER,
            kernel_manager_class=QuietKernelManager, progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stderr,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        print(f"\n{notebook} failed in cell [{error.exec_count}].")
        print(f"{error.ename}: {error.evalue}")
        print(f"The cells executed so far are in {unfinished}")
    except DeadKernelError:  # no cell failed: the system has ended the kernel
        print(f"\n{notebook} failed: its process was killed, possibly because memory ran out.")
        print(f"If so, lower BATCH_SIZE or close other programs. {CONTINUE}")
    else:
        files.replace(unfinished, output)
        minutes = (time.perf_counter() - start) / 60
        print(f"{result_table(output)}\n== {notebook}: {minutes:.1f} minutes ==", flush=True)
        return True
    return False


class QuietKernelManager(AsyncKernelManager):
    """A kernel manager that starts this Python and discards the kernel's standard error.

    The output of cells arrives in messages. If standard error were kept, each line of it would
    appear twice, and a stopped kernel would print a traceback. The kernel is specified here because
    the name that the notebooks ask for may stand for another Python on this machine.
    """

    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3", language="python",
    )  # fmt: skip

    async def start_kernel(self, **arguments):
        return await self._async_start_kernel(stderr=subprocess.DEVNULL, **arguments)


def result_table(path: Path) -> str:
    """Return the table that the last cell of an executed notebook shows."""
    outputs = cells.code_cells(nbformat.read(path, 4))[-1].outputs
    tables = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return "\n".join(tables).replace("**", "")


if __name__ == "__main__":
    os.environ |= {"HEADLESS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    sys.exit(main())
