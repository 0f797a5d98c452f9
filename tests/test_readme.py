"""The README's example runs, and its commands exist."""

import doctest
import importlib
import pathlib
import re

import pytest

import ntk_privacy
from ntk_privacy import _versions

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_prints_what_it_says():
    with _versions.enable_x64(False):
        failed, attempted = doctest.testfile(
            str(ROOT / "README.md"), module_relative=False
        )
    assert attempted > 10
    assert failed == 0


def _commands():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return [
        line.split() for line in re.findall(r"^python -m (experiments\..*)", text, re.M)
    ]


@pytest.mark.parametrize("words", _commands(), ids=lambda words: " ".join(words)[:60])
def test_its_commands_have_flags_of_today(words):
    module = importlib.import_module(words[0])
    given = [word.strip("'\"") for word in words[1:] if word != "..."]
    asked = module.PROGRAM.parse(given)
    known = {**asked.flat(), **dict.fromkeys(f for f, _ in asked.program.former)}
    for word in given:
        name = word[2:].partition("=")[0]
        assert name in known or name.removeprefix("no") in known, name


def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_package_says_what_it_is():
    assert ntk_privacy.__doc__
