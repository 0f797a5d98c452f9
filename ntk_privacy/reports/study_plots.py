"""Pictures of studies of many runs: limits of reconstruction, and defences."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntk_privacy import data
from ntk_privacy.evaluation import defence
from ntk_privacy.reports import plots, studies

__all__ = ["defences", "limits"]


def limits(rows: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> None:
    """Draws curves per width, one picture per setting, and error against distance.

    Args:
      rows: of the table of a limits study; those with an error are left out.
      folder: of the pictures.
    """
    rows = [row for row in rows if "error" not in row]
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        stop = "early" if row["early_stop_loss"] else "converged"
        key = (row["dataset"], row["task"], row["num_images"], row["dynamics"], stop)
        settings.setdefault(key, []).append(row)
    for (dataset, task, n, dynamics, stop), group in settings.items():
        curves = {
            f"width {row['width']}": np.asarray(row["squared_distances"], float)
            for row in sorted(group, key=lambda row: row["width"])
        }
        plots.curve(
            curves,
            folder / f"curve_{dataset}_{task}_n{n}_{dynamics}_{stop}.png",
            image_shape=data.SETS[dataset].image_shape,
            title=f"{dataset} {task}, N = {n}, {dynamics}, {stop}",
        )
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["dynamics"] != "standard":
            continue
        stop = ", early" if row["early_stop_loss"] else ""
        label = f"{row['dataset']} {row['task']}{stop}"
        point = float(row["kernel_distance"]), float(row["mean_error"])
        series.setdefault(label, []).append(point)
    if series:
        plots.scatter(
            series,
            folder / "error_against_kernel_distance.png",
            x_label="kernel distance",
            y_label="mean reconstruction error (L2, intensity)",
            title="Standard dynamics: error against kernel distance",
        )


def defences(
    found: studies.Runs, folder: pathlib.Path, *, image_shape: tuple[int, int, int]
) -> None:
    """Draws a picture per attack: the curve of every method's first sound run.

    Args:
      found: by method, what its runs tell; see `studies.attacks`.
      folder: of the pictures.
      image_shape: height, width, channels.
    """
    sound = {method: studies.sound(runs) for method, runs in found.items()}
    first = {method: runs[0] for method, runs in sound.items() if runs}
    for name in defence.ATTACKS if first else ():
        curves = {
            f"trained on {method}": np.asarray(
                told["attack"][name]["squared_distances"], float
            )
            for method, told in first.items()
        }
        plots.curve(
            curves,
            folder / f"defence_{name}.png",
            image_shape=image_shape,
            title=f"Original images against what the {name} attack finds",
        )
