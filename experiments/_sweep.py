"""The limits study: many configurations of `experiments.reconstruct`, one table.

Each cell is a run of its own in a folder below --workdir, so a killed sweep goes on
where it stood. Cells run from small to large; the table and the figures are redrawn
after each.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from ntk_privacy.evaluation import limits
from ntk_privacy.reports import study_plots, summaries

from . import _run
from ._groups import Run
from ._kinds import Results
from ._program import Asked

# What a study sets in every cell, in place of the flags.
AXES = (*limits.Cell._fields, "known_num_images", "image_size", "fingerprint")


def of_cell(asked: Asked[Any], cell: limits.Cell) -> Asked[Any]:
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
        for cell in limits.STUDIES[name].cells():
            try:
                row = cell.row(run_cell(of_cell(asked, cell)))
            except (ValueError, FloatingPointError) as error:
                row = cell.row({"error": str(error)})
            else:
                print(summaries.limits(row), flush=True)
            rows.append(row)
            study_plots.limits(rows, workdir.folder)
            workdir.write_json("table.json", rows)
        found = {"sweep": name, "table": rows}
        workdir.write_json("results.json", found)
        return found
