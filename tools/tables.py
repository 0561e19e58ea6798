"""Tables of published records for the README, the docs and the notebooks' first cells.

Programs generate only the tables; people write the sentences around them.
"""

import nbformat
import pandas

import core
from core import comparison, records
from tools import bench, cells, classify, run
from tools.study import report

RESULTS = core.ROOT / "results"
ONLY_IN_RESULTS = ("`make wide`", "`make wide-resnet`")  # the README's table is for newcomers
TRAINS = {  # by notebook: the records in its first cell's table, and the key and name of a score
    "gan_synthetic_images": (("gan", "gan_long"), "gan_train", "GAN-train"),
    "vgg16_with_gan": (("vgg16", "vgg16_gan"), "test_accuracy", "test accuracy"),
    "resnet_baseline": (("resnet", "imagenet"), "test_accuracy", "test accuracy"),
}


def tables() -> dict[str, dict[str, str]]:
    """Return the Markdown tables, by page and by the name of the marks that enclose them."""
    runs = comparison.frame(list(records.read("cifar100", published=True).values()))
    speed, study = RESULTS / "bench" / "bench.json", report.by_seed()
    return {
        "README.md": {
            "answers": report.planned_table(study, without=("comparison", "adjusted p")),
            "summary": summary_table(comparison.groups(runs)),
        },
        "docs/results.md": {
            "classifiers": comparison.runs_table(runs).replace("published: ", ""),
            "pairs": "\n".join(comparison.pairs_table(pair) for pair in comparison.pairs(runs)),
            "gans": gan_table(),
            "arms": report.arms_table(study),
            "exploratory": report.exploratory_table(study),
        },
        "docs/models.md": {"models": models_table()},
        "docs/study.md": {"planned": report.planned_table(study)},
        "docs/speed.md": {"bench": bench.report(records.read_json(speed))},
    }


def summary_table(groups: list[pandas.DataFrame]) -> str:
    """Return a Markdown table with one row per group of runs, and the command that repeats it.

    Groups with the description's optimiser, Adam, come first, and those trained on a GPU last. Each
    time, VGG-16 comes before ResNet and the ImageNet model, and shorter runs come first.
    """

    def place(group):
        first = group.iloc[0]
        on_gpu, not_adam = first["hardware"] == "GPU", first["optimizer"] != "adam"
        model = "ImageNet" in first["model"], "ResNet" in first["model"]
        return on_gpu, not_adam, *model, first["epochs_run"], -group["test_accuracy"].mean()

    groups = sorted(groups, key=place)
    table = comparison.groups_frame(groups).drop(columns="hardware")  # docs/results.md has it
    table.insert(1, "command", [command(group) for group in groups])
    return comparison.markdown(table[~table["command"].isin(ONLY_IN_RESULTS)])


def command(group: pandas.DataFrame) -> str:
    """Return the command that trains a group of runs, which differ only in their seed.

    Those with GAN images used the images of `make long`.
    """
    first, made = group.iloc[0], "`make run`"
    name = first["parameters"]["RUN"].partition("_seed")[0]
    for recipe_name, recipe in run.recipes().items():
        if run.changes(recipe, first["notebook"]).get("RUN") == name:
            made = f"`make {recipe_name}`"
    if not first["synthetic_per_class"]:
        return made
    # `make run` would train another GAN first.
    return f"`make long`, then {'notebook 2' if made == '`make run`' else made}"


def fill() -> None:
    """Write the tables into the pages and the notebooks."""
    for page, marks in tables().items():
        path = core.ROOT / page
        text = path.read_text(encoding="utf-8")
        for mark, table in marks.items():
            text = filled(text, mark, table)
        path.write_text(text, encoding="utf-8")
    for name in cells.NOTEBOOKS:
        path = cells.FOLDER / f"{name}.ipynb"
        notebook = nbformat.read(path, 4)
        first = notebook.cells[0]
        first.source = filled(first.source, "expected", expected(name))
        nbformat.write(notebook, path)


def filled(page: str, mark: str, table: str) -> str:
    """Return `page` with `table` between the marks of this name. Raises `ValueError` if none."""
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, found, rest = page.partition(start)
    if not found or end not in rest:
        raise ValueError(f"the page has no marks {mark!r}")
    return f"{before}{start}{table}{end}{rest.partition(end)[2]}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def expected(notebook: str) -> str:
    """Return the table of a notebook's first cell: minutes and scores of published runs."""
    names, key, measure = TRAINS[notebook]
    published, rows = records.read("cifar100", published=True), []
    for name in names:
        record = published[name]
        minutes = f"{record['seconds'] / 60:.0f}"
        rows.append([f"`{name}`", minutes, percent(record[key]), record["device"]])
    columns = ["run", "minutes of training", measure, "hardware"]
    return comparison.markdown(pandas.DataFrame(rows, columns=columns))


def gan_table() -> str:
    """Return the table of published GANs, shortest training first, and then of real images."""
    published = records.read("cifar100", published=True).values()
    gans = [record for record in published if "fid" in record]
    made = pandas.DataFrame(gans).sort_values("seconds", kind="stable")
    chosen = pandas.DataFrame(made["parameters"].to_list(), index=made.index)
    table = pandas.DataFrame({
        "GAN": made["name"].map("`{}`".format),
        "channels": chosen["CHANNELS"],
        "epochs": made["epochs_run"],
        "minutes": made["seconds"].div(60).map("{:.1f}".format),
        "candidates": chosen["CANDIDATES"],
        "GAN-train": made["gan_train"].map(percent),
        "as a share of real images": made["gan_train_ratio"].map("{:.2f}".format),
        "GAN-test": made["gan_test"].map(percent),
        "Fréchet distance": made["fid"].map("{:.1f}".format),
        "diversity": made["diversity"].map("{:.2f}".format),
        "memorised": made["memorised_pixels"].map(percent),
    }, dtype=object)  # fmt: skip
    real, fid = percent(made["gan_test_real"][0]), f"{made['fid_real'][0]:.1f}"
    table.loc["real"] = ["real images", *"––––", real, 1, real, fid, 1, "1%"]
    return comparison.markdown(table)


def models_table() -> str:
    """Return the table of published networks, with the scores in their records."""
    folder, published = RESULTS / "cifar100", records.read("cifar100", published=True)
    rows = []
    for path in (classify.NETWORK, *sorted(folder.glob("*_generator.keras"))):
        record = published[path.stem.removesuffix("_generator")]
        key = "gan_train" if "gan_train" in record else "test_accuracy"
        measure = "GAN-train" if key == "gan_train" else "test accuracy"
        rows.append({
            "file": f"[`{path.name}`](../results/cifar100/{path.name})",
            "network": record["model"],
            "parameters": f"{record['parameter_count']:,}",
            "size": f"{path.stat().st_size / 1e6:.1f} MB",
            "measured": f"{measure} {percent(record[key])}",
        })  # fmt: skip
    return comparison.markdown(pandas.DataFrame(rows))
