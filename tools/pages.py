"""What the README, the docs and the notebooks' first cells say of the published records: no number there is typed by hand."""

import json
import statistics

import nbformat

import core
from core import cifar100, measures, records
from tools import bench, cells, parity
from tools.study import plan, report
from tools.study import statistics as study_statistics

GITHUB = "https://github.com"
REFERENCES = (  # model, test accuracy in %, how; from the projects named
    ("VGG-16", "77.98", f"300 epochs, best test epoch: [Li et al., 2021]({GITHUB}/yhhhli/SNN_Calibration)"),
    ("VGG-16 + GAN", "44.83", "the experiment this one repeats"),
)
IN_SHORT = (
    "**Beside 400 real images, images of a GAN that has seen many more help, in longer trainings too. "
    "Beside all 45,000 they do not.**\n\n"
)
VERDICTS = ("help", "no measurable effect", "harm")
RIVAL = ("GAN images do better", "no measurable difference", "GAN images do worse")
ANSWER_HEAD = (
    "| real images, labels | test accuracy with GAN images | without | difference | seeds | GAN images "
    "| other augmentation instead |",
    "|---|---:|---:|---:|---:|---|---|",
)
RIVALS = ("vgg16", "resnet"), ("vgg16_wide", "resnet_wide")  # runs with one recipe and as many multiply-adds, seed by seed
FEW = 400  # real images of the study's student that the answer tells of
LEVELS = (0.4483, 0.60, 0.65, 0.70)  # validation accuracies to reach; the first was reported for the experiment repeated here


def texts():
    """Return the texts between marks, by page and name of the mark."""
    folder = core.ROOT / "results" / "bench"
    measured = {program: json.loads((folder / f"{program}.json").read_text(encoding="utf-8")) for program in ("bench", "parity")}
    return {
        "README.md": {"answer": answer(), "summary": summary_table()},
        "docs/results.md": {
            "classifiers": records.comparison_table(classifiers("cifar100")),
            "rivals": rivals_table(),
            "pairs": pairs_text("cifar100"),
            "gans": gans_text("cifar100"),
            "scarce": f"{records.comparison_table(classifiers('cifar100-0.1'))}\n{gan_table(gans('cifar100-0.1'))}",
        },
        "docs/accuracy.md": {"trials": trials_table(), "before": before_table()},
        "docs/models.md": {"models": models_text()},
        "docs/study.md": report.texts(study_records()),
        "docs/speed.md": {"bench": bench.report(measured["bench"]), "parity": parity.report(measured["parity"])},
    }


def filled(page, name, text):
    """Return a page with a text between its marks of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.partition(start)
    if not found or end not in rest:
        raise ValueError(f"no marks {name!r}")
    return f"{before}{start}{text}{end}{rest.partition(end)[2]}"


def fill():
    """Put the texts into the pages, the tables and the notebooks' first cells."""
    for name, marks in texts().items():
        path = core.ROOT / name
        page = path.read_text(encoding="utf-8")
        for mark, text in marks.items():
            page = filled(page, mark, text)
        path.write_text(page, encoding="utf-8")
    for part in ("cifar100", "cifar100-0.1"):
        table = records.comparison_table(classifiers(part))
        (core.ROOT / "results" / part / "comparison.md").write_text(table, encoding="utf-8")
    for name in cells.NOTEBOOKS:
        notebook = nbformat.read(cells.FOLDER / f"{name}.ipynb", 4)
        notebook.cells[0].source = filled(notebook.cells[0].source, "expected", expected(name))
        nbformat.write(notebook, cells.FOLDER / f"{name}.ipynb")


def classifiers(part):
    """Return the published classifiers' records of a part."""
    return [record for record in records.read(part, published=True).values() if "test_accuracy" in record]


def gans(part):
    """Return the published GANs' records of a part, shortest training first."""
    found = records.read(part, published=True).values()
    return sorted((record for record in found if "gan_train" in record), key=lambda record: record["seconds"])


# ---------------------------------------------------------------------------------------------------- the first screen


