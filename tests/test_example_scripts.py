"""Scripts of `examples` run, end as they say, and import the public API alone."""

import ast
import importlib
import pathlib

import pytest

from ntk_privacy import _versions

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def _run(name):
    with _versions.enable_x64(False):
        return importlib.import_module(f"examples.{name}").main()


def test_what_was_read_back_is_certified():
    assert _run("read_back") == 8


def test_noise_leaves_no_copies():
    assert _run("distil_and_look_for_copies") == {"random": 4, "rkip_noise": 0}


def test_the_seed_is_found():
    assert _run("guess_the_seed") == 1234


def test_an_attack_lowers_accuracy():
    assert _run("attack_a_network") < 1.0


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_public_names_are_imported(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    assert ast.get_docstring(tree)
    assert f"python -m examples.{name}" in ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for found in names:
            if found.startswith("ntk_privacy"):
                assert not any(part.startswith("_") for part in found.split("."))
