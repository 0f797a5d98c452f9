"""The README's example runs, and its commands exist."""

import doctest
import pathlib
import re

import pytest

import ntk_privacy

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_prints_what_it_says():
    with_x64_off = pytest.importorskip("jax").enable_x64(False)
    with with_x64_off:
        failed, attempted = doctest.testfile(
            str(ROOT / "README.md"), module_relative=False
        )
    assert attempted > 10
    assert failed == 0


def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_package_says_what_it_is():
    assert ntk_privacy.__doc__
