"""What docs/study.md says of the records, and the figure: what is a generator worth in photographs?"""

import csv
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import seaborn

from core import cifar100, measures
from core.records import low_to_high
from tools.study import plan, statistics

NONE_YET = "No run has been made yet.\n"
CURVES = {  # what the figure calls them, by the beginnings of their arms' names
    "distilled": "labels of a teacher",
    "hard": "hard labels",
}
TENTH_CURVES = {f"tenth-{labels}": words for labels, words in CURVES.items()}
FIGURES = {"worth.png": CURVES, "worth_tenth.png": TENTH_CURVES}
WORTH = "![Accuracy by the number of real images](../results/study/{})\n\n"


def texts(records):
    """Return the texts between the marks of docs/study.md, by name, made of a list of records."""
    tenth = tenth_text(drawn(records, TENTH_CURVES))
    return {"worth": worth_text(drawn(records)), "worth in a tenth": tenth, "table": table(records)}


def table(records):
    """Return the table of all rows that have a pair of runs, as Markdown."""
    effects = statistics.compare(records, plan.rows())
    if not effects:
        return NONE_YET
    lines = [
        "| use | against | seeds | effect, points | 95 % interval | adjusted p | minutes a run on two cores |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for each in effects:
        if each.p is None:
            waits = each.row.arm in plan.PROMOTED or not each.row.screened
            interval, adjusted = "seeds to come" if waits else "screened", ""
        else:
            interval = low_to_high(each.mean, each.half)
            adjusted = f"{each.adjusted:.3f}" if each.adjusted >= 0.001 else "< 0.001"
        took = "" if each.minutes is None else f"{each.minutes:.1f}"
        counts = f"{each.seeds} | {each.mean:+.2f} | {interval} | {adjusted} | {took}"
        lines.append(f"| {each.row.use} | {each.row.against} | {counts} |")
    diverged = ", ".join(record["name"] for record in records if "diverged" in record)
    tested = sum(each.p is not None for each in effects)
    counts = f"{len(effects)} of {len(plan.rows())} rows have pairs of runs, {tested} of them enough to be tested."
    text = "\n".join(lines) + f"\n\n{counts} {conditions(records)}\n"
    return text + (f"Without a result, as their loss was no longer finite: {diverged}.\n" if diverged else "")


def write_effects(records, path):
    """Write the rows of the table that have an interval to a CSV file, which notebook 3 draws."""
    columns = ("use", "against", "seeds", "points", "half_interval", "adjusted_p")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for each in statistics.compare(records, plan.rows()):
            if each.p is not None:
                numbers = (f"{value:.4g}" for value in (each.mean, each.half, each.adjusted))
                writer.writerow([each.row.use, each.row.against, each.seeds, *numbers])


def conditions(records):
    """Return in a sentence where the runs were made."""
    devices = ", ".join(sorted({record["device"] for record in records}))
    titles = ", ".join(sorted({cifar100.TITLES[record["dataset"]] for record in records}))
    return f"{titles}; {devices}."


# ---------------------------------------------------------------------------------------------------- the figure


def drawn(records, curves=CURVES):
    """Return the records that a figure compares: of the code, teacher and generator that most have.

    Teachers are kept whatever their code: their students' records name their weights. The GAN images may be of two devices, which
    draw the same but for rounding.
    """
    kept = [record for record in records if record["arm"] in plan.DRAWN and record["arm"].startswith(tuple(curves))]
    for key in ("kind", "teacher_sha256", "generator_sha256"):
        values = [statistics.kind(record) if key == "kind" else record.get(key) for record in kept]
        common = max(dict.fromkeys(value for value in values if value is not None), key=values.count, default=None)
        kept = [record for record, value in zip(kept, values, strict=True) if value in (None, common)]
    teachers = [arm.name for arm in plan.TEACHERS]
    return [record for record in records if record["arm"] in teachers] + kept if kept else []


def scores(records, arm):
    """Return the number of real images and the test accuracies in % of an arm's runs."""
    runs = [record for record in records if record["arm"] == arm and "test_accuracy" in record]
    return (runs[0]["real_images"], [100 * record["test_accuracy"] for record in runs]) if runs else (0, [])


def curve(records, labels, with_gan):
    """Return real images, mean accuracies (%) and half the intervals (0 for few seeds) of one curve, fewest images first."""
    points = [scores(records, f"{labels}-{real}" + "-gan" * with_gan) for real in plan.POINTS]
    points = sorted((real, *mean_and_half(values)) for real, values in points if values)
    return tuple(zip(*points, strict=True)) if points else ((), (), ())


def mean_and_half(values):
    """Return the mean of one value or more and half of its interval; 0 for so few seeds that the interval would say nothing."""
    return measures.mean_and_interval(values) if len(values) >= statistics.SEEDS else (sum(values) / len(values), 0.0)


def worth(real, accuracies, alone):
    """Return how many real images score as GAN images alone do: where a curve first reaches `alone`, linear in the logarithm.

    None where it does not cross it.
    """
    for left, right in zip(range(len(real)), range(1, len(real)), strict=False):
        if accuracies[left] < alone <= accuracies[right]:
            part = (alone - accuracies[left]) / (accuracies[right] - accuracies[left])
            return math.exp(math.log(real[left]) + part * math.log(real[right] / real[left]))
    return None


def worth_text(records):
    """Return the figure, and in words what GAN images alone teach."""
    _, alone = scores(records, "hard-gan-alone")
    _, teachers = scores(records, "teacher")
    if not alone or not teachers:
        return NONE_YET
    lines = [
        f"- GAN images alone, hard labels: test accuracy {in_percent(alone)}.",
        f"- The teacher itself, which has seen all {plan.ALL:,} and trained for twice as long: {teachers[0]:.1f} %.",
        *(f"- {line}" for longer in ("", "-long") if (line := part_of_teacher(records, longer, teachers[0]))),
        *(f"- {line}" for line in long_in_words(records)),
    ]
    lines += [
        f"- With {words}, what GAN images add on average turns from a gain to a loss between {few:,} and {many:,} real images."
        for labels, words in CURVES.items()
        for few, many in crossings(records, labels)
    ]
    return WORTH.format("worth.png") + "\n".join(lines) + "\n"


def tenth_text(records):
    """Return the figure of generator and teacher of a tenth of the images, and in words what its GAN images alone teach."""
    lines = [f"- The teacher: test accuracy {accuracy:.1f} %." for accuracy in scores(records, plan.TEACHERS[1].name)[1]]
    for labels, words in TENTH_CURVES.items():
        _, alone = scores(records, f"{labels}-gan-alone")
        worth = f", like {photographs}" if (photographs := like_photographs(records, labels)) else ""
        lines += [f"- GAN images alone, {words}: {in_percent(alone)}{worth}."] if alone else []
    return WORTH.format("worth_tenth.png") + "\n".join(lines) + "\n" if records else NONE_YET


def part_of_teacher(records, longer, teacher):
    """Return what a teacher's students of GAN images alone score, and which part of its accuracy (%) that is; None without such.

    `longer` ends the arm's name: "" or "-long".
    """
    _, taught = scores(records, f"distilled-gan-alone{longer}")
    times = f", {plan.LONG} times the steps" if longer else ""
    return f"GAN images alone with its labels{times}: {in_percent(taught)}, {part(taught, teacher)} of that." if taught else None


def alone_longer_in_words(records):
    """Return in a sentence what GAN images alone teach in more steps; "" where too few seeds say it."""
    teachers, alone = (scores(records, arm)[1] for arm in ("teacher", "distilled-gan-alone-long"))
    if not teachers or len(alone) < statistics.SEEDS:
        return ""
    budget, share = f"In {plan.LONG} times the steps, with a teacher's labels", part(alone, teachers[0])
    return f"{budget}, they reach {in_percent(alone)}: {share} of the teacher."


def part(values, teacher):
    """Return in words which part of a teacher's accuracy the mean of others is, all in %."""
    return f"{mean_and_half(values)[0] / teacher:.2f}"


def long_in_words(records):
    """Return sentences on the students with more steps: real images, and GAN images beside them."""
    found = []
    for arm in plan.MORE_STEPS:
        _, values = scores(records, arm.name)
        if values and arm.real:
            beside = " with GAN images" if arm.share else ""
            accuracy = in_percent(values)
            labels = CURVES[arm.name.partition("-")[0]]
            found.append(f"{arm.real:,} photographs{beside}, {labels}, {plan.LONG} times the steps: {accuracy}.")
    return found


def in_percent(values):
    """Return the mean of accuracies (%) with half of its interval, where there are seeds enough for one."""
    mean, half = mean_and_half(values)
    return f"{mean:.1f}{f' ± {half:.1f}' if half else ''} %"


def like_photographs(records, labels):
    """Return in words how many photographs teach as much as GAN images alone, where enough seeds say it, or None."""
    if not (numbers := worth_and_interval(records, labels)):
        return None
    number, low, high = map(in_two_digits, numbers)
    return f"{number} photographs with {(CURVES | TENTH_CURVES)[labels]} ({low} to {high})"


def crossings(records, labels):
    """Return the pairs of numbers of real images between which GAN images beside them turn from a gain to a loss.

    Of numbers that have enough seeds with GAN images and without.
    """
    gains = {}
    for real in plan.REAL:
        sides = [scores(records, f"{labels}-{real}{end}")[1] for end in ("-gan", "")]
        if min(map(len, sides)) >= statistics.SEEDS:
            gains[real] = np.mean(sides[0]) - np.mean(sides[1])
    return [(few, many) for few, many in itertools.pairwise(gains) if gains[few] > 0 > gains[many]]


def worth_of(records, labels):
    """Return how many real images without GAN images score as GAN images alone, or None."""
    _, alone = scores(records, f"{labels}-gan-alone")
    real, means, _ = curve(records, labels, with_gan=False)
    return worth(real, means, mean_and_half(alone)[0]) if alone else None


def worth_and_interval(records, labels):
    """Return that number and its 95 % interval (low, high), of the seeds' own, in the logarithm.

    None where fewer than three seeds have the two points of the curve that the number lies between, or where one's curve does
    not reach what its GAN images alone teach.
    """
    if not (number := worth_of(records, labels)):
        return None
    real, _, _ = curve(records, labels, with_gan=False)
    around = {max(each for each in real if each < number), min(each for each in real if each >= number)}
    seeds = {record["seed"] for record in records if record["arm"] == f"{labels}-gan-alone"}
    by_seed = [[record for record in records if record["seed"] == seed] for seed in sorted(seeds)]
    by_seed = [worth_of(own, labels) for own in by_seed if around <= {*curve(own, labels, with_gan=False)[0]}]
    if len(by_seed) < statistics.SEEDS or None in by_seed:
        return None
    mean, half = measures.mean_and_interval(np.log(by_seed))
    return number, math.exp(mean - half), math.exp(mean + half)


def in_two_digits(number):
    return f"{float(f'{number:.2g}'):,.0f}"


def draw_curve(axis, points, with_gan, colour, words):
    """Draw what `curve` returned; a point without an interval, of too few seeds, is hollow."""
    real, means, halves = map(np.array, points)
    if len(real):
        beside = real * (1.03 if with_gan else 0.97)  # so that no bar hides another
        style = {"marker": "o" if with_gan else "s", "ms": 7, "color": colour}
        name = f"{words}, {'with' if with_gan else 'without'} GAN images"
        axis.errorbar(beside, means, halves, ls="-" if with_gan else "--", lw=2.5, capsize=4, label=name, **style)
        axis.plot(beside[halves == 0], means[halves == 0], ls="", mfc="white", mew=2, zorder=4, **style)


def draw_alone(axis, records, labels, colour, name):
    """Draw what GAN images alone teach: a line, its interval as a band, and where it meets the curve of real images."""
    _, alone = scores(records, f"{labels}-gan-alone")
    if not alone:
        return
    mean, half = mean_and_half(alone)
    axis.axhline(mean, color=colour, ls=":", lw=2.5, label=name)
    axis.axhspan(mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    if numbers := worth_and_interval(records, labels):
        number = numbers[0]
        axis.plot(number, mean, "D", ms=11, color="black", zorder=5)
        words = f"like {in_two_digits(number)} photographs"
        axis.annotate(words, (number, mean), xytext=(14, -14), textcoords="offset points", va="top", fontsize=13)


def draw_rival(axis, records, labels, colour, name):
    """Draw what real images under a stronger augmentation teach in the place of GAN images, as triangles."""
    points = [scores(records, f"{labels}-{real}-stronger") for real in plan.REAL]
    points = [(1.12 * real, *mean_and_half(values)) for real, values in points if values]
    if points:
        style = {"mec": "black", "ecolor": "black", "ls": "", "marker": "^", "ms": 9, "lw": 2, "capsize": 4}
        axis.errorbar(*zip(*points, strict=True), color=colour, label=name, **style)


def draw_legend(drawing, axis):
    """Draw the legend under the axis, a column for each kind of labels."""
    handles, names = axis.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i].partition(",")[0], reverse=True)
    columns = [handles[i] for i in order], [names[i] for i in order]
    drawing.legend(*columns, fontsize=12, loc="outside lower center", ncols=2, handlelength=3.5)


