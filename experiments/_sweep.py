"""The limits study: many configurations of `experiments.reconstruct`, one table.

Each cell is a run of its own in a folder below --workdir, so a killed sweep goes on
where it stood. Cells run from small to large; the table and the figures are redrawn
after each.
"""

import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments import _run
from experiments._groups import Run
from experiments._kinds import Results
from experiments._program import Asked
from ntk_privacy.reports import study_plots

# What a study sets in every cell, in place of the flags.
AXES = (
    *("dataset", "task", "num_train", "width", "dynamics", "early_stop_loss"),
    *("known_num_images", "image_size", "fingerprint"),
)

_TOLD = (
    *("num_recovered", "num_certified", "estimated_num_images", "mean_error"),
    *("kernel_distance", "train_loss", "seconds", "verdict", "warnings"),
    "squared_distances",
)


class Cell(NamedTuple):
    """One run: a point on every axis."""

    dataset: str
    task: str | None
    num_train: int
    width: int
    dynamics: str
    early_stop_loss: float | None

    def name(self) -> str:
        """Returns the name of its folder."""
        stop = "early" if self.early_stop_loss else "converged"
        shape = (f"n{self.num_train}", f"w{self.width}")
        return "_".join(
            (self.dataset, self.task or "binary", *shape, self.dynamics, stop)
        )

    def cost(self) -> tuple[int, str]:
        """Returns what cells are sorted by."""
        # Ten outputs make every candidate ten rows.
        rows = 10 if self.task == "all_classes" else 1
        return (self.num_train * self.width**2 * rows**2, self.dynamics)

    def row(self) -> dict[str, Any]:
        """Returns its place in the table."""
        found = self._asdict()
        count = {"num_images": found.pop("num_train")}
        return found | count | {"task": self.task or "binary"}


class Study(NamedTuple):
    """Values on the axes of `Cell`, in order, and most images by a value on them."""

    axes: tuple[tuple[Any, ...], ...]
    most: Mapping[str, int]

    def cells(self) -> list[Cell]:
        """Returns every cell within the limits, cheapest first."""
        grid = (Cell(*point) for point in itertools.product(*self.axes))
        within = (
            cell
            for cell in grid
            if all(cell.num_train <= self.most.get(str(v), 10**9) for v in cell)
        )
        return sorted(within, key=Cell.cost)


_DYNAMICS = ("linearized", "standard")
_REAL = (("mnist", "cifar10"), (None, "all_classes"))
_STOPS = (None, 1e-2)

# The more a step costs, the fewer the images: see `Cell.cost`; and networks whose
# features move are trained and searched step by step.
SWEEPS: dict[str, Study] = {
    "full": Study(
        (*_REAL, (20, 50, 100, 200, 500), (256, 1024, 4096), _DYNAMICS, _STOPS),
        {"all_classes": 500, "standard": 500},
    ),
    "cpu": Study(
        (*_REAL, (20, 50, 100), (256, 1024), _DYNAMICS, _STOPS),
        {"all_classes": 20, "standard": 50},
    ),
    "smoke": Study(
        (("digits",), (None,), (4, 8), (64, 128), _DYNAMICS, (None,)),
        {"all_classes": 8, "standard": 8},
    ),
}


def of_cell(asked: Asked[Any], cell: Cell) -> Asked[Any]:
    """Returns what is asked of one cell of a sweep."""
    folder = pathlib.Path(asked.group(Run).workdir) / cell.name()
    # None is what the flag is already.
    given = {name: value for name, value in cell._asdict().items() if value is not None}
    return asked.replaced(sweep=None, workdir=str(folder), **given)


def run(asked: Asked[Any], run_cell: Callable[[Asked[Any]], Results]) -> Results | None:
    """Runs every cell and returns the table, which is also in results.json.

    A cell that cannot be run is a row with an `error`, not the end of the study. None
    where no sweep is asked for.
    """
    name = asked.flat()["sweep"]
    if name is None:
        return None
    with _run.opened(asked) as workdir:
        rows: list[dict[str, Any]] = []
        for cell in SWEEPS[name].cells():
            row = cell.row()
            try:
                results = run_cell(of_cell(asked, cell))
            except (ValueError, FloatingPointError) as error:
                row["error"] = str(error)
            else:
                row |= {told: results.get(told) for told in _TOLD}
                print(line(row), flush=True)
            rows.append(row)
            study_plots.limits(rows, workdir.folder)
            workdir.write_json("table.json", rows)
        found = {"sweep": name, "table": rows}
        workdir.write_json("results.json", found)
        return found


def line(row: dict[str, Any]) -> str:
    """Returns a row of the table as text."""
    certified = row["num_certified"]
    told = "" if certified is None else f", {certified} certified"
    stop = "" if row["early_stop_loss"] is None else ", early stopped"
    verdict = row.get("verdict")
    judged = "" if verdict is None else f"; {verdict['word']}: {verdict['reason']}"
    return (
        f"{row['dataset']} {row['task']} {row['dynamics']}{stop}: "
        f"N={row['num_images']} "
        f"width={row['width']}: {row['num_recovered']} recovered{told}, kernel "
        f"distance {float(row['kernel_distance']):.2g}{judged}"
    )
