r"""Whether images found from final weights alone are anything.

At a KKT point $\theta = \sum_i \lambda_i y_i \nabla f(x_i)$, $\lambda_i \ge 0$. Real
training stops short of it: the second layer keeps what it began with, and the truth
itself explains 16 to 65% of $\|\theta\|^2$ only. The first layer began next to zero, so
nearly all of it is gradients of the training images (87 to 98% measured, early stops
included; 42% with noise as large as the weights added, 0% where it began at a usual
size or was not trained). It decides, against as many random images with their own best
multipliers.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from ntk_privacy._types import Params
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import explanation
from ntk_privacy.reconstruction.judging import BEYOND_CHANCE, percent
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["FIRST_LAYER", "MarginEvidence", "judge", "measure"]

FIRST_LAYER = 0.75
"""The least share of the first layer that training images explain."""


class MarginEvidence(NamedTuple):
    """Shares of squared norms that images with their best multipliers explain.

    Attributes:
      explained: of all parameters.
      first: of the first layer, with the same multipliers.
      chance: of the first layer, by as many random images of the same span and norms.
      outside: share of the images' squared norm beyond [-1, 1].
      contributions: multiplier times its image's own gradient product with theta, over
        the squared norm of theta: they add up to what is explained.
    """

    explained: float
    first: float
    chance: float
    outside: float
    contributions: Float[np.ndarray, " m"]


def measure(
    model: MLP,
    params: Params,
    images: Float[Array | np.ndarray, "m h w d"],
    labels: Float[Array | np.ndarray, " m"],
) -> MarginEvidence | None:
    """Fits non-negative multipliers and measures what they explain of the weights.

    None where the images are too large for their gradients to be finite.

    Args:
      model: one output.
      params: after training.
      images: what the attack found, at most 3,000; finite.
      labels: -1 or +1.
    """
    signs = np.asarray(labels, np.float64)
    eps = float(jnp.finfo(params["Dense_0"]["kernel"].dtype).eps)

    def shares(pictures):
        pictures = jnp.asarray(pictures, params["Dense_0"]["kernel"].dtype)
        found = explanation.parts(model, (params,), params, pictures)
        if not explanation.is_finite(found):
            return None
        kernel = sum(part.kernel for part in found.values()) * np.outer(signs, signs)
        along = sum(part.projection for part in found.values()) * signs
        weights = _non_negative(kernel, along, eps)
        first, duals = found["Dense_0"], weights * signs
        whole = sum(part.squared_norm for part in found.values())
        return (
            (2 * weights @ along - weights @ kernel @ weights) / whole,
            (2 * duals @ first.projection - duals @ first.kernel @ duals)
            / first.squared_norm,
            weights * along / whole,
        )

    by_images = shares(images)
    by_chance = shares(explanation.random_like(np.asarray(images)))
    if by_images is None or by_chance is None:
        return None
    explained, first, contributions = by_images
    _, chance, _ = by_chance
    return MarginEvidence(
        explained=min(float(explained), 1.0),
        first=min(float(first), 1.0),
        chance=min(float(chance), 1.0),
        outside=explanation.outside(np.asarray(images, np.float64), (-1.0, 1.0)),
        contributions=contributions,
    )


def _non_negative(kernel, along, eps: float) -> np.ndarray:
    """Returns w >= 0 of least w K w - 2 w a, by least squares with a root of K."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 10 * eps * max(values[-1], 1e-300)
    roots = np.sqrt(values[kept])
    right = (vectors[:, kept].T @ along) / roots
    root = (vectors[:, kept] * roots[None]).T
    return scipy.optimize.nnls(root, right)[0]


def judge(found: MarginEvidence | None) -> Verdict:
    """Returns the verdict of the max-margin attack.

    Args:
      found: of its images; None if its loss became NaN.
    """
    if found is None:
        return Verdict(
            "nothing found",
            "The search was lost, its loss or images too large for numbers to hold: "
            "lower the learning rate of the images.",
        )
    told = (
        f"the images with their best multipliers explain {percent(found.first)} of the "
        f"first layer's squared norm (as many random images: {percent(found.chance)}) "
        f"and {percent(found.explained)} of all weights'"
    )
    if found.outside > 0.04:
        return Verdict(
            "nothing found",
            f"{percent(found.outside)} of the images' squared norm lies outside "
            f"[-1, 1]; {told}.",
            explained=found.explained,
        )
    left = 1 - found.first
    if left <= 1 - FIRST_LAYER and left <= BEYOND_CHANCE * (1 - max(found.chance, 0)):
        return Verdict(
            "approximate", f"No certificate, but {told}.", explained=found.explained
        )
    return Verdict(
        "nothing found",
        f"Too little to tell from a fit: {told}, where training images explain "
        f"{percent(FIRST_LAYER)} of the first layer at least; the network was not "
        "trained on the logistic loss from a tiny first layer until its margins held, "
        "or the search ended short of its images.",
        explained=found.explained,
    )
