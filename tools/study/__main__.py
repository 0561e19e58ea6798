"""Make the runs of the study that are missing, in order: `make study`. It may be stopped at any moment and goes on from there.

On a large GPU it may run several times at once: each process takes the runs that no other has.
Records go to runs/study/, and at the end the table and the figure. `make study-smoke` makes one run of each arm on the stand-in.
"""

import argparse
import functools
import importlib
import os
import sys
import time

import filelock

from core import checkpoints, devices, records
from core.cifar100 import DataError
from tools.study import plan, report, training
from tools.study.materials import Materials, code
from tools.study.statistics import backend, same_code

# TensorFlow keeps some 30 MB of every network that it has trained: then a new process goes on. Windows cannot do that.
RUNS_A_PROCESS = 40 if os.name == "posix" else None
this_device = functools.cache(devices.device)  # asked for each run and record; it reads a file


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tools.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="on the stand-in, with a tiny network: a few minutes")
    parser.add_argument(
        "--only", metavar="USE", help="runs of this use, or whose name has this in it, with their controls and teachers"
    )
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and stop")
    arguments = parser.parse_args()
    scale = plan.SMOKE if arguments.smoke else plan.FULL
    chosen = plan.chosen(plan.runs(arguments.smoke), arguments.only)
    if not chosen:
        sys.exit(f"no run of {arguments.only!r}; uses are {', '.join(sorted({run.arm.use for run in plan.runs()}))}")
    try:
        return show(chosen, Materials(scale)) if arguments.list else study(chosen, scale, arguments.minutes)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the newest checkpoint.")
        return 130  # as a shell has it
    except (DataError, checkpoints.CheckpointError) as error:
        sys.exit(str(error))


def study(runs, scale, minutes=None):
    """Make the missing ones of the runs, then the table and the figure; return how many runs failed."""
    materials, begun = Materials(scale), time.perf_counter()
    devices.set_precision(scale.precision)
    done, failed = make(runs, materials, minutes, RUNS_A_PROCESS)
    write_report(scale, materials.folder)
    if done and done + failed == RUNS_A_PROCESS:
        sys.stdout.flush()
        rest = [] if minutes is None else ["--minutes", str(minutes - (time.perf_counter() - begun) / 60)]
        os.execv(sys.executable, [sys.executable, "-m", "tools.study", *sys.argv[1:], *rest])
    return failed


def show(runs, materials):
    """Print each run, whether it is done, and how long it takes."""
    scale = materials.scale
    made = known(scale)
    for run in runs:
        done = is_done(run, materials, made)
        print(f"{'done' if done else 'missing':8}{seconds(run, scale, made) / 60:6.1f} min  {run.arm.use:10} {run.name}")
    missing = [run for run in runs if not is_done(run, materials, made)]
    print(f"{len(runs) - len(missing)} of {len(runs)} done, {hours(missing, scale, made)} left")


def make(runs, materials, minutes=None, most=None):
    """Make the missing ones of the runs, at most `most`, and say how far it is; return how many were made and how many failed."""
    begun, done, failed, scale = time.perf_counter(), 0, 0, materials.scale
    uses = {run.arm.use: (importlib.import_module(f"tools.study.{run.arm.use}"), code(run.arm.use)) for run in runs}
    environment = records.environment() | {"code": code()}  # now: what this process has loaded
    made = known(scale)
    missing = [run for run in runs if not is_done(run, materials, made)]
    name_others(made, environment)
    name_strangers(made)
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done, {hours(missing, scale, made)} left", flush=True)
    for number, run in enumerate(missing, 1):
        if minutes is not None and time.perf_counter() - begun > 60 * minutes:
            print(f"{minutes:g} minutes are over: {len(missing) - number + 1} runs left")
            break
        if done + failed == most:
            break
        if not take(run, materials):
            continue
        record = attempt(run, uses, materials, environment)
        if record is None:
            failed += 1
            continue
        made[run.name], done = record, done + 1
        took = f"validation {100 * record['val_accuracy']:.1f} %, {record['total_seconds']:.0f} s"
        print(f"{number:3} of {len(missing)}  {run.name}: {took}; {hours(missing[number:], scale, made)} left", flush=True)
    return done, failed


