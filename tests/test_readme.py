"""What the README and the pages of `docs` show runs, and what they name exists."""

import doctest
import importlib
import importlib.util
import pathlib
import re
import shlex

import pasted
import pytest

import ntk_privacy
from benchmarks import tables
from ntk_privacy import _versions

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [page for page in PAGES if re.search(r"^ *>>> ", page.read_text(), re.M)]


def _name(page):
    return page.stem


@pytest.mark.parametrize("page", SHOWN, ids=_name)
def test_examples_print_what_they_say(page):
    with _versions.enable_x64(False):
        failed, attempted = doctest.testfile(str(page), module_relative=False)
    assert attempted > 3
    assert failed == 0


def test_the_readme_shows_an_attack_a_distillation_and_an_audit():
    text = README.read_text()
    assert README in SHOWN
    for paste in ("auto.reconstruct(", 'METHODS["rkip_noise"]', "ntk_privacy.audit("):
        assert paste in text


def test_the_readme_is_a_page():
    assert len(README.read_text().splitlines()) <= 150


def _commands():
    """Commands of all pages: on lines of their own and within sentences."""
    found = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(
            r"^.*?python -m ((?:experiments|benchmarks)\..*)", text, re.M
        )
        spoken = re.findall(
            r"`(?:[A-Z_0-9]+=\S+ )*python\s+-m\s+((?:experiments|benchmarks)[^`]*)`",
            text,
        )
        # Marks and code are none.
        lines = [line for line in lines if not re.search('[`"]|-->|NAME', line)]
        for line in (*lines, *spoken):
            if line.startswith("experiments.NAME"):
                continue
            words = line.split("#")[0].split("&")[0].split("[")[0].split(";")[0]
            found.setdefault(" ".join(words.split()), page.name)
    # Of tables, pictures and marks: as a shell writes them out.
    sources = [row.command for row in (*tables.TABLES.values(), *tables.PICTURES)]
    sources += [
        mark.source
        for page in PAGES
        for paragraph in tables.paragraphs(page.read_text())
        for mark in paragraph.marks
        if mark.kind == "from"
    ]
    for source in sources:
        found.update(dict.fromkeys(pasted.lines(source), "marks"))
    return sorted(found)


COMMANDS = _commands()
# What stands for a word of the reader's choice, and a choice.
CHOICES = {
    "METHOD": "dc",
    "SET": "mnist",
    "N": "1",
    "W": "1",
    "ATTACK": "direct",
    "METHODS": "dm,rdm",
    "REGULARIZER": "curvature",
}


# The second asks for other hosts.
NOT_HERE = {"...", "--distributed"}


def _chosen(word):
    name, _, value = word.partition("=")
    return f"{name}={CHOICES.get(value, value)}" if value else word


def test_there_are_commands():
    assert sum(line.startswith("experiments.") for line in COMMANDS) > 40
    assert sum(line.startswith("benchmarks.") for line in COMMANDS) > 20


@pytest.mark.parametrize(
    "line",
    [line for line in COMMANDS if line.startswith("experiments.")],
    ids=lambda line: line[:70],
)
def test_commands_have_flags_of_today(line):
    module, *words = shlex.split(line)
    given = [_chosen(word) for word in words if word not in NOT_HERE]
    # Refuses what it does not know, with the nearest name.
    importlib.import_module(module).PROGRAM.parse(given)


def test_a_flag_that_is_none_is_refused():
    module = importlib.import_module("experiments.reconstruct")
    with pytest.raises(ValueError, match="numimages"):
        module.PROGRAM.parse(["--numimages=20"])


@pytest.mark.parametrize(
    "line",
    [line for line in COMMANDS if line.startswith("benchmarks.")],
    ids=lambda line: line[:70],
)
def test_benchmarks_have_flags_of_today(line):
    module, *words = line.split()
    if module == "benchmarks.bench_NAME":
        return
    found = importlib.util.find_spec(module)
    assert found is not None
    source = pathlib.Path(found.origin).read_text()
    if found.submodule_search_locations:
        source = (pathlib.Path(found.origin).parent / "__main__.py").read_text()
    for word in words:
        if word.startswith("--") and (name := word[2:].partition("=")[0]) != "out":
            # argparse's own, or a keyword of `_measure.arguments`.
            assert re.search(rf'"--{name}"|\b{name}=', source), name


def test_the_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`", page.read_text()):
            assert re.search(rf"^{target}:", makefile, re.M), (page.name, target)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_are_linked_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        # Notebooks are copied where the site has them as it is built.
        place = re.sub("^_notebooks/", "../notebooks/", link.split("#")[0])
        if not place or re.match(r"[a-z]+:", place):
            continue
        assert (page.parent / place).exists(), link


def test_the_package_says_what_it_is():
    assert ntk_privacy.__doc__
