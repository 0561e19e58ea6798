"""The arms of the study, as docs/study.md plans them."""

import dataclasses
import itertools

SEEDS = (0, 1, 2, 3, 4)
TRIAL_SEED = 5  # of the runs that choose a recipe; they use GAN 0


@dataclasses.dataclass(frozen=True)
class Arm:
    """How the networks of one arm are trained. A trial changes some of these values."""

    name: str
    # images
    photographs: int = 45_000  # real training images, as many of each class; 0: none
    source: str = "train"  # of the photographs: "train", "tenth" (a tenth of these) or "held out"
    gan: str = ""  # which generator's images join them: "short", "long", "longer" or "tenth"
    per_class: int = 450  # GAN images of each class to draw batches from
    share: float | None = None  # of GAN images in a batch; None: as in the merged images
    candidates: int = 4  # GAN images drawn for each one that is kept
    noise: bool = False  # images of random pixels instead
    slow_classes: int = 0  # GAN images join only so many classes, those learned most slowly
    # recipe
    teacher: bool = False  # whether the labels are the large network's probabilities
    temperature: float = 1.0
    steps: int = 8_448  # of 64 images: as many as twelve epochs of 45,000 have
    rate: float = 1e-3
    weight_decay: float = 0.05
    pad: int = 2
    trivial_augment: bool = False
    cutmix: float = 0.0
    early_stopping: bool = False  # by the validation images
    # choices
    stages: tuple = ()  # of trials; each starts from the best settings of the stage before
    trial_steps: int = 0  # of a trial; 0: as many as in the end
    borrowed: str = ""  # the arm whose chosen settings are used, in place of trials of its own


def grid(**values) -> tuple[dict, ...]:
    """Return all combinations of the values as dictionaries."""
    return tuple(
        dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())
    )


def augment() -> list[Arm]:
    """Question 1: 4,500 photographs, and GANs that have seen nothing else."""
    few = Arm("own-4500", photographs=4_500, source="tenth", steps=4_224, early_stopping=True)
    first = grid(rate=(1e-3, 2e-3, 4e-3), trivial_augment=(False, True))
    without = dataclasses.replace(few, stages=(first, ({"cutmix": 0.5}, {"weight_decay": 0.5})))
    with_gan = dataclasses.replace(
        few, name="own-4500-gan", gan="tenth", per_class=50,
        stages=(first, grid(per_class=(10, 450))),
    )  # fmt: skip
    return [without, with_gan]


def stand_in(photographs: int) -> list[Arm]:
    """Question 2: somebody's generator and few photographs that it has not seen."""
    name = f"few-{photographs}"
    few = Arm(name, photographs=photographs, source="held out", steps=2_816)
    rates = (1e-3, 4e-3)
    without = grid(rate=rates, trivial_augment=(False, True), cutmix=(0.0, 0.5))
    first = grid(rate=rates, trivial_augment=(False, True))
    second = ({"share": 0.25}, {"share": 0.75}, {"cutmix": 0.5}, {"candidates": 1})
    with_gan = dataclasses.replace(few, name=f"{name}-gan", gan="long", share=0.5)
    if photographs == 100:  # one per class: none is left to choose a recipe by
        return [
            dataclasses.replace(few, borrowed="few-400"),
            dataclasses.replace(with_gan, borrowed="few-400-gan"),
        ]
    return [
        dataclasses.replace(few, stages=(without,)),
        dataclasses.replace(with_gan, stages=(first, second)),
    ]


def compress() -> list[Arm]:
    """Question 3: a small network from a large one, without its data."""
    trials = (grid(temperature=(1.0, 2.0, 4.0), rate=(1e-3, 4e-3)),)
    base = Arm("", photographs=0, teacher=True, stages=trials, trial_steps=2_112)
    sources = {
        "compress-gan": {"gan": "long", "candidates": 1, "per_class": 5_400},
        "compress-400": {"photographs": 400, "trivial_augment": True},
        "compress-gan-400": {
            "gan": "long", "candidates": 1, "per_class": 5_400, "share": 0.5, "photographs": 400,
        },
        "compress-real": {"photographs": 45_000},
        "compress-5000": {"gan": "long", "per_class": 50},
        "compress-noise": {"noise": True},
    }  # fmt: skip
    return [dataclasses.replace(base, name=name, **values) for name, values in sources.items()]


def exploratory() -> list[Arm]:
    """What is looked at besides; none of it has a p value."""
    merged = Arm("merged", gan="long", early_stopping=True)
    doses = [dataclasses.replace(merged, name=f"dose-{n}", per_class=n) for n in (5, 20, 450)]
    alone = Arm("few-0-gan", photographs=0, gan="long", steps=2_816, borrowed="few-400-gan")
    return [
        *doses,
        Arm("dose-0", early_stopping=True),
        *(dataclasses.replace(merged, name=f"quality-{gan}", gan=gan, per_class=50)
          for gan in ("short", "longer")),
        dataclasses.replace(merged, name="slow-classes", slow_classes=50, per_class=100),
        dataclasses.replace(merged, name="real-ten-times", share=1 / 11),
        alone,
    ]  # fmt: skip


# In the order in which they are run: what is planned comes first.
ARMS = [
    *augment(), *stand_in(400), *compress()[:2], *compress()[2:], *stand_in(1_000),
    *stand_in(4_500), *stand_in(100), *exploratory(),
]  # fmt: skip
PLANNED = {  # the comparison: the arm with GAN images and the one without
    "A": ("vgg16_gan", "vgg16"),  # notebook 2's runs
    "B": ("own-4500-gan", "own-4500"),
    "C": ("few-400-gan", "few-400"),
    "D": ("compress-gan", "compress-400"),
}
