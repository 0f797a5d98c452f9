"""Docstrings of public names: what they tell, and that their examples run."""

import doctest
import functools
import importlib
import inspect
import pathlib
import re
import warnings

import jax
import pytest

from ntk_privacy import _versions

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
# Not imported before a test asks: every worker of the suite collects this file.
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in sorted((ROOT / "ntk_privacy").rglob("*.py"))
    if not any(
        part.startswith("_") and part != "__init__.py"
        for part in path.relative_to(ROOT).parts
    )
    # Patches another library as it is imported.
    and path.name != "neural_tangents.py"
}
# Functions that lacked an example when this was written; fewer are welcome.
MOST_WITHOUT = 586
LEAST_WITH = 150

# Seconds each, of compilation mostly.
LONG = {
    "auditing.auditor",
    "auditing.distilled_sets",
    "distillation.distribution_matching",
    "distillation.gradient_matching",
    "distillation.rkip",
    "distillation.tesla",
    "distillation.timed",
    "distillation.trajectory_matching",
    "evaluation.attacked_set",
    "evaluation.kernel_movement",
    "evaluation.poisoned_sets",
    "evaluation.read_back",
    "evaluation.students",
    "evasion.apgd",
    "evasion.autoattack",
    "evasion.fab",
    "reconstruction.adapter_replay",
    "reconstruction.auto",
    "reconstruction.closed_units",
    "reconstruction.kkt",
    "reconstruction.unrolled",
}


def _public(module):
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name in vars(module) if not name.startswith("_")]
    return {
        f"{module.__name__}.{name}": getattr(module, name)
        for name in names
        if inspect.isfunction(getattr(module, name))
        and getattr(module, name).__module__ == module.__name__
    }


@functools.cache
def _functions():
    return {
        name: function
        for module in map(importlib.import_module, FILES)
        for name, function in _public(module).items()
    }


def _has_example(function):
    told = function.__doc__ or ""
    return ">>>" in told or "has an example" in told


def _named_by_the_docs():
    """Functions that a page calls by module and name."""
    text = "\n".join(page.read_text() for page in PAGES)
    found = []
    for name in _functions():
        *_, module, function = name.split(".")
        if re.search(rf"(?<!\w){module}\.{function}\b(?!\.md)", text):
            found.append(name)
    return found


def test_what_the_docs_name_has_an_example():
    named = _named_by_the_docs()
    assert len(named) > 40
    assert [name for name in named if not _has_example(_functions()[name])] == []


def test_the_function_of_every_attack_has_an_example():
    for name, function in _functions().items():
        if re.fullmatch(r"ntk_privacy\.evasion\.\w+\.attack", name):
            assert _has_example(function), name


def test_names_without_an_example_become_fewer():
    without = [name for name, f in _functions().items() if not _has_example(f)]
    assert len(_functions()) - len(without) >= LEAST_WITH
    assert len(without) <= MOST_WITHOUT, "\n".join(without)


def test_public_functions_tell_their_arguments():
    silent = []
    for name, function in _functions().items():
        told = inspect.getdoc(function) or ""
        parameters = [p.name for p in inspect.signature(function).parameters.values()]
        # One line says all of a function of one or two arguments.
        if len(parameters) > 2 and "Args:" not in told:
            silent.append(name)
    assert len(silent) <= 60, "\n".join(silent)


def _run_elsewhere():
    """Modules whose examples another test runs."""
    text = (ROOT / "tests/reconstruction/test_examples.py").read_text()
    for path in ("auditing/test_audit_docstrings.py", "test_hosts.py"):
        text += (ROOT / "tests" / path).read_text()
    return {word.split(".")[-1] for word in re.findall(r"\w+", text)}


def _cases():
    elsewhere = _run_elsewhere()
    for name, path in FILES.items():
        short = name.removeprefix("ntk_privacy.")
        if not re.search(r"^ +>>> ", path.read_text(), re.M):
            continue
        slow = short in LONG or short.rpartition(".")[2] in elsewhere
        yield pytest.param(name, marks=[pytest.mark.slow] if slow else [], id=short)


@pytest.mark.parametrize("name", list(_cases()))
def test_examples_print_what_they_say(name):
    module = importlib.import_module(name)
    # As users run them.
    usual = jax.numpy_dtype_promotion("standard")
    with usual, _versions.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert failed == 0
