"""What attacks ascend: one value per image, greater if the image is read worse.

Sources: Croce & Hein, ICML 2020 (AutoAttack, arXiv:2003.01690), equations 5 and 6, for
the difference of logits ratio (DLR), which does not change if all logits are scaled.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "LOSSES",
    "cross_entropy",
    "dlr",
    "margin",
    "misread",
    "targeted_dlr",
    "tiny",
]


def tiny(dtype: Any) -> float:
    """Returns what keeps a quotient of small numbers finite."""
    return max(1e-12, float(jnp.finfo(dtype).tiny))


def _pick(logits: Array, index: Array) -> Array:
    return jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]


def _other(logits: Array, y: Array) -> Array:
    """Returns the greatest logit of the wrong classes."""
    own = jnp.arange(logits.shape[1], dtype=y.dtype)[None, :] == y[:, None]
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)


def misread(logits: Float[Array, "n k"], y: Int[Array, " n"]) -> Bool[Array, " n"]:
    """Returns which images are read as another class, or as none: NaN logits.

    So an attack ends at a point with NaN, where `task.refuse_nan` finds it.
    """
    unread = jnp.any(jnp.isnan(logits), axis=1)
    return unread | (jnp.argmax(logits, axis=1).astype(y.dtype) != y)


def margin(logits: Float[Array, "n k"], y: Int[Array, " n"]) -> Float[Array, " n"]:
    """Returns z_y - max_(j != y) z_j, which attacks descend."""
    return _pick(logits, y) - _other(logits, y)


def cross_entropy(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns log sum_j exp(z_j) - z_y; the target is not used."""
    del target
    # Not a difference of large numbers: where y is sure the loss is tiny.
    return -_pick(jax.nn.log_softmax(logits, axis=1), y)


def dlr(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns -(z_y - max_(j != y) z_j) / (z_(1) - z_(3)); needs three classes."""
    del target
    top = jax.lax.top_k(logits, 3)[0]
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + tiny(top.dtype))


def targeted_dlr(
    logits: Float[Array, "n k"], y: Int[Array, " n"], target: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2); needs four classes."""
    top = jax.lax.top_k(logits, 4)[0]
    below = (top[:, 2] + top[:, 3]) / 2
    ahead = _pick(logits, y) - _pick(logits, target)
    return -ahead / (top[:, 0] - below + tiny(top.dtype))


LOSSES: Mapping[str, Callable[..., Array]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "targeted-dlr": targeted_dlr,
}
"""Losses `(logits, y, target) -> value per image`, by name."""
