"""What attacks ascend: one value per image, greater if the image is read worse.

Sources: Croce & Hein, ICML 2020 (AutoAttack, arXiv:2003.01690), equations 5 and 6, for
the difference of logits ratio (DLR), which does not change if all logits are scaled.
No loss changes if a constant is added to all logits of an image.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "LOG_WEIGHTS",
    "LOSSES",
    "ascent_of_cross_entropy",
    "cross_entropy",
    "dlr",
    "log_odds",
    "margin",
    "misread",
    "targeted_dlr",
    "tiny",
]


# exp(-_SURE) is a number in every precision, and 1 + it is 1.
_SURE = 30.0


def tiny(dtype: Any) -> float:
    """Returns what keeps a quotient of small numbers finite.

    Args:
      dtype: of the quotient, floating point.
    """
    return max(1e-12, float(jnp.finfo(dtype).tiny))


def _pick(logits: Array, index: Array) -> Array:
    return jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]


def _other(logits: Array, y: Array) -> Array:
    """Returns the greatest logit of the wrong classes."""
    own = jnp.arange(logits.shape[1], dtype=y.dtype)[None, :] == y[:, None]
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)


def misread(logits: Float[Array, "n k"], y: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Returns which images are read as another class, or as none: NaN logits.

    So an attack ends at a point with NaN, where `task.finish` finds it.

    Args:
      logits: one row per image.
      y: labels.
    """
    unread = jnp.any(jnp.isnan(logits), axis=1)
    return unread | (jnp.argmax(logits, axis=1).astype(y.dtype) != y)


def margin(logits: Float[Array, "n k"], y: Int[Array, " n"]) -> Float[Array, " n"]:
    """Returns z_y - max_(j != y) z_j, which attacks descend.

    Args:
      logits: z, one row per image.
      y: labels.
    """
    return _pick(logits, y) - _other(logits, y)


def cross_entropy(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns log sum_j exp(z_j) - z_y; the target is not used.

    Args:
      logits: z, one row per image.
      y: labels.
      target: not used.
    """
    del target
    # Not a difference of large numbers: where y is sure the loss is tiny.
    return -_pick(jax.nn.log_softmax(logits, axis=1), y)


def log_odds(logits: Float[Array, "n k"], y: Int[Array, " n"]) -> Float[Array, " n"]:
    """Returns log sum_(j != y) exp(z_j) - z_y, with two classes -margin.

    The cross-entropy is log(1 + exp) of it, so that both have one direction of ascent.

    Args:
      logits: z, one row per image.
      y: labels.
    """
    own = jnp.arange(logits.shape[1], dtype=y.dtype)[None, :] == y[:, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return others - _pick(logits, y)


def ascent_of_cross_entropy(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns the cross-entropy, with the gradient of `log_odds`, its direction.

    Where a model is sure its cross-entropy underflows, value and gradient, though what
    it reads has not changed: from 1e-13 down the value is another function that grows
    with the odds.

    Args:
      logits: one row per image.
      y: labels.
      target: not used.
    """
    del target
    odds = log_odds(logits, y)
    floor = jax.nn.softplus(jnp.asarray(-_SURE, odds.dtype))
    tail = floor * _SURE / jnp.maximum(-odds, _SURE)
    value = jnp.where(odds < -_SURE, tail, jax.nn.softplus(odds))
    # An infinite value less itself is none; its gradient is of no use either.
    known = jnp.where(jnp.isfinite(odds), odds, 0)
    return jax.lax.stop_gradient(value) + (known - jax.lax.stop_gradient(known))


def _log_weight(logits: Array, y: Array) -> Array:
    """Returns the logarithm of the cross-entropy's slope over the log odds."""
    return jax.nn.log_sigmoid(log_odds(logits, y))


def _positive(scale: Array) -> Array:
    """Keeps a quotient finite without a constant, which small logits would see."""
    return jnp.where(scale > 0, scale, 1)


def dlr(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns -(z_y - max_(j != y) z_j) / (z_(1) - z_(3)); needs three classes.

    Args:
      logits: z, one row per image.
      y: labels.
      target: not used.
    """
    del target
    top = jax.lax.top_k(logits, 3)[0]
    return -margin(logits, y) / _positive(top[:, 0] - top[:, 2])


def targeted_dlr(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2); needs four classes.

    Args:
      logits: z, one row per image.
      y: labels.
      target: t, the class that each image is to be read as.
    """
    top = jax.lax.top_k(logits, 4)[0]
    below = (top[:, 2] + top[:, 3]) / 2
    ahead = _pick(logits, y) - _pick(logits, target)
    return -ahead / _positive(top[:, 0] - below)


LOSSES: Mapping[str, Callable[..., Array]] = {
    "ce": ascent_of_cross_entropy,
    "dlr": dlr,
    "targeted-dlr": targeted_dlr,
}
"""Losses `(logits, y, target) -> value per image`, by name, for ascent."""

LOG_WEIGHTS: Mapping[str, Callable[..., Array]] = {"ce": _log_weight}
"""`(logits, y) -> logarithm` of what gradients must be multiplied by where they are
added, those of several draws or images."""
