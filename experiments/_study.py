"""Many runs of `experiments.distill`: the paper's Table 1, and its defence figures.

Each cell, a method and a seed, is a run of its own in a folder below --workdir, so a
killed study goes on where it stood, and a table and the defence figures may share a
folder. Table and figures are redrawn after each cell.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from experiments import _flags
from experiments._flags import UsageError
from experiments._groups import NOT_RESULTS, Run
from experiments._networks import KIND, check, load
from experiments._program import Asked, Program
from experiments._student_flags import Students
from experiments._study_config import Config, cells
from experiments._workdir import Workdir
from ntk_privacy import distillation
from ntk_privacy.data import choice
from ntk_privacy.reports import studies, study_plots


def run(
    config: Config,
    program: Program,
    run_cell: Callable[[Asked[Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Runs every cell and returns the tables, which are also in results.json.

    A cell that cannot be run is an `error` in the table, not the end of the study.

    Raises:
      UsageError: the flags do not fit the image set, or a folder is another's.
      OSError: a file is missing.
      ValueError: a file is damaged, or no cell could be run.
    """
    _check(config, program)
    name = "table" if config.table else "defence"
    with opened(config) as workdir:
        # What each study in the folder was asked for last.
        asked = workdir.read_json("config.json").get("studies", {})
        options = ("num_runs", "num_finite_runs", "methods", "evaluate")
        asked[name] = {option: getattr(config, option) for option in options}
        told = {**dataclasses.asdict(config), "studies": asked}
        workdir.write_json("config.json", told)
        found: dict[str, list[dict[str, Any]]] = {}
        rows, text = [], ""
        for cell in cells(config, program):
            try:
                results = run_cell(cell)
            except UsageError:
                raise
            except (ValueError, FloatingPointError) as error:
                results = {"error": str(error)}
            told = {"seed": cell.group(Run).seed, **results}
            found.setdefault(cell.method.name, []).append(told)
            report = studies.accuracies if config.table else studies.attacks
            rows, text = report(found)
            workdir.write_json(f"{name}.json", rows)
            workdir.write_text(f"{name}.md", text)
            if config.defence:
                shape = choice.image_shape(config)
                study_plots.defences(found, workdir.folder, image_shape=shape)
        if not any(studies.sound(runs) for runs in found.values()):
            raise ValueError(
                f"No cell of the study could be run, see {workdir.path(f'{name}.md')}; "
                f"the first: {next(iter(found.values()))[0]['error']}"
            )
        # Last: whoever reads it finds the rest.
        results = {"rows": rows, "markdown": text}
        workdir.write_json("results.json", results)
        return results


def opened(config: Config) -> Workdir:
    """Returns the folder of a study, which an earlier version may have begun."""
    # One folder may hold both studies, of any methods.
    shared = ("methods", "table", "defence", "studies", *KIND.stages, *KIND.sizes)
    ignore = config.not_results((*NOT_RESULTS, *shared))
    return Workdir(config.workdir, config, ignore=ignore, older=_of_today)


def _of_today(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns flags of an older study: then it had those of all methods."""
    known = _flags.entries(Config)
    defaults = {entry.name: entry.default for entry in known}
    kinds = [method.config for method in distillation.METHODS.values()]
    every = {e.name for kind in (*kinds, Students) for e in dataclasses.fields(kind)}
    every |= {"method", "preset", "num_test"}
    found = _flags.of_today(known, stored)
    foreign = every - set(defaults)
    return defaults | {k: v for k, v in found.items() if k not in foreign}


def _check(config: Config, program: Program) -> None:
    """Loads the images once, before any folder is made, if any cell needs them."""
    fresh = [
        cell
        for cell in cells(config, program)
        if not (pathlib.Path(cell.group(Run).workdir) / "results.json").exists()
    ]
    if fresh:
        images, _ = load(fresh[0])
        for cell in {cell.method.name: cell for cell in fresh}.values():
            check(cell, images)
