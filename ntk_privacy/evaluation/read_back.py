"""What was read back from a network: matched with its images, measured, told."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ntk_privacy.data.dataset import Dataset
from ntk_privacy.evaluation import (
    max_margin_ranking,
    reconstruction_curve,
    trained_network,
)
from ntk_privacy.evaluation.max_margin_ranking import Ranking
from ntk_privacy.evaluation.reconstruction_curve import Evaluation
from ntk_privacy.reconstruction import (
    Reconstruction,
    evidence,
    result,
    shared_labels,
)
from ntk_privacy.training.victim import Victim

__all__ = ["ReadBack", "judged"]

_EVALUATED = (
    *("num_recovered", "mean_error", "mean_squared_error", "squared_distances"),
    *("distances", "psnr", "ssim"),
)


class ReadBack(NamedTuple):
    """What an attack found, against the images that the network was trained on.

    Attributes:
      figures: by name, as a file of results holds them.
      images: what was found, in the units of the dataset.
      pairs: training images and their reconstructions.
      ranking: pairs by normalised distance, of networks that take images less their
        mean image; else None.
      ranked_psnr: of these pairs.
    """

    figures: dict[str, Any]
    images: Float[np.ndarray, "m h w c"]
    pairs: Evaluation
    ranking: Ranking | None = None
    ranked_psnr: Float[np.ndarray, " n"] | None = None


def judged(
    dataset: Dataset,
    victim: Victim,
    found: Reconstruction,
    *,
    seen: Dataset | None = None,
) -> ReadBack:
    """Measures what an attack found.

    Args:
      dataset: that the network was trained on.
      victim: the network.
      found: of a method of `reconstruction.METHODS`.
      seen: what the network was trained on, where it was not the images themselves.

    Raises:
      ValueError: see `reconstruction_curve.evaluate`.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, reconstruction
      >>> from ntk_privacy.evaluation import read_back
      >>> from ntk_privacy.reconstruction import evidence
      >>> from ntk_privacy.training import victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=4, key=key)
      >>> trained = victim.train(digits.x_train, digits.y_train, width=256, key=key)
      >>> auto = reconstruction.METHODS["auto"]
      >>> known = evidence.told(trained, digits)
      >>> found = auto.run(known, auto.configured(), key=key)
      >>> read_back.judged(digits, trained, found).figures["num_recovered"]
      4
    """
    images, ranking, psnr = found.images, None, None
    told = result.figures(found)
    if victim.centre is not None:
        ranking, unseen, psnr = max_margin_ranking.compared(dataset, images)
        told["ranking"] = max_margin_ranking.figures(ranking, unseen)
        # The network takes images less their mean image.
        images = images + victim.centre
    pairs = reconstruction_curve.evaluate(dataset.x_train, images, mean=dataset.mean)
    if victim.gradient is not None:
        told |= _labels(dataset, victim, images, pairs)
    figures = {
        "verdict": found.verdict,
        "dynamics": victim.dynamics,
        "evidence": victim.evidence,
        "train_loss": victim.loss,
        "train_steps": victim.steps,
        "converged": victim.reached,
        **trained_network.figures(victim, dataset if seen is None else seen),
        **{name: getattr(pairs, name) for name in _EVALUATED},
        "attack_loss": float(found.losses[-1]) if len(found.losses) else None,
        **told,
    }
    return ReadBack(figures, np.asarray(images), pairs, ranking, psnr)


def _labels(
    dataset: Dataset,
    victim: Victim,
    images: Float[np.ndarray, "m h w c"],
    pairs: Evaluation,
) -> dict[str, Any]:
    """Labels of what was read from a gradient: classes, or -1 and +1; None: unclear."""
    read = shared_labels.read(evidence.told(victim, dataset), np.asarray(images))
    if read is None:
        return {}
    truth = np.asarray(dataset.y_train)[pairs.train_index]
    found = pairs.reconstruction_index
    same = np.all(np.isclose(read.codes[read.chosen[found]], truth), axis=1)
    one = read.codes.shape[1] == 1
    names = np.sign(read.codes[:, 0]) if one else np.argmax(read.codes, axis=1)
    each = zip(names[read.chosen], read.clear, strict=True)
    return {
        "labels": [int(name) if clear else None for name, clear in each],
        "num_labels_right": int(np.sum(same & read.clear[found])),
    }
