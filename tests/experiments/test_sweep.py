"""The limits study: its cells, a row per cell, rows of cells that cannot run."""

import json
import types

import numpy as np
import pytest

from experiments import _sweep, reconstruct
from ntk_privacy.evaluation import limits
from ntk_privacy.reports import summaries


@pytest.mark.parametrize(("name", "count"), [("smoke", 8), ("cpu", 56), ("full", 240)])
def test_cells_go_from_cheap_to_dear_each_in_its_folder(name, count):
    cells = limits.STUDIES[name].cells()
    assert len(cells) == count == len({cell.name() for cell in cells})
    most = limits.STUDIES[name].most
    for cell in cells:
        if cell.dynamics == "standard":
            assert cell.num_train <= most["standard"]
        if cell.task == "all_classes":
            assert cell.num_train <= most["all_classes"]
    sizes = [cell.num_train * cell.width**2 for cell in cells if cell.task is None]
    assert sizes == sorted(sizes)


def test_a_cell_is_a_run_of_its_own():
    asked = reconstruct.PROGRAM.asked(sweep="cpu", workdir="x", seed=3, method="kkt")
    cells = limits.STUDIES["cpu"].cells()
    cell = next(c for c in cells if c.task and c.early_stop_loss)
    flat = _sweep.of_cell(asked, cell).flat()
    assert flat["workdir"] == f"x/{cell.name()}"
    assert flat.items() >= cell._asdict().items()
    assert (flat["sweep"], flat["seed"], flat["method"]) == (None, 3, "kkt")


def test_a_cell_where_nothing_was_found_is_a_row(tmp_path):
    """No distance, no mean: it is drawn and told all the same."""

    def run_cell(cell):
        return {
            "num_recovered": 0,
            "num_certified": 0,
            "mean_error": "nan",
            "kernel_distance": "nan",
            "squared_distances": [],
            "verdict": {"word": "nothing found", "reason": "The rank is not clear."},
        }

    asked = reconstruct.PROGRAM.asked(sweep="smoke", workdir=str(tmp_path))
    found = _sweep.run(asked, run_cell)
    assert not any("error" in row for row in found["table"])
    told = summaries.limits(found["table"][0])
    assert "nothing found: The rank is not clear." in told


def test_a_cell_that_cannot_run_is_a_row_and_the_study_goes_on(tmp_path, capsys):
    ran = []

    def run_cell(asked):
        cell = types.SimpleNamespace(**asked.flat())
        ran.append((cell.num_train, cell.width, cell.dynamics))
        if cell.num_train == 8 and cell.width == 128:
            raise ValueError("too many for this width.")
        return {
            "num_recovered": cell.num_train,
            "num_certified": None,
            "mean_error": 0.1,
            "kernel_distance": 0.02,
            "squared_distances": [0.01] * cell.num_train,
            "verdict": {"word": "approximate", "reason": "Enough."},
        }

    asked = reconstruct.PROGRAM.asked(sweep="smoke", workdir=str(tmp_path))
    found = _sweep.run(asked, run_cell)
    assert len(ran) == len(set(ran)) == len(found["table"]) == 8
    errors = [row for row in found["table"] if "error" in row]
    assert [row["error"] for row in errors] == ["too many for this width."] * 2
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["table"] == found["table"]
    assert stored["table"][0]["verdict"]["word"] == "approximate"
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 6
    assert all(line.endswith("; approximate: Enough.") for line in told)
    for name in (
        "curve_digits_binary_n4_standard_converged",
        "error_against_kernel_distance",
    ):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert np.all(
        [
            row["num_recovered"] == row["num_images"]
            for row in found["table"]
            if "error" not in row
        ]
    )
