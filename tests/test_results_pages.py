"""Every table, figure and picture of the pages leads to a stored file and a command."""

import importlib.util
import pathlib
import re

import pasted
import pytest

from benchmarks import tables
from benchmarks.tables import PICTURES

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
# What `results.md` lists, topic by topic.
RESULTS = sorted(set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "results.md").read_text())))
COMMANDS = {
    **{f"table {name}": table.command for name, table in tables.TABLES.items()},
    **{f"picture {row.file}": row.command for row in PICTURES},
}
# All that begin a comment: of figures, of tables, and of tables of words.
MARKS = {"from", "setting", "published", "table", "end", "words", "results"}


def _stem(page):
    return page.stem


def _exists(module):
    return importlib.util.find_spec(module) is not None


def test_all_results_pages_are_listed():
    assert {path.name for path in DOCS.glob("results_*.md")} <= set(RESULTS)
    assert len(RESULTS) > 12


@pytest.mark.parametrize("page", PAGES, ids=_stem)
def test_a_page_shows_what_the_files_hold(page):
    text = page.read_text()
    assert tables.fill(text, tables.TABLES) == text, "run python -m benchmarks.tables"


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_names_files_and_stands_on_a_page(name):
    for file in tables.TABLES[name].files:
        assert (ROOT / "results" / file).is_file(), file
    mark = f"<!-- table {name} -->"
    assert any(mark in tables.without_fences(page.read_text()) for page in PAGES)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_pasted(name):
    lines = pasted.lines(COMMANDS[name])
    assert lines
    for module in (line.split()[0] for line in lines):
        assert _exists(module), module


@pytest.mark.parametrize("page", PAGES, ids=_stem)
def test_figures_of_tables_are_not_typed(page):
    text = tables.without_tables(tables.without_fences(page.read_text()))
    for table in re.findall(r"^(?:\|.*\n)+", text, re.M):
        cells = [cell.strip() for cell in re.split(r"[|\n]", table)]
        numbers = [c for c in cells if re.fullmatch(r"[\d.,]+(e-?\d+)?( ?%)?", c)]
        assert not numbers, numbers


@pytest.mark.parametrize("page", PAGES, ids=_stem)
def test_figures_in_prose_are_those_of_the_files(page):
    wrong = [
        f"{paragraph.text[:70]}: {', '.join(found)}"
        for paragraph in tables.paragraphs(page.read_text())
        if (found := tables.untold(paragraph))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=_stem)
def test_a_mark_of_prose_says_where_its_figures_are_from(page):
    for paragraph in tables.paragraphs(page.read_text()):
        for mark in paragraph.marks:
            if mark.kind == "from":
                assert mark.files
                for file in mark.files:
                    assert list(ROOT.glob(file)), file
                lines = pasted.lines(mark.source)
                assert lines or (ROOT / mark.source.split()[0]).is_file(), mark
                assert all(_exists(line.split()[0]) for line in lines)
            elif mark.kind != "setting":
                assert mark.source, mark


@pytest.mark.parametrize("page", PAGES, ids=_stem)
def test_nothing_is_marked_as_in_no_file(page):
    text = tables.without_fences(page.read_text())
    assert set(re.findall(r"<!--\s*(\w+)", text)) <= MARKS
    assert "not stored" not in " ".join(text.split())


