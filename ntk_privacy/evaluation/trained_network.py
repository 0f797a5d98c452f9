"""Figures of a network under attack, which the attacker does not have."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.data.dataset import Dataset
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import structured
from ntk_privacy.training import victim as victims
from ntk_privacy.training.victim import Victim

__all__ = ["NUM_TESTED", "figures", "kernel_moved", "test_accuracy"]

NUM_TESTED = 1000
"""Test images that `figures` asks about."""


def figures(victim: Victim, dataset: Dataset) -> dict[str, float]:
    """Returns test_accuracy and kernel_distance.

    Args:
      victim: trained on the dataset.
      dataset: as `data.load` gives it.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.evaluation import trained_network
      >>> from ntk_privacy.training import victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=10, key=key)
      >>> trained = victim.train(digits.x_train, digits.y_train, width=64, key=key)
      >>> found = trained_network.figures(trained, digits)
      >>> found["test_accuracy"] > 0.6, found["kernel_distance"]
      (True, 0.0)
    """
    dtype = jax.tree.leaves(victim.params_0)[0].dtype
    return {
        "test_accuracy": test_accuracy(
            victim, dataset.x_test[:NUM_TESTED], dataset.y_test[:NUM_TESTED]
        ),
        "kernel_distance": kernel_moved(victim, jnp.asarray(dataset.x_train, dtype)),
    }


def kernel_moved(victim: Victim, x_train: Float[Array, "n ..."]) -> float:
    """Returns how far the tangent kernel of the training images moved in training.

    Args:
      victim: trained; a linearized model keeps its kernel by definition, and of one
        whose kernel was no reference the figure is NaN.
      x_train: its training images.

    Raises:
      ValueError: see `evaluation.kernel_distance`.
    """
    if victim.dynamics == "linearized":
        return 0.0
    if victim.is_logistic:
        return float("nan")
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
