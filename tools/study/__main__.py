"""Run the missing parts of the study: `make study`. It can be stopped and resumed at any time."""

import argparse
import dataclasses
import shutil

from core import devices, records
from tools.study import arms, figures, report, trainer

SMOKE = ("own-4500-gan", "few-400", "few-400-gan", "compress-400", "compress-gan-400")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="ARM", help="run only these arms")
    parser.add_argument("--smoke", action="store_true", help="run a few steps of one arm per kind")
    parser.add_argument("--report", action="store_true", help="only print tables and draw figures")
    chosen = parser.parse_args()
    if chosen.report:
        return show()
    if chosen.smoke:
        return smoke()
    folder = records.checkpoint_folder(trainer.FOLDER, "precision")
    print(f"precision: {devices.set_precision('auto', folder)}, {devices.device()}")
    for arm in arms.ARMS:
        if chosen.only and arm.name not in chosen.only:
            continue
        final = trainer.choose(arm)
        for seed in arm.seeds:
            if seed and arm.control and not trainer.is_a_point_better(arm):
                break
            record = trainer.train(final, seed)
            print(f"{record['name']}: {record['test_accuracy']:.1%}. {time_left()}", flush=True)


def show() -> None:
    """Print the tables of the runs on this machine, and draw their figures in runs/study."""
    found = report.by_seed(published=False)
    for table in (report.planned_table, report.exploratory_table, report.arms_table):
        print(table(found))
    names = ("few-0-gan", *(f"few-{size}" for size in arms.SIZES))
    if all(len(found.get(name, {})) == len(arms.SEEDS) for name in names):
        middle, low, high = report.worth_in_photographs(found)
        print(f"GAN images alone are worth {middle:.0f} photographs ({low:.0f} to {high:.0f})")
    folder = records.run_folder("study")
    figures.draw(found, folder)
    figures.draw_quality(records.read("cifar100"), found, folder / "quality.png")


def time_left() -> str:
    """Return the estimated hours of the missing runs, as a sentence, based on finished runs."""
    done = [record for record in records.read(trainer.FOLDER).values() if "arm" in record]
    names = {record["name"] for record in done}
    seconds, per_step = 0.0, {}
    for teacher in (False, True):
        alike = [record for record in done if bool(record["teacher"]) == teacher]
        steps = sum(record["steps"] for record in alike)
        per_step[teacher] = sum(record["seconds"] for record in alike) / max(1, steps)
    per_step[True] = per_step[True] or 3 * per_step[False]  # until a run with a teacher has ended
    for arm in arms.ARMS:
        seeds = arm.seeds[:1] if arm.control else arm.seeds  # the others may not be needed
        missing = [seed for seed in seeds if f"{arm.name}-seed{seed}" not in names]
        finished = sum(record["arm"] == arm.name and record["trial"] for record in done)
        trials = sum(map(len, arm.stages)) - finished
        steps = arm.steps * len(missing) + trials * (arm.trial_steps or arm.steps)
        seconds += steps * per_step[bool(arm.teacher)]
    return f"About {seconds / 3600:.1f} hours are left"


def smoke() -> None:
    """Run a few steps of one arm of each kind on the stand-in, and write to runs/study-smoke."""
    trainer.DATASET, trainer.FOLDER = "shapes100", "study-smoke"
    trainer.GENERATORS = dict.fromkeys(trainer.GENERATORS, ("cifar100", "gan_long"))
    shutil.rmtree(records.run_folder(trainer.FOLDER), ignore_errors=True)  # results of the last try
    for arm in arms.ARMS:
        if arm.name in SMOKE:
            few = {"steps": 24, "trial_steps": 12, "per_class": min(arm.per_class, 5)}
            few["stages"] = tuple(stage[:1] for stage in arm.stages)
            small = dataclasses.replace(arm, **few)
            trainer.train(trainer.choose(small), seed=0)


if __name__ == "__main__":
    main()