@pytest.mark.parametrize("name", RESULTS)
def test_what_a_page_names_is_stored(name):
    text = (DOCS / name).read_text()
    for path in re.findall(r"`(results/[\w./*-]+)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), path
    named = r"python\s+-m\s+((?:benchmarks|experiments)\.\w+)(?![\w$])"
    commands = re.findall(named, text)
    assert commands, "no command on the page"
    assert all(map(_exists, commands))


def _shown(page):
    """Pictures of a page, shown or linked, as paths from the root."""
    found = re.findall(r"\]\(([^)]+\.png)\)", page.read_text())
    return {
        (page.parent / name).resolve().relative_to(ROOT).as_posix() for name in found
    }


def test_every_picture_was_drawn_from_a_stored_file():
    shown = set().union(*map(_shown, PAGES))
    assert shown == {row.file for row in PICTURES}
    for row in PICTURES:
        assert (ROOT / row.file).is_file(), row.file
        assert (ROOT / row.stored).is_file(), row.stored


def test_a_figure_that_is_typed_over_is_seen():
    name = "cold"
    page = f"<!-- table {name} -->\nx\n<!-- end -->\n"
    right = tables.fill(page, tables.TABLES)
    wrong = right.replace("27.2", "27.3")
    assert wrong != right
    assert tables.fill(wrong, tables.TABLES) == right
    with pytest.raises(ValueError, match="There is no table nothing"):
        tables.fill("<!-- table nothing -->\n<!-- end -->", tables.TABLES)


@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
@pytest.mark.parametrize("indent", ["", "   "])
def test_a_mark_within_a_fence_is_an_example(fence, indent):
    marks = f"{indent}<!-- table cold -->\n{indent}<!-- end -->\n"
    page = f"{indent}{fence}text\n{marks}{indent}{fence}\n"
    assert tables.fill(page, tables.TABLES) == page
    # What follows a fence is live again.
    assert "27.2" in tables.fill(page + marks.replace(" " * 3, ""), tables.TABLES)


COLD = "<!-- from results/benchmarks/cold.json; python -m benchmarks.bench_cold"


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("It took 27.2 s.", ["27.2 s has no source"]),
        (f"It took 27.2 s.\n{COLD} -->", []),
        (f"It took 27.9 s.\n{COLD} -->", ["27.9 s has no source"]),
        (f"Twice as long: 9.9 times.\n{COLD}; derived: 9.9 -->", []),
        (f"It took 27.2 s.\n{COLD}; derived: 9.9 -->", ["9.9 of a mark"]),
        ("It took 27.9 s.\n<!-- not stored; by hand -->", ["27.9 s has no source"]),
        ("At 0.1, 27.9 s.\n<!-- setting: 0.1 -->", ["27.9 s has no source"]),
        ("Within 30 dB.\n<!-- setting -->", []),
        (f"It is 1e-9.\n{COLD} -->\n<!-- setting -->", ["a mark for all"]),
        ("16 of 16 images came back.", ["16 has no source"]),
        ("From 3 to 7 minutes.", ["3 minutes has", "7 minutes has"]),
        ("`--eps=0.1` and $x^{0.5}$, arXiv:2302.01428, Python 3.11.", []),
        ("```sh\nsleep 0.1\n```", []),
        ("Ten images of width 1024 and 20 seeds.", []),
    ],
)
def test_a_measurement_in_prose_wants_a_source(page, wrong):
    found = [s for p in tables.paragraphs(page) for s in tables.untold(p)]
    assert len(found) == len(wrong), found
    assert all(map(str.startswith, found, wrong)), found


@pytest.mark.parametrize(
    ("shown", "unit", "stored", "is_it"),
    [
        ("27.2", "s", 27.249, True),
        ("27.2", "s", 27.251, False),
        ("4e-6", "", 4.4e-6, True),
        ("4e-6", "", 4.6e-6, False),
        ("31", "%", 0.314, True),
        ("2", "minutes", 118.0, True),
        ("1.1", "GB", 1.12e9, True),
        ("1,762", "certificates", 1762, True),
    ],
)
def test_a_figure_is_looked_up_to_its_last_digit(shown, unit, stored, is_it):
    assert tables.is_among(tables.Figure(shown, unit), [stored]) == is_it


def test_a_time_or_a_seed_is_no_source_of_what_is_neither():
    """A median of 1.1 was once found among seconds."""
    mark = "<!-- from results/benchmarks/closed_units_general.json; x -->"
    wrong, right = f"Medians of 1.1 and 1.7.\n{mark}", f"It took 1.1 s.\n{mark}"
    told = [tables.untold(tables.paragraphs(page)[0]) for page in (wrong, right)]
    assert told == [["1.1 has no source", "1.7 has no source"], []]


def test_commands_are_written_out_as_a_shell_does():
    loop = 'for x in a b; do python -m m.n $x --y="c d"; done; python -m m.o'
    assert pasted.lines(loop) == ["m.n a --y=c d", "m.n b --y=c d", "m.o"]
