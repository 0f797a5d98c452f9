"""The top eigenvalues of a run: measured once, drawn, beside those of another run."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments._flags import UsageError
from experiments._workdir import Workdir
from ntk_privacy.data import ImageSet
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evaluation.soft_students import Network
from ntk_privacy.models import ResNet18
from ntk_privacy.reports import curvature_plots, files

_FILE = "eigenvalues.npz"


def baseline(folder: str | None) -> np.ndarray | None:
    """Returns those of the student of another run, or raises UsageError."""
    if folder is None:
        return None
    try:
        return files.read_arrays(pathlib.Path(folder) / _FILE)["student"]
    except FileNotFoundError:
        told = f"has no {_FILE}"
    except (OSError, KeyError, ValueError):
        told = f"has an {_FILE} that cannot be read"
    raise UsageError(
        f"baseline={folder} {told}: give the folder of a run that was evaluated."
    )


def measured(
    workdir: Workdir,
    images: ImageSet,
    model: ResNet18,
    networks: Mapping[str, Network],
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """Returns those of each network, by name; what is there is kept."""
    if not workdir.path(_FILE).exists():
        found = {
            name: soft_students.eigenvalues(images, model, network, key=key)
            for name, network in networks.items()
        }
        workdir.write_arrays(_FILE, **found)
    return workdir.read_arrays(_FILE)


def draw(
    workdir: Workdir, beside: np.ndarray | None, results: Mapping[str, Any]
) -> None:
    """Draws those of the student, beside a baseline's or the squeezed network's."""
    found, told = workdir.read_arrays(_FILE), results["regularizer"]
    shown = {f"{name} network": values for name, values in found.items()}
    of = f"{results['num_images']} images of {results['dataset']}"
    title = f"Squeezed from {of}, and its student"
    if beside is not None:
        shown = {"baseline": beside, f"regularizer {told}": found["student"]}
        title = f"Students, distilled from {of}"
    curvature_plots.eigenvalues(shown, workdir.path("eigenvalues.png"), title=title)