def answer():
    """Return the answer to the project's question, as far as the published records go."""
    published = records.read("cifar100", published=True)
    _, accuracy = records.accuracies(records.gan_pairs(published, "vgg16_gan"))
    mixed, made = published["vgg16_gan"], study_records()
    effects = study_effects(made)
    harm = verdict(records.differences(accuracy)) == VERDICTS[-1]
    lines = [answer_line(f"all {plan.ALL:,}, hard labels", accuracy), *study_lines(made, effects)]
    table = "\n".join([*ANSWER_HEAD, *lines])
    merged = f"{mixed['synthetic_per_class']} GAN images a class beside {mixed['train_images'] // 100} real ones"
    return f"""{IN_SHORT if harm and helps_few(effects) else ""}{table}

Differences: percentage points, 95 % interval over students' seeds. First line: notebook 2, {merged}.
Others: {plan.FULL.steps} steps unless they say otherwise, verdicts corrected for all rows of [the study](docs/study.md).
GAN and teacher have seen {plan.ALL:,} images or, where it says {plan.TENTH:,}, these alone.

{alone_in_words(made)}"""


def answer_line(seen, accuracy, adjusted=0.0, rival=""):
    """Return a line of the answer's table: what students of the images `seen` score (0 to 1) with GAN images and without."""
    with_gan, without = (100 * statistics.fmean(values) for values in accuracy.values())
    gains = records.differences(accuracy)
    words = f"{gain_in_words(gains)} | {len(gains)} | {verdict(gains, adjusted=adjusted)} | {rival}"
    return f"| {seen} | {with_gan:.1f} % | {without:.1f} % | {words} |"


def study_records():
    """Return the study's published records."""
    return plan.listed(records.read("study", published=True).values())


def study_effects(made):
    """Return the tested effects of a list of the study's records, by (arm, control)."""
    effects = study_statistics.compare(made, plan.rows())
    return {(each.row.arm, each.row.control): each for each in effects if each.p is not None}


def helps_few(effects, real=FEW):
    """Whether GAN images beside `real` real ones help the students of all kinds of labels, in longer trainings too."""
    arms = [(f"{labels}-{real}", longer) for labels in report.CURVES for longer in ("", "-long")]
    gains = [effects.get((f"{arm}-gan{longer}", f"{arm}{longer}")) for arm, longer in arms]
    return all(gain and verdict_of(gain.mean, gain.half, adjusted=gain.adjusted) == VERDICTS[0] for gain in gains)


def study_lines(made, effects, real=FEW):
    """Return the study's lines of that table: students of `real` images, with more steps, and where none has seen all images.

    Those with more steps from their first seed on, as short trainings alone could mislead.
    """
    lines, rows = [], {(row.arm, row.control): row for row in plan.rows()}
    for labels, words in report.CURVES.items():
        for longer in ("", "-long"):
            both = f"{labels}-{real}-gan{longer}", f"{labels}-{real}{longer}"
            gain = effects.get(both)
            if gain or (longer and study_statistics.pairs(made, rows[both])):
                rival = rival_in_words(made, effects.get((both[0], f"{labels}-{real}-stronger{longer}")))
                seen = f"{real}, {words}" + f", {plan.LONG} times the steps" * bool(longer)
                lines.append(answer_line(seen, compared(made, rows[both]), gain.adjusted if gain else 1.0, rival))
    return lines + tenth_lines(made, effects, (real, plan.TENTH))


def tenth_lines(made, effects, reals):
    """Return the lines of students of so many images, where GAN and teacher have seen a tenth of all, and these among it."""
    lines = []
    for real in reals:
        if gain := effects.get((f"tenth-distilled-{real}-gan", f"tenth-distilled-{real}")):
            part = "all" if real == plan.TENTH else f"{real:,} of"
            seen = f"{part} {plan.TENTH:,}, {report.CURVES['distilled']}"
            lines.append(answer_line(seen, compared(made, gain.row), gain.adjusted))
    return lines


def rival_in_words(made, rival):
    """Return how students score that see something else in the place of GAN images, and whether these do better; "" for none."""
    if not rival:
        return ""
    accuracy = compared(made, rival.row)
    scored = 100 * statistics.fmean(list(accuracy.values())[1])
    return f"{scored:.1f} %: {verdict(records.differences(accuracy), RIVAL, rival.adjusted)}"


