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

from experiments import _defence, _distillation, _image_sets, _transfer
from experiments._flags import UsageError
from experiments._workdir import Workdir
from ntk_privacy.evaluation import rates
from ntk_privacy.reports import plots

_TABLE = ("full", "kip", "rkip", "rkip_noise", "rkip_finite", "random")
# Real images are what an undefended network is trained on.
_DEFENCE = ("random", "kip", "rkip", "rkip_noise", "rkip_finite")


# What the other methods do not take.
_NOT_SEARCHED = {"batch_size": None, "learn_labels": False, "label_solve": False}


def cells(config: Any) -> list[Any]:
    """Returns one config per cell, the methods of a seed together."""
    finite = _transfer.num_finite_runs(config)
    methods = config.methods or (_TABLE if config.table else _DEFENCE)
    return [
        dataclasses.replace(
            config,
            method=method,
            methods=(),
            table=False,
            defence=False,
            noise_ratio=config.noise_ratio if method == "rkip_noise" else None,
            **({} if method in _distillation.SEARCHED else _NOT_SEARCHED),
            evaluate=config.table or config.evaluate,
            attack=config.defence,
            num_runs=1,
            num_finite_runs=int(run < finite),
            seed=config.seed + run,
            workdir=str(pathlib.Path(config.workdir) / f"{method}_{config.seed + run}"),
        )
        for run in range(config.num_runs)
        for method in methods
    ]


def run(
    config: Any,
    run_cell: Callable[[Any], dict[str, Any]],
    load: Callable[[Any], tuple[Any, Any]],
    *,
    ignore: tuple[str, ...],
) -> dict[str, Any]:
    """Runs every cell and returns the tables, which are also in results.json.

    A cell that cannot be run is an `error` in the table, not the end of the study.

    Args:
      config: of `experiments.distill`.
      run_cell: runs the config of a cell.
      load: `(config) -> (dataset, key)`.
      ignore: names of config fields that may differ when a study goes on.

    Raises:
      UsageError: the flags do not fit the image set, or a folder is another's.
      OSError: a file is missing.
      ValueError: a file is damaged, or no cell could be run.
    """
    _check(config, load)
    name = "table" if config.table else "defence"
    with Workdir(config.workdir, config, ignore=(*ignore, "studies")) as workdir:
        # What each study in the folder was asked for last.
        studies = workdir.read_json("config.json").get("studies", {})
        options = ("num_runs", "num_finite_runs", "methods", "evaluate")
        studies[name] = {option: getattr(config, option) for option in options}
        told = {**dataclasses.asdict(config), "studies": studies}
        workdir.write_json("config.json", told)
        found: dict[str, list[dict[str, Any]]] = {}
        report: dict[str, Any] = {}
        for cell in cells(config):
            try:
                results = run_cell(cell)
            except UsageError:
                raise
            except (ValueError, FloatingPointError) as error:
                results = {"error": str(error)}
            found.setdefault(cell.method, []).append({"seed": cell.seed, **results})
            report = _table(found) if config.table else _attacks(found)
            workdir.write_json(f"{name}.json", report["rows"])
            workdir.write_text(f"{name}.md", report["markdown"])
            if config.defence:
                _draw(config, found, workdir)
        if not any(_sound(runs) for runs in found.values()):
            raise ValueError(
                f"No cell of the study could be run, see {workdir.path(f'{name}.md')}; "
                f"the first: {next(iter(found.values()))[0]['error']}"
            )
        # Last: whoever reads it finds the rest.
        workdir.write_json("results.json", report)
        return report


def _check(config: Any, load: Callable[[Any], tuple[Any, Any]]) -> None:
    """Loads the images once, before any folder is made, if any cell needs them."""
    fresh = [
        cell
        for cell in cells(config)
        if not (pathlib.Path(cell.workdir) / "results.json").exists()
    ]
    if fresh:
        dataset, _ = load(fresh[0])
        for cell in {cell.method: cell for cell in fresh}.values():
            _distillation.check(cell, dataset)


