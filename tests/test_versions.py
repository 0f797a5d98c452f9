"""What is asked for leaves Colab's runtime as it is, and says what was tested."""

import json
import pathlib
import re
import sys
import tomllib

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ntk_privacy import _versions

_ROOT = pathlib.Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
_ASKED = {r.name: r for r in map(Requirement, _PROJECT["dependencies"])}
# The interpreter and the name of each environment.
_BUILT = r"--python \"\$\(PYTHON3(\d+)\)\" \.versions/(\w+)"


def _colab():
    lines = (_ROOT / "tests" / "colab.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize(("name", "version"), sorted(_colab().items()))
def test_what_colab_has_is_enough(name, version):
    if name in _ASKED:
        assert version in _ASKED[name].specifier
    else:
        assert name == "jaxlib"  # JAX's own


def test_pythons_that_are_named_are_the_ones_that_are_tested():
    named = [
        entry.rsplit(" ", 1)[1]
        for entry in _PROJECT["classifiers"]
        if entry.startswith("Programming Language :: Python :: 3.")
    ]
    make = (_ROOT / "Makefile").read_text()
    run = re.search(r"^QUICK_VERSIONS = \$\(VERSIONS\) (\w+)$", make, re.M)
    broad = re.search(r"^VERSIONS = (.+)$", make, re.M)
    assert run is not None
    assert broad is not None
    environments = {e: f"3.{m}" for m, e in re.findall(_BUILT, make)}
    assert environments.keys() == {*broad[1].split(), run[1]}
    assert sorted(set(environments.values())) == named
    workflow = (_ROOT / ".github" / "workflows" / "tests.yml").read_text()
    (matrix,) = re.findall(r"^ +python: (\[.*\])$", workflow, re.M)
    assert json.loads(matrix) == named
    asked = SpecifierSet(_PROJECT["requires-python"])
    assert all(version in asked for version in named)
    assert not any(f"3.{minor}" in asked for minor in range(int(named[0][2:])))
    assert ".".join(map(str, sys.version_info[:2])) in named


def test_the_lower_bounds_are_what_the_oldest_environment_installs():
    lowest = {
        name: min(str(s.version) for s in r.specifier if s.operator == ">=")
        for name, r in _ASKED.items()
    }
    assert len(lowest) == len(_ASKED)
    for name, version in _colab().items():
        if name in lowest:
            assert Version(lowest[name]) <= Version(version)
    assert Version(jax.__version__) >= Version(lowest["jax"])


@pytest.mark.parametrize("double", [True, False])
def test_float64_is_on_inside_and_as_before_outside(double):
    before = jnp.ones(1, float).dtype
    with _versions.enable_x64(double):
        assert jnp.ones(1, float).dtype == ("float64" if double else "float32")
    assert jnp.ones(1, float).dtype == before
