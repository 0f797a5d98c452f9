"""How far two gradients of one network are apart.

Source: Zhao, Mopuri & Bilen, ICLR 2021 (DC, arXiv:2006.05929), released code.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import Params

__all__ = ["METRICS", "distance"]

METRICS = ("layerwise", "mse", "cos")
_TINY = 1e-6


def _norm(squared: Array) -> Array:
    """The root, with slope 0 at 0: units without a gradient have none to match."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _cosine_gap(a: Array, b: Array) -> Array:
    """1 - cosine of the rows of two matrices."""
    product = jnp.sum(a * b, axis=1)
    norms = [_norm(jnp.sum(jnp.square(m), axis=1)) for m in (a, b)]
    return 1 - product / (norms[0] * norms[1] + _TINY)


def _is_vector(leaf: Array) -> bool:
    """Biases and scales: those of a normalisation are (1, 1, c) here."""
    return leaf.ndim == 1 or (leaf.ndim == 3 and leaf.shape[:2] == (1, 1))


def distance(
    real: Params, synthetic: Params, *, metric: str = "layerwise"
) -> Float[Array, ""]:
    r"""Distance of two gradients.

    "layerwise" is the paper's: over all tensors but vectors, with one row per output
    unit (the last axis of a Flax kernel),
    $$\sum_{\text{rows}} 1 - \frac{\langle g_R, g_S \rangle}
      {\|g_R\| \|g_S\| + 10^{-6}}$$
    Biases and the scales of normalisations contribute 0. "mse" is the squared distance
    of all entries; "cos" 1 less their cosine, as one row.

    Args:
      real: gradient of the parameters, a pytree.
      synthetic: another.
      metric: one of `METRICS`.

    Raises:
      ValueError: an unknown metric, or pytrees that differ in structure or shapes.
    """
    _checks.one_of(METRICS, metric=metric)
    _checks.same_structure("real", real, "synthetic", synthetic)
    pairs = list(zip(jax.tree.leaves(real), jax.tree.leaves(synthetic), strict=True))
    if metric == "layerwise":
        rows = [
            (a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]).T)
            for a, b in pairs
            if not _is_vector(a)
        ]
        parts = [jnp.sum(_cosine_gap(a, b)) for a, b in rows]
        return functools.reduce(jnp.add, parts, jnp.zeros((), pairs[0][0].dtype))
    flat = [jnp.concatenate([leaf.ravel() for leaf in side]) for side in zip(*pairs)]  # noqa: B905
    if metric == "mse":
        return jnp.sum(jnp.square(flat[0] - flat[1]))
    return _cosine_gap(flat[0][None], flat[1][None])[0]
