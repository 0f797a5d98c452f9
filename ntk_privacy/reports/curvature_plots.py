"""Figures of curvature: how the top eigenvalues of Hessians spread over images.

Source: GUARD (arXiv:2403.10045), figure 2.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.reports.canvas import COLOURS, drawn

__all__ = ["eigenvalues"]

_BINS = 40
# Saturated images have eigenvalues of hardly more than nothing: one bin holds them all.
_DECADES = 6


def eigenvalues(
    found: Mapping[str, Float[Array | np.ndarray, " n"]],
    path: str | pathlib.Path,
    *,
    title: str,
) -> None:
    """Draws the distribution of top eigenvalues over images, one colour per network.

    Args:
      found: label to the eigenvalue at each image, such as plain and regularised; those
        six decades below the largest of all, and negative ones, share the first bin.
      path: the PNG to write.
      title: above the axes.

    Raises:
      ValueError: there is no network, or no eigenvalue is positive.
    """
    _checks.at_least(1, num_networks=len(found))
    values = {name: np.asarray(v, np.float64) for name, v in found.items()}
    largest = max(float(v.max()) for v in values.values())
    _checks.positive(largest_eigenvalue=largest)
    low = largest * 10.0**-_DECADES
    bins = np.geomspace(low, largest * 1.001, _BINS + 1)
    with drawn(path, title=title, size=(7.2, 4.2)) as axes:
        for i, (name, each) in enumerate(values.items()):
            colour = COLOURS[i % len(COLOURS)]
            label = f"{name}: mean {each.mean():.3g}, median {np.median(each):.3g}"
            axes.hist(
                np.maximum(each, low), list(bins), color=colour, alpha=0.45, label=label
            )
            axes.axvline(
                max(each.mean(), low), color=colour, linestyle="--", linewidth=1.2
            )
        axes.set_xscale("log")
        axes.set_xlabel(
            "top eigenvalue of the loss's Hessian in the image (dashed: mean)"
        )
        axes.set_ylabel("images")
        axes.legend(fontsize=9)
