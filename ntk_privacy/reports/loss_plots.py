"""Figures of losses over steps."""

import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.reports.canvas import COLOURS, STYLES, drawn

__all__ = ["losses"]

_WINDOW, _FEWEST = 50, 5


def losses(
    histories: Mapping[str, Float[Array | np.ndarray, " steps"]],
    path: str | pathlib.Path,
    *,
    title: str,
    every: int = 1,
    kind: str = "squared feature distance",
) -> None:
    """Draws losses against steps on logarithmic axes, raw and as a running mean.

    Args:
      histories: label to the loss before each step; those that are not positive and
        finite are left out.
      path: the PNG to write.
      title: of the figure.
      every: steps from one loss of a history to the next.
      kind: what the loss is, in its unit.

    Raises:
      ValueError: there is no history.
    """
    _checks.at_least(1, num_histories=len(histories), every=every)
    unit = "steps" if every == 1 else f"losses, one in {every} steps"
    with drawn(path, title=title, size=(7.2, 4.2)) as axes:
        for i, (label, history) in enumerate(histories.items()):
            history = np.asarray(history, np.float64)
            steps = 1 + every * np.arange(len(history))
            shown = np.isfinite(history) & (history > 0)
            steps, history = steps[shown], history[shown]
            colour = COLOURS[i % len(COLOURS)]
            width = min(max(_FEWEST, _WINDOW // every), len(history))
            axes.plot(steps, history, color=colour, alpha=0.25, linewidth=0.8)
            if width:
                axes.plot(
                    steps[width - 1 :],
                    np.convolve(history, np.full(width, 1 / width), "valid"),
                    STYLES[i % len(STYLES)],
                    color=colour,
                    linewidth=1.8,
                    label=f"{label}, mean of {width} {unit}",
                )
        # Of nothing to show there is no logarithm.
        if any(np.any(np.asarray(h)[np.isfinite(h)] > 0) for h in histories.values()):
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(f"loss ({kind})")
        axes.grid(which="major")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=10)
