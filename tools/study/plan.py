"""The list of runs, in the order of what they tell, and all numbers that decide what a run is and how long it takes.

Most uses are screened first: two seeds, judged by the validation images. Those that seem to help are tested with new seeds.

Not there yet: students started from the discriminator's features.
"""

import dataclasses
import json

ALL = 45_000  # real images of the training split
TENTH = 4_500  # as many as the tenth of it that the generator of results/cifar100-0.1 has seen


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is. A run's record holds these numbers; a run made with others is not the run that is asked for."""

    folder: str = "study"  # in runs/
    dataset: str = "cifar100"
    network: str = "vgg16"  # notebook 2's, or "tiny": two convolutions
    width: float = 0.25  # channels of VGG-16, as a part of the paper's
    precision: str = "float32"  # which all machines have: pairs are of one precision
    batch_size: int = 256
    epochs: int = 10  # parts that a training is cut into: a checkpoint and a line of the history each
    steps: int = 600  # optimiser steps of a student
    learning_rate: float = 0.025  # Muon's, the highest of one cycle
    warmup: float = 0.2  # part of the steps in which the rate rises
    label_smoothing: float = 0.1  # of hard labels
    cutmix: float = 0.5  # probability that a batch is mixed
    temperature: float = 2.0  # of distillation
    gan_images: int = 45_000  # drawn once
    candidates: int = 4  # images drawn for each one that is kept, as in notebook 1
    attack_images: int = 1_000  # test images that the last attack is made on


FULL = Scale()
SMOKE = Scale(
    folder="study-smoke", dataset="shapes100", network="tiny", batch_size=32, epochs=2, steps=4,
    gan_images=1_000, candidates=2, attack_images=20,
)  # fmt: skip
SECONDS_A_STEP = 0.15  # of a plain student at full scale on two fast cores: an estimate until there are records
COST = {  # a step's seconds over a plain student's
    "mixed": 1.0, "distilled": 1.35, "stronger": 1.5, "unchosen": 1.35, "beside": 1.6, "robust": 4.0,
}  # fmt: skip

DISTILLS = ("distilled", "stronger", "unchosen")  # uses whose students learn a teacher's probabilities

