"""The arms of the study, as planned in docs/study.md."""

import dataclasses
import itertools

SEEDS = (0, 1, 2, 3, 4)
THREE_SEEDS = SEEDS[:3]  # for most exploratory arms, which would otherwise take too long
SIZES = (100, 400, 1_000, 4_500)  # numbers of photographs in question 2
TRIAL_SEED = 5  # seed of the trials, which choose a recipe; they use GAN 0


@dataclasses.dataclass(frozen=True)
class Arm:
    """How the networks of one arm are trained. A trial changes some of these values."""

    name: str
    # images
    photographs: int = 45_000  # number of real training images, equal for all classes; 0: none
    source: str = "train"  # source of the photographs: "train", "tenth" (of it) or "held out"
    gan: str = ""  # generator whose images are added: "short", "long", "longer" or "tenth"
    per_class: int = 450  # number of GAN images of each class
    share: float | None = None  # fraction of GAN images in a batch; None: each image counts once
    candidates: int = 4  # GAN images drawn for each one that is kept
    noise: bool = False  # train on images of random pixels instead
    slow_classes: int = 0  # if > 0, only so many of the least accurate classes get GAN images
    # recipe
    # network whose probabilities replace the labels; True: the large one, a name: one in runs/
    teacher: bool | str = False
    temperature: float = 1.0
    steps: int = 8_448  # steps of 64 images, as many as twelve epochs of 45,000 images have
    rate: float = 1e-3
    weight_decay: float = 0.05
    pad: int = 2
    trivial_augment: bool = False
    cutmix: float = 0.0
    early_stopping: bool = False  # on the validation loss
    # choices
    stages: tuple = ()  # stages of trials; each starts from the best settings so far
    trial_steps: int = 0  # steps of a trial; 0: the same as `steps`
    borrowed: str = ""  # name of the arm whose chosen settings are used instead of trials
    # runs
    seeds: tuple[int, ...] = SEEDS
    control: str = ""  # name of an arm; seeds 1 to 4 run only if seed 0 is a point better than its


def grid(**values) -> tuple[dict, ...]:
    """Return all combinations of the values, as dictionaries."""
    combinations = itertools.product(*values.values())
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in combinations)


def augment() -> list[Arm]:
    """Return the arms of question 1: 4,500 photographs, and GANs trained only on these."""
    few = Arm("own-4500", photographs=4_500, source="tenth", steps=4_224, early_stopping=True)
    first = grid(rate=(1e-3, 2e-3, 4e-3), trivial_augment=(False, True))
    without = dataclasses.replace(few, stages=(first, ({"cutmix": 0.5}, {"weight_decay": 0.5})))
    with_gan = dataclasses.replace(
        few, name="own-4500-gan", gan="tenth", per_class=50,
        stages=(first, grid(per_class=(10, 450))),
    )  # fmt: skip
    return [without, with_gan]


def augment_more() -> list[Arm]:
    """Return an exploratory arm of question 1: GAN images and the other side's weight decay."""
    _, with_gan = augment()
    changed = {"stages": (), "borrowed": with_gan.name, "weight_decay": 0.5}
    return [dataclasses.replace(with_gan, name="own-4500-gan-decay", **changed)]


def stand_in(photographs: int) -> list[Arm]:
    """Return the arms of question 2: few photographs, and a generator that has not seen them."""
    name = f"few-{photographs}"
    few = Arm(name, photographs=photographs, source="held out", steps=2_816)
    rates = (1e-3, 4e-3)
    without = grid(rate=rates, trivial_augment=(False, True), cutmix=(0.0, 0.5))
    first = grid(rate=rates, trivial_augment=(False, True))
    second = ({"share": 0.25}, {"share": 0.75}, {"cutmix": 0.5}, {"candidates": 1})
    with_gan = dataclasses.replace(few, name=f"{name}-gan", gan="long", share=0.5)
    if photographs == 100:  # one per class, so none is left for validation
        return [
            dataclasses.replace(few, borrowed="few-400"),
            dataclasses.replace(with_gan, borrowed="few-400-gan"),
        ]
    return [
        dataclasses.replace(few, stages=(without,)),
        dataclasses.replace(with_gan, stages=(first, second)),
    ]


def compress() -> list[Arm]:
    """Return the arms of question 3: a small network learns from a large one, without its data."""
    trials = (grid(temperature=(1.0, 2.0, 4.0), rate=(1e-3, 4e-3)),)
    base = Arm("", photographs=0, teacher=True, stages=trials, trial_steps=2_112)
    sources = {
        "compress-gan": {"gan": "long", "candidates": 1, "per_class": 5_400},
        "compress-400": {"photographs": 400, "trivial_augment": True},
        "compress-gan-400": {
            "gan": "long", "candidates": 1, "per_class": 5_400, "share": 0.5, "photographs": 400,
            "seeds": THREE_SEEDS,
        },
        "compress-real": {"photographs": 45_000, "seeds": THREE_SEEDS},
        "compress-5000": {"gan": "long", "per_class": 50, "seeds": THREE_SEEDS},
        "compress-noise": {"noise": True, "seeds": (0,)},
    }  # fmt: skip
    return [dataclasses.replace(base, name=name, **values) for name, values in sources.items()]