def alone_in_words(made):
    """Return what GAN images alone teach, or "" where too few seeds say it."""
    shown = report.drawn(made)
    worth = [f"- {words}." for labels in report.CURVES if (words := report.like_photographs(shown, labels))]
    longer = [f"\n{words}"] if (words := report.alone_longer_in_words(shown)) else []
    return "\n".join(["**GAN images alone** teach as much as\n", *worth, *longer]) + "\n" if worth else ""


def compared(made, row):
    """Return the test accuracies (0 to 1) of a row's arm and control by name, over the seeds of both."""
    sides = zip((row.arm, row.control), zip(*study_statistics.pairs(made, row), strict=True), strict=True)
    return {name: [run["test_accuracy"] for run in runs] for name, runs in sides}


def gain_in_words(differences):
    """Return the mean of paired differences (percentage points) and, of enough seeds, its 95 % interval."""
    if len(differences) < study_statistics.SEEDS:
        return f"{statistics.fmean(differences):+.2f}"
    mean, half = measures.mean_and_interval(differences)
    return f"{mean:+.2f} ({records.low_to_high(mean, half)})"


def verdict(differences, words=VERDICTS, adjusted=0.0):
    """Return in a few words what the interval of paired differences says: one of `words`, for more, neither and less.

    `adjusted` is the p value after correction for other rows, where there are any.
    """
    if len(differences) < study_statistics.SEEDS:
        return "too few seeds"
    return verdict_of(*measures.mean_and_interval(differences), words, adjusted)


def verdict_of(mean, half, words=VERDICTS, adjusted=0.0):
    """Return the verdict on a mean difference with half the width of its interval."""
    if abs(mean) <= half:
        return words[1]
    if adjusted >= 0.05:
        return "not clear after correction"
    return words[0] if mean > 0 else words[2]


def summary_table():
    """Return the README's table: each kind of classifier with its mean, interval and seeds, and what others report."""
    runs = classifiers("cifar100")
    lines, blank = summary_rows(runs), " | " * len(LEVELS)
    lines += [f"| *{model}, elsewhere* | {accuracy} % | 1 | {blank} | {how} |" for model, accuracy, how in REFERENCES]
    table, gpus = "\n".join(lines), sorted({run["device"] for run in runs if records.device_in_short(run) == "GPU"})
    return f"""{table}

Minutes: {reference_device()}; blank: another machine. "To 60 %": until all seeds have that validation accuracy.
GPU: {"; ".join(gpus)}.

{rivals_in_words()}
"""


def reference_device():
    """Return the device that notebook 2 was published from: minutes of others do not compare with its."""
    return records.read("cifar100", published=True)["vgg16"]["device"]


def summary_rows(runs):
    """Return the lines of a Markdown table with a row for each recipe, best mean first: mean, interval, minutes to each level.

    Trainings elsewhere than on `reference_device` have no minutes.
    """
    columns = ["model", "test accuracy", "seeds", "minutes", *(f"to {100 * level:g} %" for level in LEVELS), "how"]
    groups = [([run["test_accuracy"] for run in group], group) for group in records.groups(runs)]
    lines, device = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 2) + "---|"], reference_device()
    for values, group in sorted(groups, key=lambda each: -statistics.mean(each[0])):
        here = all(run["device"] == device for run in group)
        minutes = f"{statistics.mean(run['seconds'] for run in group) / 60:.0f}" if here else ""
        reached = [[records.minutes_to(level, run) if here else None for run in group] for level in LEVELS]
        reached = " | ".join(f"{statistics.mean(each):.1f}" if None not in each else "" for each in reached)
        mean = records.mean_in_percent(values)
        lines.append(f"| {group[0]['model']} | {mean} | {len(group)} | {minutes} | {reached} | {records.how(group[0])} |")
    return lines


def before_table():
    """Return the table of VGG-16 with Adam, as it was trained before, beside the present recipes."""
    trials = json.loads((core.ROOT / "results" / "trials" / "adam.json").read_text(encoding="utf-8"))
    now = [run for run in classifiers("cifar100") if run["model"].startswith("VGG-16") and not run["synthetic_per_class"]]
    return "\n".join(summary_rows(trials + now)) + "\n"


