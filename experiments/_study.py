"""Many runs of `experiments.distill`: the paper's Table 1, and its defence figures.

Each cell, a method and a seed, is a run of its own in a folder below --workdir, so a
killed study goes on where it stood, and a table and the defence figures may share a
folder. Table and figures are redrawn after each cell.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import _image_sets
from experiments._flags import UsageError
from experiments._groups import NOT_RESULTS, Run
from experiments._networks import KIND, check, load
from experiments._program import Asked, Program
from experiments._students import Students
from experiments._study_config import Config, cells
from experiments._workdir import Workdir
from ntk_privacy import distillation
from ntk_privacy.evaluation import defence
from ntk_privacy.reports import plots, studies


def run(
    config: Config,
    program: Program,
    run_cell: Callable[[Asked[Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Runs every cell and returns the tables, which are also in results.json.

    A cell that cannot be run is an `error` in the table, not the end of the study.

    Args:
      config: of the study.
      program: of a cell.
      run_cell: runs what a cell asks for.

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
                _draw(config, found, workdir)
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
    """Returns the folder of a study, which an earlier version may have begun.

    Args:
      config: of the study.

    Raises:
      UsageError: another run has it.
    """
    # One folder may hold both studies, of any methods.
    shared = ("methods", "table", "defence", "studies")
    return Workdir(
        config.workdir,
        config,
        ignore=_image_sets.not_results(
            config, (*NOT_RESULTS, *KIND.stages, *KIND.sizes, *shared)
        ),
        # Of when studies had the flags of all methods.
        foreign=_flags_of_methods(),
    )


def _flags_of_methods() -> set[str]:
    kinds = [method.config for method in distillation.METHODS.values()]
    names = {entry.name for kind in kinds for entry in dataclasses.fields(kind)}
    students = {entry.name for entry in dataclasses.fields(Students)}
    return names | students | {"method", "preset", "num_test"}


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


def _draw(config: Config, found: studies.Runs, workdir: Workdir) -> None:
    """Draws one figure per attack: the first seed's curve of every method."""
    sound = {method: studies.sound(runs) for method, runs in found.items()}
    first = {method: runs[0] for method, runs in sound.items() if runs}
    for name in defence.ATTACKS if first else ():
        plots.curve(
            {
                f"trained on {method}": np.asarray(
                    told["attack"][name]["squared_distances"], float
                )
                for method, told in first.items()
            },
            workdir.path(f"defence_{name}.png"),
            image_shape=_image_sets.image_shape(config),
            title=f"Original images against what the {name} attack finds",
        )
