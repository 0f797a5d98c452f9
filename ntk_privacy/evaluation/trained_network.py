"""Figures of a network under attack, which the attacker does not have."""

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import structured
from ntk_privacy.training import victim as victims
from ntk_privacy.training.victim import Victim

__all__ = ["kernel_moved", "test_accuracy"]


def kernel_moved(victim: Victim, x_train: Float[Array, "n ..."]) -> float:
    """Returns how far the tangent kernel of the training images moved in training.

    Args:
      victim: trained; a linearized model keeps its kernel by definition.
      x_train: its training images.

    Raises:
      ValueError: see `evaluation.kernel_distance`.
    """
    if victim.dynamics == "linearized":
        return 0.0
    before, after = (
        structured.ntk(victim.model, params, x_train)
        for params in (victim.params_0, victim.params_t)
    )
    return float(kernel_distance(before, after))


def test_accuracy(
    victim: Victim,
    x_test: Float[Array | np.ndarray, "m ..."],
    y_test: Float[Array | np.ndarray, "m c"],
) -> float:
    """Returns the share of test images that the network gets right.

    Args:
      victim: trained.
      x_test: preprocessed like the training images.
      y_test: their targets; one column says the class by its sign.
    """
    outputs, y = np.asarray(victims.outputs(victim, x_test)), np.asarray(y_test)
    if y.shape[1] == 1:
        return float(np.mean(np.sign(outputs) == np.sign(y)))
    return float(np.mean(outputs.argmax(1) == y.argmax(1)))
