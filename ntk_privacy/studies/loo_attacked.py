"""A network trained on real images and searched for them: a cell of many studies.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 5: MLPs of two hidden layers,
twice as many candidates as images, plain L2 distances of greedy pairs.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_privacy import data
from ntk_privacy.data import Dataset
from ntk_privacy.evaluation import reconstruction_curve, trained_network
from ntk_privacy.evaluation.reconstruction_curve import Evaluation
from ntk_privacy.reconstruction import METHODS, evidence
from ntk_privacy.resume import Stage
from ntk_privacy.studies.item import Figures
from ntk_privacy.training import victim
from ntk_privacy.training.victim import Dynamics, Victim

__all__ = [
    "COLUMNS",
    "CONVERGED",
    "EARLY",
    "Attacked",
    "By",
    "Point",
    "attacked",
    "run",
]

CONVERGED, EARLY = 1e-10, 1e-2
"""Mean of (f - y)^2 / 2 at which training ends: published, and of its early stop."""

COLUMNS = {
    "error": "mean L2 distance",
    "relative_error": "over that of the mean image",
    "recovered": "share above 25 dB",
    "kernel_distance": "kernel distance",
}
"""Heads of tables of these cells."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A network and the search for its images.

    Attributes:
      dataset: a named image set.
      task: None is its binary one.
      num_images: N.
      width: of both hidden layers.
      dynamics: of the training.
      stop_loss: at which it ends.
      settings: of the search, "fast" or "paper".
      num_steps: of the search; None is what the settings say.
    """

    dataset: str
    task: str | None = None
    num_images: int
    width: int
    dynamics: Dynamics
    stop_loss: float = CONVERGED
    settings: str = "fast"
    num_steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class By(Point):
    """A network and an attack of either kind.

    Attributes: see `Point`.
      attack: "kkt", the search, or "auto", which decodes exactly what it can and
        searches for the rest.
    """

    attack: str


class Attacked(NamedTuple):
    """A network that was trained and searched for its images.

    Attributes:
      victim: the network.
      dataset: that it was trained on.
      pairs: of images and what was found.
      figures: see `run`.
    """

    victim: Victim
    dataset: Dataset
    pairs: Evaluation
    figures: dict[str, Any]


def run(config: Point, *, key: Array, stage: Stage) -> Figures:
    """Trains a network, searches for its images, and measures how near they are.

    Args:
      config: of the cell.
      key: of its images, its network and its search.
      stage: runs the loops.

    Returns:
      error (mean L2 distance of the pairs, intensity), relative_error (over the error
      of a guess of the mean image for all), recovered (share of images above 25 dB),
      kernel_distance, train_loss, curve (the distances, ascending).

    Raises:
      ValueError: the training does not end, or the search is lost.
    """
    return attacked(config, key=key, stage=stage).figures


def attacked(config: Point, *, key: Array, stage: Stage) -> Attacked:
    """Does what `run` does, and returns the network too.

    Args:
      config: see `run`.
      key: see `run`.
      stage: see `run`.

    Raises:
      ValueError: see `run`.
    """
    of_data, of_network, of_search = jax.random.split(key, 3)
    dataset = data.load(
        config.dataset, task=config.task, num_train=config.num_images, key=of_data
    )
    trained = victim.train(
        *(dataset.x_train, dataset.y_train),
        key=of_network,
        width=config.width,
        dynamics=config.dynamics,
        stop_loss=config.stop_loss,
        stage=stage,
    )
    if not trained.reached:
        raise ValueError(
            f"the network ends at a loss of {trained.loss:.2g}, not {config.stop_loss}."
        )
    method = METHODS[config.attack if isinstance(config, By) else "kkt"]
    search: dict[str, Any] = {"num_candidates": 2 * config.num_images}
    search |= {"settings": config.settings, "num_steps": config.num_steps}
    found = method.run(
        evidence.told(trained, dataset, num_images=config.num_images),
        method.configured(**search),
        key=of_search,
        stage=stage,
    )
    if found.nonfinite:
        raise ValueError("the search is lost: its loss is not finite.")
    # What is not found is taken for the mean image.
    missing = max(0, config.num_images - len(found.images))
    guesses = np.zeros((missing, *dataset.x_train.shape[1:]), np.float32)
    pairs = reconstruction_curve.evaluate(
        dataset.x_train,
        np.concatenate([np.asarray(found.images), guesses]),
        mean=dataset.mean,
    )
    flat = dataset.x_train.reshape(len(dataset.x_train), -1)
    guess = float(np.linalg.norm(flat.astype(np.float64), axis=1).mean())
    moved = trained_network.kernel_moved(trained, jnp.asarray(dataset.x_train))
    measured = {
        "error": pairs.mean_error,
        "relative_error": pairs.mean_error / guess,
        "recovered": pairs.num_recovered / config.num_images,
        "kernel_distance": moved,
        "train_loss": trained.loss,
        "curve": pairs.distances,
    }
    return Attacked(trained, dataset, pairs, measured)
