"""Pictures of a poisoning: its target and poisons, what was condensed, the losses."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import poisoned_table
from ntk_privacy.poisoning import Poisoned, Scene
from ntk_privacy.reports import loss_plots, plots, sets

__all__ = ["losses", "made"]

_SHOWN = 9


def made(
    scene: Scene,
    found: Poisoned | Distilled,
    path: str | pathlib.Path,
    *,
    title: str,
) -> None:
    """Draws poisons and, below them, what they were; or a condensed set.

    Args:
      scene: with the target.
      found: what was made for it.
      path: the PNG to write.
      title: of the figure.
    """
    normal = scene.images.normal
    if isinstance(found, Distilled):
        plots.pictures(
            np.asarray(found.images) * normal.deviation,
            path,
            mean=normal.mean,
            notes=[sets.class_name(scene.images, int(label)) for label in found.labels],
            title=title,
        )
        return
    shown = min(_SHOWN, len(found.images))
    target = scene.target_image[None]
    rows = [target, np.asarray(found.images)[:shown], target, scene.clean[:shown]]
    plots.pictures(
        np.concatenate(rows) - normal.mean,
        path,
        mean=normal.mean,
        notes=["target", *["poison"] * shown, "target", *["clean"] * shown],
        columns=shown + 1,
        title=title,
    )


def losses(
    entries: Sequence[Mapping[str, Any]], path: str | pathlib.Path, *, num_steps: int
) -> None:
    """Draws the loss of every method at the first seed, its first condensation.

    Args:
      entries: of `evaluation.poisoned_sets.study`.
      path: the PNG to write.
      num_steps: of the condensation.
    """
    first = min(entry["seed"] for entry in entries)
    loss_plots.losses(
        {
            entry["method"]: np.asarray(entry["losses"], np.float64)
            for entry in entries
            if (entry["seed"], entry["run"]) == (first, 0)
        },
        path,
        title=f"Condensation of poisoned images, seed {first}",
        every=poisoned_table.stride(num_steps),
    )
