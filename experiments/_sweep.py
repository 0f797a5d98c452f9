"""The limits study: many configurations of `experiments.reconstruct`, one table.

Each cell is a run of its own in a folder below --workdir, so a killed sweep goes on
where it stood. Cells run from small to large; the table and the figures are redrawn
after each.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.reports import plots

# What a study sets in every cell, in place of the flags.
AXES = (
    *("dataset", "task", "num_images", "width", "dynamics", "early_stop_loss"),
    *("known_num_images", "image_size", "fingerprint"),
)

# The axes of each named study. Ten outputs make every candidate ten rows, and networks
# whose features move are trained and searched step by step: there N is less.
_LINEARIZED, _STANDARD = "linearized", "standard"
SWEEPS: dict[str, dict[str, tuple]] = {
    "full": {
        "datasets": ("mnist", "cifar10"),
        "tasks": (None, "all_classes"),
        "num_images": (20, 50, 100, 200, 500),
        "widths": (256, 1024, 4096),
        "dynamics": (_LINEARIZED, _STANDARD),
        "early_stop_losses": (None, 1e-2),
        "most_images_of_all_classes": (500,),
        "most_images_of_standard": (500,),
    },
    "cpu": {
        "datasets": ("mnist", "cifar10"),
        "tasks": (None, "all_classes"),
        "num_images": (20, 50, 100),
        "widths": (256, 1024),
        "dynamics": (_LINEARIZED, _STANDARD),
        "early_stop_losses": (None, 1e-2),
        "most_images_of_all_classes": (20,),
        "most_images_of_standard": (50,),
    },
    "smoke": {
        "datasets": ("digits",),
        "tasks": (None,),
        "num_images": (4, 8),
        "widths": (64, 128),
        "dynamics": (_LINEARIZED, _STANDARD),
        "early_stop_losses": (None,),
        "most_images_of_all_classes": (8,),
        "most_images_of_standard": (8,),
    },
}


def cells(config: Any) -> list[Any]:
    """Returns one config per cell of `config.sweep`, cheapest first."""
    axes = SWEEPS[config.sweep]
    tasks: Iterable[Any] = itertools.product(
        axes["datasets"],
        axes["tasks"],
        axes["num_images"],
        axes["widths"],
        axes["dynamics"],
        axes["early_stop_losses"],
    )
    out = []
    (most,) = axes["most_images_of_all_classes"]
    (most_standard,) = axes["most_images_of_standard"]
    for dataset, task, n, width, dynamics, early in tasks:
        if task == "all_classes" and n > most:
            continue
        if dynamics == _STANDARD and n > most_standard:
            continue
        name = "_".join(
            [
                dataset,
                task or "binary",
                f"n{n}",
                f"w{width}",
                dynamics,
                "early" if early else "converged",
            ]
        )
        cell = dataclasses.replace(
            config,
            sweep=None,
            dataset=dataset,
            task=task,
            num_images=n,
            width=width,
            dynamics=dynamics,
            early_stop_loss=early,
            known_num_images=None,
            image_size=None,
            fingerprint=None,
            workdir=str(pathlib.Path(config.workdir) / name),
        )
        out.append(cell)

    def cost(cell):
        rows = 10 if cell.task == "all_classes" else 1
        return (cell.num_images * cell.width**2 * rows**2, cell.dynamics)

    return sorted(out, key=cost)


def run(
    config: Any, run_cell: Callable[[Any], dict[str, Any]], ignore: tuple[str, ...]
) -> dict[str, Any]:
    """Runs every cell and returns the table, which is also in results.json.

    A cell that cannot be run is a row with an `error`, not the end of the study.
    """
    with Workdir(config.workdir, config, ignore=ignore) as workdir:
        rows = []
        for cell in cells(config):
            row = {
                "dataset": cell.dataset,
                "task": cell.task or "binary",
                "num_images": cell.num_images,
                "width": cell.width,
                "dynamics": cell.dynamics,
                "early_stop_loss": cell.early_stop_loss,
            }
            try:
                results = run_cell(cell)
            except (ValueError, FloatingPointError) as error:
                row["error"] = str(error)
            else:
                names = ("num_recovered", "num_certified", "estimated_num_images")
                names += ("mean_error", "kernel_distance", "train_loss", "seconds")
                names += ("verdict", "warnings")
                row |= {name: results.get(name) for name in names}
                row["squared_distances"] = results["squared_distances"]
                print(line(row), flush=True)
            rows.append(row)
            draw(rows, workdir)
            workdir.write_json("table.json", rows)
        workdir.write_json("results.json", {"sweep": config.sweep, "table": rows})
        return {"sweep": config.sweep, "table": rows}


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


def draw(rows: list[dict[str, Any]], workdir: Workdir) -> None:
    """Draws curves per width, one picture per setting, and error against distance."""
    rows = [row for row in rows if "error" not in row]
    settings: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        stop = "early" if row["early_stop_loss"] else "converged"
        key = (row["dataset"], row["task"], row["num_images"], row["dynamics"], stop)
        settings.setdefault(key, []).append(row)
    for key, group in settings.items():
        dataset, task, n, dynamics, stop = key
        curves = {
            f"width {row['width']}": np.asarray(row["squared_distances"], float)
            for row in sorted(group, key=lambda row: row["width"])
        }
        plots.curve(
            curves,
            workdir.path(f"curve_{dataset}_{task}_n{n}_{dynamics}_{stop}.png"),
            image_shape=data.SETS[dataset].image_shape,
            title=f"{dataset} {task}, N = {n}, {dynamics}, {stop}",
        )
    standard = [row for row in rows if row["dynamics"] == _STANDARD]
    if standard:
        series: dict[str, list[tuple[float, float]]] = {}
        for row in standard:
            stop = ", early" if row["early_stop_loss"] else ""
            label = f"{row['dataset']} {row['task']}{stop}"
            series.setdefault(label, []).append(
                (float(row["kernel_distance"]), float(row["mean_error"]))
            )
        plots.scatter(
            series,
            workdir.path("error_against_kernel_distance.png"),
            x_label="kernel distance",
            y_label="mean reconstruction error (L2, intensity)",
            title="Standard dynamics: error against kernel distance",
        )