def compress_more() -> list[Arm]:
    """Return exploratory arms of question 3: chosen images, another teacher, more steps."""
    made = {arm.name: dataclasses.replace(arm, stages=(), borrowed=arm.name) for arm in compress()}
    chosen = {"candidates": 4, "per_class": 450, "seeds": THREE_SEEDS}
    longer = ("compress-gan", "compress-gan-400", "compress-real")
    return [
        dataclasses.replace(made["compress-gan"], name="compress-chosen", **chosen),
        dataclasses.replace(
            made["compress-gan"], name="compress-small-teacher", teacher="vgg16",
            seeds=THREE_SEEDS,
        ),
        *(dataclasses.replace(made[name], name=f"{name}-3x", steps=25_344, seeds=(0,))
          for name in longer),
    ]  # fmt: skip


def doses() -> list[Arm]:
    """Return exploratory arms of question 1, with the recipe of notebook 2 at 45,000 photographs.

    They vary the number and quality of GAN images, which images count, and the number of steps.
    """
    without = Arm("dose-0", rate=2e-3, early_stopping=True)
    merged = dataclasses.replace(without, gan="long", per_class=50, seeds=THREE_SEEDS)
    others = {
        "dose-450": {"per_class": 450}, "dose-20": {"per_class": 20}, "dose-5": {"per_class": 5},
        "quality-short": {"gan": "short"}, "quality-longer": {"gan": "longer"},
        "added-50": {"steps": 9_384},  # twelve epochs of 50,000 images
        "slow-classes": {
            "slow_classes": 50, "per_class": 100, "control": "dose-0", "seeds": SEEDS,
        },
        "real-ten-times": {
            "share": 1 / 11, "per_class": 450, "control": "dose-0", "seeds": SEEDS,
        },
    }  # fmt: skip
    others |= {
        f"alone-{gan}": {"gan": gan, "photographs": 0, "per_class": 450, "seeds": (0,)}
        for gan in ("short", "long", "longer")
    }
    return [
        without,
        *(dataclasses.replace(merged, name=name, **values) for name, values in others.items()),
        dataclasses.replace(without, name="added-0", steps=9_384, seeds=THREE_SEEDS),
    ]  # fmt: skip


# In the order in which they are run, those of the planned comparisons first.
ARMS = [
    *augment(), *stand_in(400), *compress(), *stand_in(1_000), *stand_in(4_500), *stand_in(100),
    Arm("few-0-gan", photographs=0, gan="long", steps=2_816, borrowed="few-400-gan"),
    *augment_more(), *doses(), *compress_more(),
]  # fmt: skip
PLANNED = {  # by comparison: the arm with GAN images and the arm without
    "A": ("vgg16_gan", "vgg16"),  # notebook 2's runs
    "B": ("own-4500-gan", "own-4500"),
    "C": ("few-400-gan", "few-400"),
    "D": ("compress-gan", "compress-400"),
}
IN_WORDS = {
    "A": "45,000 photographs, and a GAN trained on them",
    "B": "4,500 photographs, and a GAN trained on them",
    "C": "400 photographs, and a GAN trained on 45,000 others",
    "D": "imitating a large network on GAN images instead of 400 photographs",
}
EXPLORATORY = (  # the comparison in words, the arm with GAN images (or more of them), the control
    *((f"{size:,} photographs, others' GAN", f"few-{size}-gan", f"few-{size}")
      for size in SIZES if size != 400),  # 400 is comparison C
    ("4,500 photographs, ten times the weight decay on both sides",
     "own-4500-gan-decay", "own-4500"),
    *((f"45,000 photographs, {dose} images per class", f"dose-{dose}", "dose-0")
      for dose in (5, 20, 450)),
    ("45,000 photographs, make fast, 50 images per class", "vgg16_fast_gan", "vgg16_fast"),
    ("45,000 photographs, 50 per class, a smaller GAN", "quality-short", "dose-0"),
    ("45,000 photographs, 50 per class, a better GAN", "quality-longer", "dose-0"),
    ("45,000 photographs, 50 per class added, equal steps", "added-50", "added-0"),
    ("45,000 photographs, 100 for each slow class", "slow-classes", "dose-0"),
    ("45,000 photographs that count ten times as much", "real-ten-times", "dose-0"),
    ("imitating the teacher: GAN images and 400 photographs, not these alone",
     "compress-gan-400", "compress-400"),
    ("imitating the teacher: GAN images, not 45,000 photographs", "compress-gan", "compress-real"),
    ("imitating the teacher: 5,000 GAN images, not all different ones",
     "compress-5000", "compress-gan"),
    ("imitating the teacher: chosen GAN images, not unchosen ones",
     "compress-chosen", "compress-gan"),
    ("imitating the teacher: GAN images, not 45,000 photographs, three times the steps",
     "compress-gan-3x", "compress-real-3x"),
)  # fmt: skip
