"""What the runs share: data and its split, the real images a student may see, GAN images, teachers."""

import ast
import copy
import dataclasses
import functools
import hashlib
import inspect
import json

import keras
import numpy as np

import core
import utils
from core import records, synthetic
from core.cifar100 import DataError
from core.digests import digest, file_sha256
from tools import cells
from tools.study import stand_in

TAIL, IMBALANCE = "tail", 100.0  # what stands for a fraction: a long-tailed part of the training split
GENERATORS = {  # published ones, by what they have seen
    1.0: ("cifar100", "gan_long"), 0.1: ("cifar100-0.1", "gan"), TAIL: (f"cifar100-tail{IMBALANCE:g}", "gan_tail"),
}  # fmt: skip
CODE = (  # that all runs are made with; what a use adds stands in its own file
    *(f"core/{name}.py" for name in ("batches", "checkpoints", "cifar100", "devices", "fast", "measures", "muon", "schedules")),
    *(f"tools/study/{name}.py" for name in ("batches", "distilled", "materials", "mixed", "training")),
    "tools/cells.py",
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


class Materials:
    """All that a study's runs are made of, each loaded or made when it is first asked for."""

    def __init__(self, scale):
        self.scale, self.folder = scale, records.run_folder(scale.folder)

    def of(self, arm):
        """Return the materials of an arm: these, or with the width of student that it names."""
        if "width" not in arm.options:
            return self
        other = copy.copy(self)
        other.scale = dataclasses.replace(self.scale, width=arm.options["width"])
        return other

    @functools.cached_property
    def data(self):
        return utils.load(self.scale.dataset)

    def split(self, fraction=1.0):
        """Return train and validation indices, those of the notebooks; `fraction` (0 to 1) of the training split, or TAIL."""
        if fraction == TAIL:
            train, validation = self.split()
            return train[utils.long_tail(self.data.y_train[train], IMBALANCE)], validation
        return utils.split(self.data.y_train, real_fraction=fraction)

    def chosen(self, seed, n, fraction=1.0):
        """Return the sorted indices of `n` training images, chosen by `seed`, or of all if there are not so many."""
        train, _ = self.split(fraction)
        return train[stratified(self.data.y_train[train], n, seed)]

    def photographs(self, seed, n, fraction=1.0):
        """Return `n` real training images `uint8` (n, 32, 32, 3) and labels (n,), classes as even as can be."""
        chosen = self.chosen(seed, n, fraction)
        return self.data.x_train[chosen], self.data.y_train[chosen]

    @functools.lru_cache(2)  # noqa: B019 (one object, as long as the process)
    def generator(self, fraction):
        """Return the generator that has seen `fraction` of the training split, and its file's sha256 (None: a stand-in).

        Raises `DataError` where it has seen other images than the split's, or where there is none.
        """
        if self.scale.dataset != "cifar100":
            return stand_in.generator(), None
        part, run = GENERATORS[fraction]
        folder = core.ROOT / "results" / part
        path, about = folder / f"{run}_generator.keras", folder / f"{run}.json"
        if not (path.exists() and about.exists()):
            raise DataError(f"no {path} with its record: notebook 1 makes them, `make publish` brings them (docs/study.md)")
        record = json.loads(about.read_text(encoding="utf-8"))
        train, sha256 = digest(self.split(fraction)[0]), file_sha256(path)
        seen = {"dataset": self.data.name, "dataset_md5": self.data.md5, "train_digest": train, "generator_sha256": sha256}
        if missing := seen.keys() - record.keys():
            raise DataError(f"{run}.json does not say what the generator has seen: {', '.join(sorted(missing))}")
        synthetic.check_manifest(record, **seen)
        return keras.saving.load_model(path, compile=False), sha256

    def generator_sha256(self, fraction):
        """Return the sha256 of a generator's file, or None for a stand-in."""
        return self.generator(fraction)[1]

    @functools.lru_cache(2)  # noqa: B019
    def generated(self, fraction):
        """Return GAN images `uint8` (n, 32, 32, 3), as even among classes in every first part, and labels (n,).

        They are the same for all seeds: a generator's worth is that of one set of images.
        """
        n, candidates = self.scale.gan_images, self.scale.candidates
        generator, sha256 = self.generator(fraction)
        path = self.folder / "images" / f"{(sha256 or 'stand-in')[:8]}-{n}-best-of-{candidates}.npy"
        labels = np.resize(np.arange(100), n)
        if not path.exists():
            print(f"{n:,} GAN images are drawn", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            with records.whole(path) as file:
                np.save(file, draw(generator, labels, 0, candidates))
        return np.load(path), labels

    @functools.lru_cache(2)  # noqa: B019
    def generated_digest(self, fraction):
        """Return the digest of the GAN images and their labels."""
        return digest(*self.generated(fraction))

    def own_teacher_path(self, fraction):
        """Return where this machine's teacher is saved."""
        return self.folder / f"teacher{'-tenth' * (fraction < 1)}.keras"

    def teacher_path(self, fraction):
        """Return the file of the classifier that has seen `fraction` of the training split: this machine's or the published."""
        own = self.own_teacher_path(fraction)
        published = core.ROOT / "results" / self.scale.folder / own.name
        return published if published.exists() and not own.exists() else own

    @functools.lru_cache(2)  # noqa: B019
    def teacher(self, fraction):
        """Return the finished classifier of real images alone that labels and judges. Raises `DataError` where there is none."""
        path = self.teacher_path(fraction)
        if not path.exists():
            raise DataError(f"no {path}: its run comes first in the list")
        return keras.saving.load_model(path, compile=False)


@functools.cache
def code(use=None):
    """Return a digest of the code that all runs are made with, or of what a use adds.

    It is the same for other comments, docstrings and line breaks, but may differ between versions of Python.
    """
    paths = [f"tools/study/{use}.py"] if use else CODE
    sources = [(cells.FOLDER.parent / path).read_text(encoding="utf-8") for path in paths]
    sources += [] if use else cells.tagged("vgg16_with_gan", "define")
    sources += [] if use else [inspect.getsource(function) for function in (utils.split, utils.channel_statistics)]
    return hashlib.sha256("\n".join(map(statements, sources)).encode()).hexdigest()[:16]


def statements(source):
    """Return Python source without comments, docstrings and the author's line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def stratified(labels, n, seed):
    """Return the sorted indices of `n` of the labels, or of all: classes differ by one at most, and fewer are part of more."""
    rng = np.random.default_rng((seed, 31))
    order = np.argsort(rng.random(len(labels)), kind="stable")
    place = np.empty(len(labels))  # of each label among those of its class
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.arange(len(own)) + rng.random()  # the class's own number decides who is first among equals
    return np.sort(np.argsort(place, kind="stable")[:n])


def draw(generator, labels, seed, candidates, chunk=5_000):
    """Draw one image `uint8` (32, 32, 3) for each label with notebook 1's function: the surest of so many candidates."""
    draw_chunk = cells.define("gan_synthetic_images", generator=generator, LATENT_DIM=generator.inputs[0].shape[1], SEED=seed)[
        "draw"
    ]
    parts = [draw_chunk(labels[first : first + chunk], first, candidates) for first in range(0, len(labels), chunk)]
    return np.concatenate(parts)
