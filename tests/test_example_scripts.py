"""Scripts of `examples` run, end as they say, and import the public API alone."""

import ast
import importlib
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

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


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("make_flax_mlp", "after"),
        ("make_gradient", "gradient"),
        ("make_torch_mlp", "after"),
    ],
)
def test_what_audits_are_given_is_written(name, evidence, tmp_path):
    if name.endswith("torch_mlp"):
        pytest.importorskip("torch", reason="PyTorch trains it")
    with _versions.enable_x64(False):
        importlib.import_module(f"examples.{name}").main(str(tmp_path))
    assert len(list((tmp_path / "images").glob("*/*.png"))) == 16
    assert len(list((tmp_path / "unseen").glob("*/*.png"))) == 160
    before, sent = (
        load_file(tmp_path / f"{part}.safetensors") for part in ("before", evidence)
    )
    assert {k: v.shape for k, v in sent.items()} == {
        k: v.shape for k, v in before.items()
    }
    # Every array has been trained, or has a gradient.
    assert all(np.isfinite(array).all() for array in sent.values())
    assert all(np.any(sent[name] != before[name]) for name in before)


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