def attempt(run, uses, materials, environment):
    """Make a run and return its record, or None where it failed, which is printed."""
    try:
        return make_one(run, *uses[run.arm.use], materials, environment)
    except (checkpoints.DivergedError, DataError) as error:
        print(f"FAILED {run.name}: {error}", flush=True)
        return None


def take(run, materials):
    """Take a run for this process, and return whether that went: not where another process makes it, or has made it meanwhile.

    Raises `CheckpointError` where its folder cannot be written.
    """
    folder = training.checkpoint_folder(run, materials)
    try:
        checkpoints.claim(folder)
    except checkpoints.CheckpointError as error:
        if isinstance(error.__cause__, filelock.Timeout):
            return False
        raise
    if is_done(run, materials, records.read(materials.scale.folder)):  # published ones were known before
        training.clear(folder)
        return False
    return True


def make_one(run, use, use_code, materials, environment):
    """Make a run by its use's module, write its record and return it.

    The record of one that diverged has no result, but the key `diverged`. Raises `DivergedError` then, and `DataError` where a
    teacher or a generator is missing, which leaves no record.
    """
    try:
        record = training.train(run, use, materials)
    except checkpoints.DivergedError as error:
        training.finish(run, materials, training.about(run, materials) | {"diverged": str(error)}, environment)
        raise
    now = {"use_code": use_code, "peak_memory_mb": records.peak_memory_mb()}  # memory: not that of the start
    training.finish(run, materials, record, environment | now)
    return record | environment | now


def name_others(made, environment):
    """Name the records among those made, by name, that are of other code; a student's record names its teacher's weights."""
    teachers, own = [arm.name for arm in plan.TEACHERS], same_code(environment["code"])
    if others := [name for name, record in made.items() if same_code(record["code"]) != own and record["arm"] not in teachers]:
        print(f"Made with other code: {', '.join(others)}. They count as done, and none is compared with a new run.")


def name_strangers(made):
    """Name the pairs of runs among those made, by name, that are of two backends: a row does not count them."""
    by_arm = {(record["arm"], record["seed"]): record for record in made.values()}
    pairs = [
        (each, by_arm.get((row.control, each["seed"]))) for row in plan.rows() for each in made.values() if each["arm"] == row.arm
    ]
    if strangers := [f"{one['name']} and {other['arm']}" for one, other in pairs if other and backend(one) != backend(other)]:
        print(f"Of two backends, so no pairs: {', '.join(strangers)}.")


def known(scale):
    """Return all records by name: the published ones, and this machine's, which stand before them."""
    return records.read(scale.folder, published=True) | records.read(scale.folder)


def is_done(run, materials, made):
    """Whether a run's record is there, made with the numbers that the list has now; a teacher's network has to be there too."""
    same = made.get(run.name, {}).get("parameters") == run.parameters(materials.scale)
    return same and (not run.arm.kept or materials.teacher_path(run.arm.fraction).exists())


def seconds(run, scale, made):
    """Return how long a run takes: as long as records of its use took a step on this device, or else an estimate."""
    measured = [record for record in made.values() if record["use"] == run.arm.use and "total_seconds" in record]
    alike = [record for record in measured if record["device"] == this_device()]
    if alike:
        done = sum(work(record["parameters"]) for record in alike)
        return work(run.parameters(scale)) * sum(record["total_seconds"] for record in alike) / done
    step = plan.SECONDS_A_STEP * plan.COST.get(run.arm.use, 1.0) * scale.batch_size / plan.FULL.batch_size
    return work(run.parameters(scale)) * step


def work(parameters):
    """Return how much a run has to do, in steps of a whole batch and a network of the scale's width."""
    wider = parameters["options"].get("width", parameters["width"]) / parameters["width"]
    return parameters["steps"] * parameters["batch"] * wider**2


def hours(runs, scale, made):
    """Return in words how long runs take together."""
    total = sum(seconds(run, scale, made) for run in runs)
    return f"{total / 3600:.1f} hours" if total > 5400 else f"{total / 60:.0f} minutes"


def write_report(scale, folder):
    """Write the table and the figure of this machine's records beside them."""
    made = plan.listed(known(scale).values(), scale)
    text = "\n".join(report.texts(made).values()).replace("../results/study/", "")
    (folder / "study.md").write_text(text, encoding="utf-8")
    report.draw_figures(made, folder)
    print(f"Records, table (study.md) and figure (worth.png) are in runs/{scale.folder}")


if __name__ == "__main__":
    sys.exit(main())
