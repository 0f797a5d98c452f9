"""The table of the limits study, as lines and as pictures."""

from typing import Any

import numpy as np

from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.reports import plots


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
    standard = [row for row in rows if row["dynamics"] == "standard"]
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
