"""Set, networks and eigenvalues of sre2l or cda: made once, then kept in a folder."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk_privacy.data import ArgumentError, ImageSet
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.squeezed import Config
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evaluation.soft_students import Network
from ntk_privacy.method import Method
from ntk_privacy.models import ResNet18, saved
from ntk_privacy.reports import curvature_plots, files, sets
from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.workdir import Workdir

__all__ = ["LOOPS", "Made", "baseline", "draw", "eigenvalues", "kept", "make"]

LOOPS = ("squeeze", "recover", "relabel", "post_train")
"""Of `make`, in their order."""

_FILE = "eigenvalues.npz"
# Where experiments.evade looks for a model, and where the other network lies.
_FOLDERS = {"student": "", "squeezed": "squeezed"}


class Made(NamedTuple):
    """images: normalised. labels: their classes. model: of student and squeezed."""

    images: np.ndarray
    labels: np.ndarray
    model: ResNet18
    student: Network
    squeezed: Network


def kept(config: Config, workdir: Workdir, images: ImageSet) -> Made | None:
    """Returns what `make` has left; None where files are gone.

    Args:
      config: of the method.
      workdir: of the run.
      images: that were distilled.
    """
    folders = {name: workdir.path(place) for name, place in _FOLDERS.items()}
    there = all(saved.is_saved(folder) for folder in folders.values())
    if not (there and workdir.path("arrays.npz").exists()):
        return None
    arrays = workdir.read_arrays("arrays.npz")
    stored = {name: saved.load(folder) for name, folder in folders.items()}
    networks = {name: Network(s.params, s.stats) for name, s in stored.items()}
    model = squeezed.network(images, config)
    return Made(arrays["images"], arrays["labels"], model, **networks)


def make(
    method: Method[Config],
    config: Config,
    images: ImageSet,
    *,
    key: jax.Array,
    loops: Loops,
    dataset: str,
) -> Made:
    """Distils and trains the student; keeps both networks and the set.

    Args:
      method: sre2l or cda.
      config: of the method.
      images: to distil.
      key: typed key.
      loops: of the run, whose folder keeps what is made.
      dataset: what the images are called.

    Raises:
      ValueError: a loss is not finite.
    """
    normal, model = images.normal._asdict(), squeezed.network(images, config)
    workdir, stage = loops.workdir, loops.by_loop()
    found = method.run(images, config, key=key, stage=stage)
    student = soft_students.trained(images, found, config, key=key, stage=stage)
    losses = found.state.losses | {"post_train": student.losses}
    arrays = np.asarray(found.images), np.asarray(found.labels)
    teacher = Network(found.state.params, found.state.stats)
    made = Made(*arrays, model, student, teacher)
    workdir.write_arrays(
        "arrays.npz",
        images=made.images,
        labels=made.labels,
        **normal,
        **{f"losses_{name}": values for name, values in losses.items()},
    )
    for name, place in _FOLDERS.items():
        network = getattr(made, name)
        saved.save(
            workdir.path(place),
            model,
            network.params,
            stats=network.stats,
            image_shape=images.image_shape,
            **normal,
        )
    told = f"{method.name}, regularizer {config.regularizer}"
    path = workdir.path("distilled.png")
    sets.draw_classes(images, found, path, called=told, dataset=dataset)
    return made


def baseline(folder: str | None) -> np.ndarray | None:
    """Returns eigenvalues of another run's student; None where no folder is named.

    Args:
      folder: of the other run.

    Raises:
      ArgumentError: there are none in the folder.
    """
    if folder is None:
        return None
    try:
        return files.read_arrays(pathlib.Path(folder) / _FILE)["student"]
    except FileNotFoundError:
        told = f"has no {_FILE}"
    except (OSError, KeyError, ValueError):
        told = f"has an {_FILE} that cannot be read"
    raise ArgumentError(
        f"baseline={folder} {told}: give the folder of a run that was evaluated."
    )


def eigenvalues(
    workdir: Workdir, images: ImageSet, made: Made, key: jax.Array
) -> dict[str, np.ndarray]:
    """Returns the top ones of each network, by name; what is there is kept.

    Args:
      workdir: of the run.
      images: see `soft_students.eigenvalues`.
      made: of `make`.
      key: typed key.
    """
    if not workdir.path(_FILE).exists():
        found = {
            name: soft_students.eigenvalues(
                images, made.model, getattr(made, name), key=key
            )
            for name in ("squeezed", "student")
        }
        workdir.write_arrays(_FILE, **found)
    return workdir.read_arrays(_FILE)


def draw(
    workdir: Workdir, beside: np.ndarray | None, results: Mapping[str, Any]
) -> None:
    """Draws the student's eigenvalues, and a baseline's or the squeezed network's.

    Args:
      workdir: of the run, with its eigenvalues.
      beside: of `baseline`.
      results: of the run: its regularizer, dataset and num_images.
    """
    found, told = workdir.read_arrays(_FILE), results["regularizer"]
    shown = {f"{name} network": values for name, values in found.items()}
    of = f"{results['num_images']} images of {results['dataset']}"
    title = f"Squeezed from {of}, and its student"
    if beside is not None:
        shown = {"baseline": beside, f"regularizer {told}": found["student"]}
        title = f"Students, distilled from {of}"
    curvature_plots.eigenvalues(shown, workdir.path("eigenvalues.png"), title=title)