def draw_figures(records, folder):
    """Draw the figure of all images, and that of a tenth, each as soon as it has a run."""
    for name, curves in FIGURES.items():
        if shown := drawn(records, curves):
            figure(shown, curves, folder / name)


def figure(records, curves, path):
    """Draw test accuracy against the number of real images, with and without GAN images, and GAN images alone; save to `path`."""
    drawing, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    axis.set_xscale("log")
    for colour, (labels, words) in zip(seaborn.color_palette("colorblind"), curves.items(), strict=False):
        for with_gan in (True, False):
            draw_curve(axis, curve(records, labels, with_gan), with_gan, colour, words)
        draw_alone(axis, records, labels, colour, f"{words}, GAN images alone")
        draw_rival(axis, records, labels, colour, f"{words}, stronger augmentation")
    drawn_at = {real for labels in curves for with_gan in (True, False) for real in curve(records, labels, with_gan)[0]}
    seen = [real for real in plan.REAL if real in drawn_at]
    axis.set_xticks(seen, [f"{real:,}" for real in seen])
    axis.minorticks_off()
    axis.set_xlabel("real images the student may see", fontsize=14)
    axis.set_ylabel("test accuracy of the student (%)", fontsize=14)
    axis.tick_params(labelsize=13)
    axis.grid(alpha=0.3)
    draw_legend(drawing, axis)
    title = ", ".join(sorted({cifar100.TITLES[record["dataset"]] for record in records}))
    students = ", ".join(sorted({record["model"] for record in records}))
    generator = "generator" if curves is CURVES else f"generator of {plan.TENTH:,} images"
    drawing.suptitle(f"{title}, {students}: what is a {generator} worth in photographs?", fontsize=14)
    drawing.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(drawing)