def _failures(found) -> list[str]:
    """Returns the lines below a table that tell which cells failed, and why."""
    told = [
        f"- {method}, seed {run['seed']}: {' '.join(run['error'].split())}"
        for method, runs in found.items()
        for run in runs
        if "error" in run
    ]
    return ["", "Failed:", "", *told] if told else []


def _sound(runs) -> list[dict[str, Any]]:
    return [told for told in runs if "error" not in told]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{rates.in_percent(values, digits=2)} ({len(values)})"


def _table(found) -> dict[str, Any]:
    """Accuracies of every method over its seeds, in per cent."""
    kinds = ("infinite", "standard", "linearized")
    scores = ["accuracy"]
    if any(
        "accuracy_released_label_fault" in t for runs in found.values() for t in runs
    ):
        scores.append("accuracy_released_label_fault")
    rows, lines = [], []
    for score in scores:
        if score != "accuracy":
            lines += [
                "",
                "Test labels as in the released code (trucks as animals):",
                "",
            ]
        lines += [
            "| method | infinite width | standard | linearized |",
            "| --- | --- | --- | --- |",
        ]
        for method, runs in found.items():
            row: dict[str, Any] = {"method": method, "score": score}
            for kind in kinds:
                values = [
                    told[score][kind]
                    for told in _sound(runs)
                    if told[score][kind] is not None
                ]
                rate = rates.mean_and_deviation(values) if values else (None, None)
                row[kind], row[f"{kind}_deviation"] = rate
                row[f"{kind}_values"] = values
            row["errors"] = [told["error"] for told in runs if "error" in told]
            rows.append(row)
            told = " | ".join(_cell(row[f"{kind}_values"]) for kind in kinds)
            lines.append(f"| {method} | {told} |")
    lines += ["", "Test accuracy in per cent, mean +- sample deviation (runs)."]
    lines += _failures(found)
    return {"rows": rows, "markdown": "\n".join(lines) + "\n"}


def _attacks(found) -> dict[str, Any]:
    """Images found by every attack, per method, summed over its seeds."""
    rows = []
    lines = [
        "| trained on | attack | originals found | best PSNR | distilled found | "
        "copies in the set |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, runs in found.items():
        for name in _defence.ATTACKS:
            sound = _sound(runs)
            told = [run["attack"][name] for run in sound]
            row = {
                "method": method,
                "attack": name,
                "num_recovered": [t["num_recovered"] for t in told],
                "best_psnr": [float(t["best_psnr"]) for t in told],
                "verdicts": [t["verdict"]["word"] for t in told if "verdict" in t],
                "num_distilled_recovered": [t["num_distilled_recovered"] for t in told],
                "num_copies": [run["nearest"]["num_copies"] for run in sound],
                "num_distilled": [run["num_distilled"] for run in sound],
                "errors": [run["error"] for run in runs if "error" in run],
            }
            rows.append(row)
            if not told:
                lines.append(f"| {method} | {name} | - | - | - | - |")
                continue
            of = sum(row["num_distilled"])
            lines.append(
                f"| {method} | {name} | {sum(row['num_recovered'])} | "
                f"{max(row['best_psnr']):.1f} dB | "
                f"{sum(row['num_distilled_recovered'])} of {of} | "
                f"{sum(row['num_copies'])} of {of} |"
            )
    lines += ["", "Found means a PSNR of at least 25 dB; sums over the seeds."]
    lines += _failures(found)
    return {"rows": rows, "markdown": "\n".join(lines) + "\n"}


def _draw(config: Any, found, workdir: Workdir) -> None:
    """Draws one figure per attack: the first seed's curve of every method."""
    first = {method: _sound(runs)[0] for method, runs in found.items() if _sound(runs)}
    for name in _defence.ATTACKS if first else ():
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
