"""Pictures of a kernel, of its spectrum, and of its way through training."""

from typing import Any

import numpy as np

from experiments._workdir import Workdir
from ntk_privacy.evaluation.kernel_movement import Moved
from ntk_privacy.reports import kernel_plots


def draw(
    workdir: Workdir,
    kernel: np.ndarray,
    spectra: dict[str, np.ndarray],
    title: str,
    dtype: np.finfo,
) -> None:
    """Draws kernel.png and spectrum.png.

    Args:
      workdir: of the pictures.
      kernel: or a part of it.
      spectra: eigenvalues by label, the largest first.
      title: of the pictures.
      dtype: that the kernel was computed in.
    """
    kernel_plots.picture(kernel, workdir.path("kernel.png"), title=title)
    largest = max(float(values[0]) for values in spectra.values())
    kernel_plots.spectrum(
        spectra,
        workdir.path("spectrum.png"),
        title=f"Spectrum: {title}",
        rounding=float(dtype.eps) * largest,
    )


def followed(workdir: Workdir, moved: Moved) -> dict[str, Any]:
    """Draws distance.png; returns entries of results.json.

    Args:
      workdir: of the picture.
      moved: of the training.
    """
    path = workdir.path("distance.png")
    kernel_plots.distances(moved.steps, moved.distances, moved.losses, path)
    return {
        "kernel_distance": moved.distances[-1],
        "train_steps": moved.steps[-1],
        "train_loss": moved.losses[-1],
        "converged": moved.converged,
        "steps": moved.steps,
        "losses": moved.losses,
        "kernel_distances": moved.distances,
    }