# ---------------------------------------------------------------------------------------------------- what a run is


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train a student; runs of an arm differ in their seed alone.

    `use` is the file that prepares it. `share` (0 to 1) of each batch is not from the `real` images but from `source`
    (mixed.SOURCES), `extra` different images at most; their labels are "hard" or the "teacher"'s. Generator and teacher have seen
    `fraction` of the training split ("tail": a long-tailed part), which the real images are taken from. `batch` and `longer`
    multiply batch size and steps.
    """

    name: str
    use: str = "mixed"
    real: int = ALL
    share: float = 0.0
    source: str = "gan"
    extra: int = ALL
    labels: str = "hard"
    fraction: float | str = 1.0
    batch: float = 1.0
    longer: int = 1
    kept: bool = False  # its network is saved: a teacher
    options: dict = dataclasses.field(default_factory=dict)  # what only its use knows

    @property
    def needs_teacher(self):
        return self.use in DISTILLS or self.labels == "teacher" or self.source == "filtered"

    @property
    def uses_gan(self):
        return self.source in ("gan", "filtered", "shuffled", "noise") and (
            self.share > 0 or self.use in ("in_turn", "partners") or self.options.get("kind") == "filled"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: what an arm gains over its control, a pair a seed. `use` and `against` say in words what they are.

    A row that is `screened` has been looked at with the seeds of `SCREEN`, so it is tested with others alone.
    """

    use: str
    arm: str
    control: str
    against: str = "the same without GAN images"
    measure: str = "test_accuracy"
    screened: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A training: an arm and a seed."""

    arm: Arm
    seed: int

    @property
    def name(self):
        return f"{self.arm.name}-seed{self.seed}"

    def parameters(self, scale):
        """Return all numbers that the run is made with, as its record holds them."""
        values = dataclasses.asdict(scale) | dataclasses.asdict(self.arm)
        return json.loads(json.dumps(values | {"steps": scale.steps * self.arm.longer}))


# ---------------------------------------------------------------------------------------------------- the figure

REAL = (100, 400, 1_000, TENTH, ALL)  # real images a student may see
BETWEEN = {"distilled": 600, "hard": 3_000}  # more points, near where GAN images alone teach as much
SHARES = {100: 0.75, 400: 0.75, 1_000: 0.75, TENTH: 0.5, ALL: 0.25}  # of GAN images beside them
LABELS = {"hard": "mixed", "distilled": "distilled"}

TEACHERS = [Arm("teacher", longer=2, kept=True), Arm("teacher-tenth", real=TENTH, fraction=0.1, longer=2, kept=True)]
ALONE = [Arm(f"{labels}-gan-alone", use, real=0, share=1.0) for labels, use in LABELS.items()]
BESIDE_REAL = [
    Arm(f"{labels}-{real}" + "-gan" * with_gan, use, real, SHARES[real] * with_gan)
    for real in (400, TENTH, 1_000, 100, ALL)
    for labels, use in reversed(LABELS.items())
    for with_gan in (True, False)
]
NEAR = [Arm(f"{labels}-{real}", LABELS[labels], real) for labels, real in BETWEEN.items()]
INSTEAD = [  # of GAN images, beside the same real ones
    Arm(f"{labels}-{real}-{source}", LABELS[labels], real, SHARES[real], source)
    for labels, source in (("distilled", "noise"), ("distilled", "stronger"), ("hard", "stronger"))
    for real in (400, TENTH)
]
HARD_CURVE = [  # how much GAN images help, and whether a stronger augmentation does as much
    arm for arm in BESIDE_REAL + INSTEAD if arm.use == "mixed" and arm.real in (400, 1_000, TENTH)
]
POINTS = sorted((*REAL, *BETWEEN.values()))
FIRST = (  # what tells most
    "distilled-400-gan", "distilled-400", "distilled-400-stronger", "distilled-400-noise", "distilled-gan-alone",
    "distilled-1000", "hard-gan-alone", "distilled-4500-gan", "distilled-4500",
)  # fmt: skip
BOTH = [  # GAN images under the stronger augmentation, beside the same real ones
    Arm("distilled-400-gan-stronger", "stronger", 400, SHARES[400]),
    Arm("distilled-gan-alone-stronger", "stronger", real=0, share=1.0),
]
HEADLINE = [{arm.name: arm for arm in ALONE + BESIDE_REAL + INSTEAD}[name] for name in FIRST]
LONG = 3  # times the steps: is what the figure shows a matter of short trainings?
MORE_STEPS = [
    Arm("distilled-400-gan-long", "distilled", 400, SHARES[400], longer=LONG),
    Arm("distilled-400-long", "distilled", 400, longer=LONG),
    Arm("distilled-gan-alone-long", "distilled", 0, 1.0, longer=LONG),
    Arm("distilled-1000-long", "distilled", 1_000, longer=LONG),
    Arm("hard-400-gan-long", "mixed", 400, SHARES[400], longer=LONG),
    Arm("hard-400-long", "mixed", 400, longer=LONG),
]
IN_TENTH = (
    "distilled-gan-alone", "distilled-400-gan", "distilled-4500-gan", "distilled-100", "distilled-400", "distilled-1000",
    "distilled-4500", "hard-gan-alone", "hard-1000", "hard-4500",
)  # fmt: skip
TENTH_CURVE = [  # the same figure of less: generator and teacher have seen a tenth, and the student's images are among it
    dataclasses.replace(arm, name=f"tenth-{arm.name}", fraction=0.1) for arm in ALONE + BESIDE_REAL if arm.name in IN_TENTH
]
DRAWN = {arm.name for arm in ALONE + BESIDE_REAL + NEAR + INSTEAD + MORE_STEPS + TENTH_CURVE}  # or told of beside the figure
WIDER = [  # does it hold for a network of twice the width?
    dataclasses.replace(arm, name=f"{arm.name}-wide", options={"width": 0.5}) for arm in BESIDE_REAL if arm.real == 400
]
UNCHOSEN = [
    Arm("distilled-gan-alone-unchosen" + "-long" * (longer > 1), "unchosen", 0, 1.0, "unchosen", longer=longer)
    for longer in (1, LONG)
]

# ---------------------------------------------------------------------------------------------------- the other uses

PLACES = {"all": {"real": ALL, "fraction": 1.0}, "tenth": {"real": TENTH, "fraction": 0.1}}  # generators of their own


def merged(place, ratio, kind="", **changes):
    """Return the arm that adds `ratio` images for each real one; a batch holds them in that ratio too."""
    name = f"{place}-merged-{ratio:g}" + f"-{kind}" * bool(kind)
    extra = round(ratio * PLACES[place]["real"])
    return Arm(name, **PLACES[place], share=ratio / (1 + ratio), extra=extra, **changes)


AGAIN = Arm("all-plain", **PLACES["all"])  # hard-45000 once more: its first seeds with JAX, like the uses beside it
PLAIN = {"all": AGAIN.name, "tenth": f"tenth-hard-{TENTH}"}  # students of the same real images alone
MERGED = [merged(place, ratio) for place in PLACES for ratio in (0.04, 0.25, 1.0)]
LONGER = [
    Arm("hard-45000-longer", longer=2),
    Arm("hard-45000-gan-longer", share=SHARES[ALL], longer=2),
    Arm(f"tenth-hard-{TENTH}-longer", **PLACES["tenth"], longer=2),
]
# GAN images for each real one, where they are filtered, labelled by the teacher, or replaced by what they have to beat
RATIO = {"all": 0.25, "tenth": 1.0}
FILTERED = [merged(place, ratio, "filtered", source="filtered") for place, ratio in RATIO.items()]
TAUGHT = [
    merged(place, ratio, f"taught{kind}", labels="teacher", source=source)
    for place, ratio in RATIO.items()
    for kind, source in (("", "gan"), ("-duplicates", "duplicates"))
]
CONTROLS = [
    *INSTEAD,
    *(
        merged(place, ratio, source, source=source)
        for place, ratio in RATIO.items()
        for source in ("duplicates", "noise", "shuffled", "stronger")
    ),
    Arm("tenth-fewer", **PLACES["tenth"], batch=0.5),  # the same number of real images seen as with one GAN image for each
    Arm("all-fewer", **PLACES["all"], batch=0.8),
    Arm("distilled-400-fewer", "distilled", 400, batch=1 - SHARES[400]),
    Arm("distilled-4500-fewer", "distilled", TENTH, batch=1 - SHARES[TENTH]),
]
IN_TURN = [Arm(f"{place}-first-0.25", "in_turn", **PLACES[place], options={"first": 0.25}) for place in PLACES]
PARTNERS = [
    Arm(f"{place}-partners-{who}", "partners", **PLACES[place], source=who) for place in PLACES for who in ("gan", "real")
]
BESIDE = [
    *(Arm(f"{place}-beside", "beside", **PLACES[place], share=0.5, options={"weight": 0.5}) for place in PLACES),
    *(Arm(f"{place}-more", **PLACES[place], batch=1.5) for place in PLACES),
]
TAIL = [
    Arm(f"tail-{kind}", "tail", fraction="tail", options={"kind": kind}) for kind in ("filled", "plain", "adjusted", "repeated")
]
ATTACK = {"radius": 8.0, "steps": 3, "last_steps": 20, "restarts": 2}  # radius in grey levels of 0 to 255
SCREENED = [AGAIN, *MERGED, *FILTERED, *TAUGHT, *IN_TURN, *PARTNERS, *BESIDE, *TAIL, *CONTROLS, *BOTH, *UNCHOSEN[:1]]
ROBUST = [Arm(f"robust-{share:g}", "robust", share=share, options=ATTACK) for share in (0.3, 0.7, 0.0)]

# Students' seeds. The teachers' is 0, as a student could gain from its teacher's first weights.
SCREEN, TEST, REST, NEW = (1, 2), (1, 2, 3), (4, 5), (3, 4, 5, 6)
BLOCKS = [  # (arms, seeds), in order
    (TEACHERS[:1], (0,)),
    (HEADLINE, TEST),
    (BOTH[:1], TEST),
    (HEADLINE[:3], REST),
    ([arm for arm in HEADLINE if arm.source != "noise"], REST),
    (HARD_CURVE, TEST),
    (NEAR, TEST),
    (NEAR[:1], REST),
    (UNCHOSEN[1:] + MORE_STEPS, SCREEN[:1]),
    (MORE_STEPS[:4], TEST),
    (BESIDE_REAL, TEST),
    (TEACHERS[1:], (0,)),
    (TENTH_CURVE + SCREENED + ROBUST, SCREEN[:1]),  # one seed of every use before any gets a second
    (WIDER, SCREEN[:1]),
    (MORE_STEPS[:2], REST),  # five seeds like the other rows beside 400: decided after three were seen (docs/study.md)
    (TENTH_CURVE, TEST),
    (SCREENED + ROBUST, SCREEN),
    (MORE_STEPS, TEST),
    (WIDER + LONGER + UNCHOSEN[1:], SCREEN),
]
# Names of screened arms that gained a point of validation accuracy or more over each control, on the average of both seeds, and
# something with each seed. With their controls they get new seeds.
PROMOTED = ("distilled-400-gan-wide", "hard-400-gan-wide", "all-first-0.25")


def runs(smoke=False):
    """Return all runs in order, each once; for a smoke test, the first of each arm."""
    listed, first = {}, {}
    for arms, seeds in [*BLOCKS, (promoted(), NEW)]:
        for seed in seeds:
            for arm in arms:
                listed.setdefault(Run(arm, seed).name, Run(arm, seed))
                first.setdefault(arm.name, Run(arm, seed))
    return list((first if smoke else listed).values())


def promoted():
    """Return the screened arms that are tested with new seeds, and the controls of their rows."""
    names = {*PROMOTED, *(row.control for row in rows() if row.arm in PROMOTED)}
    return [arm for arm in {arm.name: arm for arms, _ in BLOCKS for arm in arms}.values() if arm.name in names]


def chosen(all_runs, only=None):
    """Return those of the runs whose use is `only` or whose name holds it, with their controls and teachers; all for None."""
    if only is None:
        return all_runs
    named = {(run.arm.name, run.seed) for run in all_runs if run.arm.use == only or only in run.name}
    named |= {(row.control, seed) for row in rows() for arm, seed in named if row.arm == arm}
    wanted = [run for run in all_runs if (run.arm.name, run.seed) in named]
    needed = {run.arm.fraction for run in wanted if run.arm.needs_teacher}
    return [run for run in all_runs if run in wanted or (run.arm.kept and run.arm.fraction in needed)]


def listed(records, scale=FULL):
    """Return those of the records that are of a run in the list, made with its numbers."""
    numbers = {run.name: run.parameters(scale) for run in runs()}
    return [record for record in records if numbers.get(record["name"]) == record["parameters"]]


# ---------------------------------------------------------------------------------------------------- the table

FEWER = "the same real images, none in their place"
WORDS = {"distilled": "distilled", "hard": "hard labels"}  # what the table calls them
NOISE, STRONGER = "noise in their place", "a stronger augmentation in their place"


def rows():
    """Return the rows of the table in order. One is screened where the first list has too few pairs to test it."""
    found = alone_rows() + beside_rows() + more_rows()
    for place in PLACES:
        found += merged_rows(place) + control_rows(place) + other_rows(place)
    found += tail_rows() + robust_rows()
    seeds = first_seeds()
    return [dataclasses.replace(row, screened=len(seeds[row.arm] & seeds[row.control]) < len(TEST)) for row in found]


def first_seeds():
    """Return the sets of seeds, by the names of arms, of the list as it was before any arm was promoted."""
    found = {}
    for arms, seeds in BLOCKS:
        for arm in arms:
            found.setdefault(arm.name, set()).update(seeds)
    return found


def beside_rows():
    """Return the rows of GAN images beside real ones, against these alone and against what could stand in their place."""

    def row(labels, real, control, against=Row.against):
        return Row(f"beside {real:,} real images, {WORDS[labels]}", f"{labels}-{real}-gan", f"{labels}-{real}{control}", against)

    found = [row(labels, real, "") for labels in ("distilled", "hard") for real in REAL]
    found += [row("distilled", real, "-fewer", FEWER) for real in (400, TENTH)]
    for real in (400, TENTH):
        found += [row("distilled", real, "-noise", NOISE), row("distilled", real, "-stronger", STRONGER)]
    return found + [row("hard", real, "-stronger", STRONGER) for real in (400, TENTH)]


def more_rows():
    """Return the rows of GAN images beside real ones with more steps, changed more, or with a teacher of a tenth."""
    long = f"beside 400 real images, {{}}, {LONG} times the steps"
    changed = "beside 400 real images, GAN images under a stronger augmentation, distilled"
    longer = "beside 45,000 real images, hard labels, twice the steps"
    wide = "beside 400 real images, {}, a student of twice the width"
    return [
        *(Row(wide.format(words), f"{labels}-400-gan-wide", f"{labels}-400-wide") for labels, words in WORDS.items()),
        Row(long.format("distilled"), "distilled-400-gan-long", "distilled-400-long"),
        Row(long.format("hard labels"), "hard-400-gan-long", "hard-400-long"),
        Row(changed, "distilled-400-gan-stronger", "distilled-400-stronger", STRONGER),
        Row(changed, "distilled-400-gan-stronger", "distilled-400-gan", "GAN images as they are"),
        *(
            Row(f"a tenth: beside {real:,} real images, distilled", f"tenth-distilled-{real}-gan", f"tenth-distilled-{real}")
            for real in (400, TENTH)
        ),
        Row(longer, "hard-45000-gan-longer", "hard-45000-longer"),
        Row("no GAN images: a tenth, twice the steps", f"{PLAIN['tenth']}-longer", PLAIN["tenth"], "the steps of all others"),
    ]


def tail_rows():
    """Return the rows of a long tail that GAN images fill up."""
    use, arm = "long tail filled up", "tail-filled"
    return [
        Row(use, arm, "tail-plain"),
        Row(use, arm, "tail-repeated", "filled up with duplicates of real images"),
        Row(use, arm, "tail-adjusted", "logit adjustment"),
    ]


def robust_rows():
    """Return the rows of adversarial training, under attack and not."""
    found = []
    for share in (0.3, 0.7):
        use = f"adversarial training, {share:g} of a batch"
        found.append(Row(f"{use}, under attack", f"robust-{share:g}", "robust-0", measure="robust_accuracy"))
        found.append(Row(f"{use}, not under attack", f"robust-{share:g}", "robust-0"))
    return found


def alone_rows():
    """Return the rows of GAN images alone."""
    alone, photographs = "GAN images alone, distilled", "1,000 real images alone, distilled"
    every = "GAN images alone, none chosen, distilled"
    found = [
        Row(alone, "distilled-gan-alone", "hard-gan-alone", "the same with hard labels"),
        Row(alone, "distilled-gan-alone", "distilled-1000", photographs),
        Row(every, "distilled-gan-alone-unchosen", "distilled-gan-alone", "the best of four"),
        Row(
            "GAN images alone under a stronger augmentation, distilled",
            "distilled-gan-alone-stronger",
            "distilled-gan-alone",
            "the same as they are",
        ),
    ]
    long = f", {LONG} times the steps"
    return [
        *found,
        Row(alone + long, "distilled-gan-alone-long", "distilled-gan-alone", "the steps of all others"),
        Row(alone + long, "distilled-gan-alone-long", "distilled-1000-long", f"{photographs}{long}"),
        Row(every + long, "distilled-gan-alone-unchosen-long", "distilled-gan-alone-long", "the best of four"),
    ]


def merged_rows(place):
    """Return the rows of GAN images merged with real ones: against these alone, and what filter and teacher's labels change."""
    words = f"{place}: merged, {{:g}} for each real image, {{}}".format
    found = [Row(words(ratio, "hard labels"), merged(place, ratio).name, PLAIN[place]) for ratio in (0.04, 0.25, 1.0)]
    ratio = RATIO[place]
    hard, filtered, taught = (merged(place, ratio, kind).name for kind in ("", "filtered", "taught"))
    for_filter, for_teacher = words(ratio, "hard labels, worst tenth dropped"), words(ratio, "labels of the teacher")
    return [
        *found,
        Row(for_filter, filtered, PLAIN[place]),
        Row(for_filter, filtered, hard, "the same, none dropped"),
        Row(for_teacher, taught, f"{taught}-duplicates", "duplicates of real images in their place, labelled so too"),
        Row(for_teacher, taught, hard, "the same with hard labels"),
    ]