def expected(notebook):
    """Return what a notebook's first cell says: how long it takes, and what comes out."""
    published = records.read("cifar100", published=True)
    trains, says = "minutes of training", "test accuracy"
    if notebook == "gan_synthetic_images":
        rows = [("`make run`", published["gan"], "gan_train"), ("`make long`", published["gan_long"], "gan_train")]
        trains, says = "minutes for the GAN alone", "validation accuracy of a classifier trained on its images alone"
    elif notebook == "vgg16_with_gan":
        rows = [("without GAN images", published["vgg16"], "test_accuracy")]
        rows += [("with GAN images", published["vgg16_gan"], "test_accuracy")]
    else:
        rows = [(published["resnet"]["model"], published["resnet"], "test_accuracy")]
    lines = [f"| | {trains} | {says} |", "|---|---:|---:|"]
    lines += [f"| {run} | {record['seconds'] / 60:.0f} | {100 * record[key]:.1f} % |" for run, record, key in rows]
    return "\n".join(lines) + f"\n\nOn {rows[0][1]['device']}. Slower processors take twice as long or more.\n"


# ---------------------------------------------------------------------------------------------------- the docs


def rivals_table():
    """Return the table of VGG-16 beside a ResNet with the same recipe and as many multiply-adds, over the seeds of both."""
    rows = ["| VGG-16 | ResNet | ResNet less VGG-16, percentage points | seeds |", "|---|---|---:|---:|"]
    for names in RIVALS:
        vgg, resnet = shared_seeds(names)
        words = " | ".join(f"{records.label(group[0])}: {mean_of(group)}" for group in (vgg, resnet))
        rows.append(f"| {words} | {gain_in_words(gains_over(vgg, resnet))} | {len(vgg)} |")
    return "\n".join(rows) + "\n"


def rivals_in_words():
    """Return in a sentence how each ResNet differs from the VGG-16 of as many multiply-adds."""
    found = []
    for names in RIVALS:
        vgg, resnet = shared_seeds(names)
        found.append(f"{resnet[0]['model']} less {vgg[0]['model']} is {gain_in_words(gains_over(vgg, resnet))}")
    return f"[As many multiply-adds](docs/results.md#vgg-16-against-resnet): {', '.join(found)} points."


def gains_over(group, better):
    """Return by how many percentage points the test accuracies of `better` are above those of `group`, seed by seed."""
    sides = {"better": better, "group": group}
    return records.differences({name: [run["test_accuracy"] for run in runs] for name, runs in sides.items()})


def shared_seeds(names):
    """Return for two names the records that differ from the one of that name in their seed alone, of the seeds that both have."""
    named = {run["name"]: group for group in records.groups(classifiers("cifar100")) for run in group}
    seeds = set.intersection(*({run["seed"] for run in named[name]} for name in names))
    return [[run for run in named[name] if run["seed"] in seeds] for name in names]


def mean_of(group):
    """Return the mean test accuracy of records, with its interval where there are several."""
    return records.mean_in_percent([run["test_accuracy"] for run in group])


def pairs_text(part):
    """Return the table of all pairs of trainings like that of notebook 2's defaults."""
    published = records.read(part, published=True)
    table = records.pairs_table(*records.accuracies(records.gan_pairs(published, "vgg16_gan")))
    return f"Test accuracy of {published['vgg16']['model']}:\n\n{table}"


def models_text():
    """Return the table of published networks, and what the classifier is worst at."""
    folder, published = core.ROOT / "results" / "cifar100", records.read("cifar100", published=True)
    rows = ["| file | network | parameters | size | measured |", "|---|---|---:|---:|---|"]
    for path in (*records.classifier_files(folder), *sorted(folder.glob("*_generator.keras"))):
        record = published[path.stem.removesuffix("_generator")]
        scored = (
            f"GAN-train {100 * record['gan_train']:.1f} % ([what that is](results.md#gans))"
            if "gan_train" in record
            else accuracy_of(record)
        )
        size = f"{record['parameter_count']:,} | {path.stat().st_size / 1e6:.1f} MB"
        rows.append(f"| [`{path.name}`](../results/cifar100/{path.name}) | {record['model']} | {size} | {scored} |")
    return "\n".join(rows) + "\n" + "".join(f"\n{weakest(published[path.stem])}\n" for path in records.classifier_files(folder))


