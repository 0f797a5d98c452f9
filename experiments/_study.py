"""Many runs of `experiments.distill`: the paper's Table 1, and its defence figures.

Each cell, a method and a seed, is a run of its own in a folder below --workdir, so a
killed study goes on where it stood, and a table and the defence figures may share a
folder. Table and figures are redrawn after each cell.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from ntk_privacy.data.choice import Data
from ntk_privacy.reports import studies, study_plots

from . import _flags, _networks, _run
from ._flags import UsageError
from ._groups import Run
from ._kinds import Kind, Results
from ._network_flags import Networks
from ._program import Asked

_OPTIONS = ("num_runs", "num_finite_runs", "methods", "evaluate")
# One folder may hold both studies, of any methods.
_SHARED = ("method", "preset", "attack", "studies", *_OPTIONS)


def cells(study: Asked[studies.Config]) -> list[Asked[Any]]:
    """Returns what each cell asks for, the methods of a seed together."""
    flags, run, name = study.group(Networks), study.group(Run), study.method.name
    given = {
        k: v for k, v in study.flat().items() if k != "noise_ratio" or v is not None
    }
    found = []
    for nth in range(flags.num_runs):
        for method in study.config.methods or studies.APPLICABLE[name]:
            seed = run.seed + nth
            own = {
                "evaluate": name == "table" or flags.evaluate,
                "attack": name == "defence",
                "num_runs": 1,
                "num_finite_runs": int(nth < flags.num_trained),
                "seed": seed,
                "workdir": str(pathlib.Path(run.workdir) / f"{method}_{seed}"),
            }
            names = study.program.names(method) - (
                {"noise_ratio"} if method == "kip" else set()
            )
            cell = {k: v for k, v in {**given, **own}.items() if k in names}
            found.append(study.program.asked(method, **cell))
    return found


def _check(asked: Asked[Any]) -> None:
    seed, flags = asked.group(Run).seed, asked.group(Networks)
    _flags.check_seeds(seed, num_runs=flags.num_runs)
    if asked.method.name == "table" and flags.attack:
        raise ValueError(
            "attack is no part of --table: ask for --defence, which may have the same "
            "workdir."
        )
    if asked.method.name == "defence" and "full" in asked.config.methods:
        raise ValueError(
            "methods has full, which is no distilled set for --defence to attack: "
            "leave it out, or use experiments.reconstruct."
        )


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    methods = asked.config.methods
    if asked.method.name == "table" and methods and "rkip_finite" not in methods:
        return dict.fromkeys(("attack_steps", "dynamics"), "--table")
    return {}


def _load(asked: Asked[Any]) -> None:
    """Loads the images once, before any folder is made, if any cell needs them."""
    fresh = [
        cell
        for cell in cells(asked)
        if not (pathlib.Path(cell.group(Run).workdir) / "results.json").exists()
    ]
    if fresh:
        images, _ = _networks.load(fresh[0])
        for cell in {cell.method.name: cell for cell in fresh}.values():
            _networks.check(cell, images)


def _run_cells(asked: Asked[Any], run_cell: Callable[[Asked[Any]], Results]) -> Results:
    """Runs every cell and returns the tables, which are also in results.json.

    A cell that cannot be run is an `error` in the table, not the end of the study.

    Raises:
      UsageError: the flags do not fit the image set, or a folder is another's.
      OSError: a file is missing.
      ValueError: a file is damaged, or no cell could be run.
    """
    _load(asked)
    name, flat = asked.method.name, asked.flat()
    with _run.opened(asked) as workdir:
        # What each study in the folder was asked for last.
        known = workdir.read_json("config.json").get("studies", {})
        known[name] = {option: flat[option] for option in _OPTIONS}
        workdir.write_json("config.json", {**flat, "studies": known})
        found: dict[str, list[Results]] = {}
        rows, text = [], ""
        for cell in cells(asked):
            try:
                results = run_cell(cell)
            except UsageError:
                raise
            except (ValueError, FloatingPointError) as error:
                results = {"error": str(error)}
            told = {"seed": cell.group(Run).seed, **results}
            found.setdefault(cell.method.name, []).append(told)
            rows, text = asked.method.run(found)
            workdir.write_json(f"{name}.json", rows)
            workdir.write_text(f"{name}.md", text)
            if name == "defence":
                shape = asked.group(Data).image_shape()
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


KIND = Kind(
    groups=(Data, Networks, Run),
    defaults=lambda *_: {"num_train": 500, "workdir": "runs/study"},
    passed_over=_passed_over,
    check=_check,
    grid=_run_cells,
    told=lambda _, results: results["markdown"],
    later=lambda _: _SHARED,
)
