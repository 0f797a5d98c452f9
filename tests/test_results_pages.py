"""Every table and picture of the results pages leads to a stored file and a command."""

import importlib.util
import pathlib
import re

import pytest

from benchmarks import tables

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What `results.md` lists, topic by topic.
PAGES = sorted(set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "results.md").read_text())))
TABLE = re.compile(r"(?:<!-- (\w+)[^\n]*-->\n+)?((?:^\|[^\n]*\n)+)", re.M)


def _commands_of(command):
    return re.findall(r"python -m ((?:benchmarks|experiments)\.\w+)", command)


def _exists(module):
    return module.endswith("NAME") or importlib.util.find_spec(module) is not None


def test_all_results_pages_are_listed():
    assert {path.name for path in DOCS.glob("results_*.md")} <= set(PAGES)
    assert len(PAGES) > 12


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.stem)
def test_a_page_shows_what_the_files_hold(page):
    text = page.read_text()
    assert tables.fill(text, tables.TABLES) == text, "run python -m benchmarks.tables"


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_names_files_and_a_command_and_stands_on_a_page(name):
    table = tables.TABLES[name]
    for file in table.files:
        assert (ROOT / "results" / file).is_file(), file
    modules = _commands_of(table.command)
    assert modules
    assert all(map(_exists, modules)), modules
    marks = (f"<!-- table {name} -->" in page.read_text() for page in DOCS.glob("*.md"))
    assert any(marks)


@pytest.mark.parametrize("name", PAGES)
def test_a_table_on_a_results_page_is_made_or_says_where_it_is_from(name):
    text = (DOCS / name).read_text()
    for mark, body in TABLE.findall(text):
        assert mark in ("table", "typed", "words"), body.splitlines()[0]


@pytest.mark.parametrize("name", PAGES)
def test_a_typed_table_names_what_exists(name):
    text = (DOCS / name).read_text()
    typed = tables.typed(text)
    assert len(typed) == text.count("<!-- typed ")
    for files, command in typed:
        assert files
        for file in files:
            assert (ROOT / file).exists(), file
        found = _commands_of(command)
        assert found or (ROOT / command.split()[-1]).exists() or "tests/" in command
        assert all(map(_exists, found))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_is_stored(name):
    text = (DOCS / name).read_text()
    named = re.findall(r"`(results/[\w./*-]+)`", text)
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))), path
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (DOCS / picture).is_file(), picture
    commands = re.findall(r"python\s+-m\s+((?:benchmarks|experiments)\.\w+)", text)
    assert commands, "no command on the page"
    assert all(map(_exists, commands))


def test_a_figure_that_is_typed_over_is_seen():
    name = "cold"
    page = f"<!-- table {name} -->\nx\n<!-- end -->\n"
    right = tables.fill(page, tables.TABLES)
    wrong = right.replace("27.2", "27.3")
    assert wrong != right
    assert tables.fill(wrong, tables.TABLES) == right
    with pytest.raises(ValueError, match="There is no table nothing"):
        tables.fill("<!-- table nothing -->\n<!-- end -->", tables.TABLES)