def accuracy_of(record):
    """Return a classifier's test accuracy in words and, where its recipe was run with several seeds, their mean and interval."""
    runs = next(runs for runs in records.groups(classifiers("cifar100")) if record in runs)
    words = f"test accuracy {100 * record['test_accuracy']:.1f} %, top-5 {100 * record['test_top5']:.1f} %"
    if len(runs) < 2:
        return f"{words}, one seed"
    return f"{words}; mean of {len(runs)} trainings {mean_of(runs)} (95 % interval)"


def weakest(record, count=8):
    """Return in a sentence which classes a classifier names worst, and which best."""
    by_class = sorted(zip(record["test_by_class"], cifar100.class_names("cifar100"), strict=True))
    worst, best = (", ".join(f"{name.replace('_', ' ')} {100 * share:.0f} %" for share, name in part)
                   for part in (by_class[:count], by_class[: -count - 1 : -1]))  # fmt: skip
    return f"Lowest test accuracy of `{record['name']}` by class: {worst}. Highest: {best}."


def trials_table():
    """Return the table of trials of recipes, as results/trials/accuracy.json has them, the narrowest and shortest first."""
    trials = json.loads((core.ROOT / "results" / "trials" / "accuracy.json").read_text(encoding="utf-8"))
    rows = ["| what | width | epochs | cost, 10¹² | minutes | validation accuracy |", "|---|---:|---:|---:|---:|---:|"]
    for trial in sorted(trials, key=lambda trial: (trial["width"], trial["epochs"], trial["val_accuracy"])):
        cost, minutes = trial["multiply_adds"] / 1e12, trial["seconds"] / 60
        counts = f"{trial['width']:g} | {trial['epochs']} | {cost:.0f} | {minutes:.0f}"
        rows.append(f"| {trial['what']} | {counts} | {100 * trial['val_accuracy']:.1f} % |")
    return "\n".join(rows) + "\n"


def gans_text(part):
    """Return the table of the GANs' records, and what its columns mean."""
    first = gans(part)[0]
    return f"""{gan_table(gans(part))}
Seed {first["seed"]}, on {first["device"]}. The last row has the same measures of real images.

- Consistency: weight of the consistency regularisation.
- Candidates: images drawn for each one that is kept, the one whose class the teacher is surest of.
- GAN-train: accuracy on real validation images of a classifier trained on GAN images alone, as many as there are real ones.
- Of real: GAN-train divided by the judge's accuracy on real images.
- GAN-test: share of the kept images that the judge, a classifier of real images, names rightly. The last row has its accuracy on
  real images. These are not selected, so the two do not compare directly.
- Fréchet: distance in the judge's features. Diversity: within a class, over that of real images.
- Memorised: share nearer to a training image than 99 % of unseen photographs are.
"""


def gan_table(made):
    """Return a Markdown table of GANs' records, in their order, with what real images would score."""
    columns = ("channels", "consistency", "epochs", "minutes", "candidates", "GAN-train", "of real", "GAN-test", "Fréchet")
    rows = [f"| GAN | {' | '.join(columns)} | diversity | memorised |", "|---|" + "---:|" * 11]
    for record in made:
        chosen = record["parameters"]
        size = f"{chosen['CHANNELS']} | {chosen.get('CONSISTENCY', 0):g}"  # records from before it was a parameter had none
        counts = f"{size} | {record['epochs_run']} | {record['seconds'] / 60:.1f} | {chosen['CANDIDATES']}"
        train, test, memorised = (f"{100 * record[key]:.1f} %" for key in ("gan_train", "gan_test", "memorised_pixels"))
        scores = f"{train} | {record['gan_train_ratio']:.2f} | {test} | {record['fid']:.1f} | {record['diversity']:.2f}"
        rows.append(f"| `{record['name']}` | {counts} | {scores} | {memorised} |")
    real = f"{100 * made[0]['gan_test_real']:.1f} %"
    rows.append(f"| real images | | | | | | {real} | 1 | {real} | {made[0]['fid_real']:.1f} | 1 | 1 % |")
    return "\n".join(rows) + "\n"
