"""Notebooks run from the first cell to the last, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _code(path: pathlib.Path) -> str:
    """All code cells as one program; magics, which only install, do nothing."""
    cells = json.loads(path.read_text())["cells"]
    lines = "\n".join(
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
    ).splitlines()
    return "\n".join(
        line.split("%")[0] + "pass" if line.lstrip().startswith("%") else line
        for line in lines
    )


def test_there_is_a_notebook():
    assert {path.name for path in NOTEBOOKS} >= {"rkip.ipynb"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "agg", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", _code(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    if path.stem == "rkip":
        told = done.stdout
        assert "10 real images: 10 of 10 decoded exactly; 10 originals found" in told
        assert "RKIP, 5% noise: 10 of 10 decoded exactly; 0 originals found" in told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_is_committed_but_the_source(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_project_and_no_jax(path):
    cells = json.loads(path.read_text())["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    installs = [line for line in first["source"] if "pip install" in line]
    assert [line.split() for line in installs] == [
        ["%pip", "install", "--quiet", "{found[-1]}"]
    ]
    assert '"/content/ntk_privacy*"' in "".join(first["source"])
