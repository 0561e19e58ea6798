"""What pages say of the records: numbers traced to them, and a verdict that they bear out."""

import re

import nbformat
import pytest
from conftest import ROOT

from tools import cells, pages
from tools.study import plan, report
from tools.study.statistics import Effect

PAGES = [(page, name) for page, marks in pages.texts().items() for name in marks]


@pytest.mark.parametrize(("page", "name"), PAGES)
def test_a_page_says_what_the_records_say(page, name):
    text = pages.texts()[page][name]
    assert f"<!-- {name} -->\n{text}<!-- /{name} -->" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", cells.NOTEBOOKS)
def test_a_notebook_s_first_cell_says_what_the_records_say(name):
    first = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells[0].source
    assert f"<!-- expected -->\n{pages.expected(name)}<!-- /expected -->" in first


def test_readme_types_no_result_by_hand():
    """Outside the marks no accuracy, no difference and no interval."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in pages.texts()["README.md"]:
        page = re.sub(f"<!-- {name} -->.*<!-- /{name} -->", "", page, flags=re.S)
    assert not re.findall(r"\d+(?:\.\d+)? ?%|[+-]\d+\.\d+|\bpoints", page)


def test_readme_is_short_and_its_links_lead_somewhere():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len([word for word in page.split() if any(map(str.isalnum, word))]) <= 900
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert link.startswith("http") or (path.parent / link).exists(), (path.name, link)


def test_every_test_that_the_docs_name_is_there():
    named = {name for page in (ROOT / "docs").glob("*.md") for name in re.findall(r"test_\w+", page.read_text(encoding="utf-8"))}
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    assert len(named) > 40
    assert [name for name in named - sources.keys() if not any(f"def {name}(" in source for source in sources.values())] == []


@pytest.mark.parametrize(
    ("differences", "words"),
    [([1.0, 1.1], "too few seeds"), ([-1.0, 0.9, 0.2], "no measurable"), ([1.0, 1.1, 0.9], "help"), ([-1.0, -1.1, -0.9], "harm")],
)
def test_the_verdict_follows_from_the_interval(differences, words):
    assert words in pages.verdict(differences)
    assert "after correction" not in pages.verdict(differences)


@pytest.mark.parametrize(
    ("means", "adjusted", "short"),
    [
        ((5.0, 9.0, 2.0, 9.0), 0.04, True),
        ((5.0, 9.0, 2.0, 9.0), 0.05, False),
        ((5.0, 0.5, 2.0, 9.0), 0.04, False),
        ((5.0, 9.0, 2.0, 0.5), 0.04, False),
        ((5.0, -5.0, 2.0, 9.0), 0.04, False),
        ((5.0, 9.0, 2.0), 0.04, False),
    ],
)
def test_the_answer_in_one_sentence_holds_for_all_labels_and_lengths(monkeypatch, means, adjusted, short):
    """Beside all real images the published runs say that GAN images harm."""
    arms = [(f"{labels}-{pages.FEW}", longer) for longer in ("", "-long") for labels in report.CURVES]
    rows = [plan.Row("use", f"{arm}-gan{longer}", f"{arm}{longer}") for arm, longer in arms]
    effects = [Effect(row, 3, mean, 1.0, 0.01, 4.0, adjusted) for row, mean in zip(rows, means, strict=False)]
    monkeypatch.setattr(pages, "study_effects", lambda made: {(each.row.arm, each.row.control): each for each in effects})
    monkeypatch.setattr(pages, "study_lines", lambda made, effects: [])
    assert pages.answer().startswith(pages.IN_SHORT) == short


def test_few_seeds_have_no_interval():
    assert pages.gain_in_words([1.0]) == "+1.00"
    assert pages.gain_in_words([1.0, 2.0]) == "+1.50"
    assert pages.gain_in_words([1.0, 1.0, 1.0]) == "+1.00 (+1.00 to +1.00)"
    line = pages.answer_line("some", {"with": [0.5, 0.6], "without": [0.4, 0.5]})
    assert line == "| some | 55.0 % | 45.0 % | +10.00 | 2 | too few seeds |  |"


def test_the_verdict_of_one_row_of_many_heeds_the_others():
    assert pages.verdict([1.0, 1.1, 0.9], adjusted=0.049) == "help"
    assert pages.verdict([1.0, 1.1, 0.9], adjusted=0.05) == "not clear after correction"
    assert pages.verdict([-1.0, 0.9, 0.2], adjusted=0.9) == "no measurable effect"


def test_a_text_goes_between_its_marks_alone():
    page = "a\n<!-- x -->\nold<!-- /x -->\nb"
    assert pages.filled(page, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="no marks 'y'"):
        pages.filled(page, "y", "new")