def control_rows(place):
    """Return the rows of merged GAN images against what they have to beat."""
    ratio = RATIO[place]
    use, arm = f"{place}: merged, {ratio:g} for each real image, hard labels", merged(place, ratio).name
    controls = {
        "duplicates": "duplicates of real images in their place", "noise": NOISE,
        "shuffled": "the same with shuffled labels", "stronger": STRONGER,
    }  # fmt: skip
    found = [Row(use, arm, merged(place, ratio, source).name, words) for source, words in controls.items()]
    return [*found, Row(use, arm, f"{place}-fewer", FEWER)]


def other_rows(place):
    """Return the rows of the uses that are not merging."""
    partners, beside = (
        f"{place}: CutMix with GAN images of the same class",
        f"{place}: beside, batch-norm statistics of their own",
    )
    return [
        Row(f"{place}: GAN images first, for 0.25 of the steps", f"{place}-first-0.25", PLAIN[place]),
        Row(partners, f"{place}-partners-gan", f"{place}-partners-real", "CutMix with real images of the same class"),
        Row(partners, f"{place}-partners-gan", PLAIN[place], "plain CutMix"),
        Row(beside, f"{place}-beside", PLAIN[place]),
        Row(beside, f"{place}-beside", f"{place}-more", "as many more real images a step"),
    ]
