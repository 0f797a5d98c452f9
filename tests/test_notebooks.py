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


# The others take 20 seconds and more; `make docs` runs them too.
QUICK = {"rkip", "accelerators"}
RUN = [
    pytest.param(path, marks=[] if path.stem in QUICK else [pytest.mark.slow])
    for path in NOTEBOOKS
]


def test_there_is_a_notebook_for_each_question():
    assert {path.stem for path in NOTEBOOKS} == {
        *("read_back", "gradient", "pytorch_audit", "rkip", "poisoning"),
        *("curvature", "robustness", "kernels", "accelerators"),
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_has_a_badge_and_the_pages_list_it(path):
    first = json.loads(path.read_text())["cells"][0]
    assert "colab-badge.svg" in "".join(first["source"])
    for page in ("docs/index.md", "docs/notebooks.md", "README.md"):
        assert f"notebooks/{path.name})" in (ROOT / page).read_text()


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
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
    told = done.stdout
    if path.stem == "pytorch_audit":
        assert "16 of 16 training images can be computed from these weights" in told
    if path.stem == "gradient":
        assert "as it is: exact                    16 certified" in told
    if path.stem == "rkip":
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
