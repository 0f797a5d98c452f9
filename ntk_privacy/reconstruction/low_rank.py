"""The rank of a weight change: its singular value decomposition, cut where it ends.

A change of few images is a matrix of low rank and noise: the rank is their number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["CLEAR_GAP", "Factors", "RankHiddenError", "count_inputs", "factorize"]

CLEAR_GAP = 50.0
"""Linearized dynamics leave gaps above it, moving features gaps below."""

# A rank of one or two has to stand out this far: see `_widest`.
_FEW_GAP = 8.0

_HIGHEST = jax.lax.Precision.HIGHEST


class RankHiddenError(ValueError):
    """The singular values show no number of images: their widest gap is `gap`."""

    def __init__(self, gap: float, rank: int, count: int):
        super().__init__(
            f"The widest gap in the singular values is {gap:.2f}, after {rank} "
            f"of {count}: the rank cannot be told from noise; give num_images "
            "if it is known, else use reconstruction.kkt.reconstruct, which optimises "
            "images and needs no rank."
        )
        self.gap = gap


class Factors(NamedTuple):
    """Truncated singular value decomposition with the evidence for its rank.

    Attributes:
      left: (rows, rank) orthonormal columns.
      values: singular values, as many as were computed (more than the rank).
      right: (rank, columns) orthonormal rows.
      gap: last kept singular value over the first dropped one; 1 is no evidence.
    """

    left: Float[Array, "rows r"]
    values: Float[np.ndarray, " k"]
    right: Float[Array, "r columns"]
    gap: float


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


@jax.jit
def _sketched(g: Array, sketch: Array) -> Array:
    return _mm(g, sketch)


@jax.jit
def _powered(g: Array, q: Array) -> Array:
    return _mm(g, _mm(g.T, q))


@jax.jit
def _products(a: Array, b: Array) -> Array:
    return _mm(a.T, b)


def _orthonormal(y: Array) -> Array:
    """Orthonormal basis by two passes over the Gram matrix, far faster than QR.

    The Gram matrix is formed and factorized on the host in float64; the second pass
    repairs what the first loses where columns are nearly dependent.
    """
    for _ in range(2):
        tall = np.asarray(y, np.float64)
        values, vectors = np.linalg.eigh(tall.T @ tall)
        scale = 1.0 / np.sqrt(np.maximum(values, values[-1] * 1e-14))
        y = jnp.asarray(tall @ (vectors * scale), y.dtype)
    return y


def _widest(values: np.ndarray, *, whole: bool) -> tuple[int, float]:
    """Returns the rank at the widest gap of a spectrum, and the gap.

    The leading values stand far above the rest (all images share a mean), and the last
    few of a partial sketch fall off by themselves: neither is a sign of rank.
    """
    ratios = values[:-1] / values[1:]
    for i in range(min(2, len(ratios) - 1)):
        # One or two images leave noise, and noise is flat.
        behind = values[i + 1] / values[min(i + 9, len(values) - 1)]
        if not (ratios[i] > _FEW_GAP and behind < ratios[i] ** 0.5):
            ratios[i] = 1.0
    # Gates need more units than images, so a rank near the limit is none.
    ratios[-max(len(ratios) // (3 if whole else 16), 4) :] = 1.0
    widest = int(np.argmax(ratios))
    return widest + 1, float(ratios[widest])


def _spectrum(g: Array, key: Array, size: int) -> np.ndarray:
    """Approximate singular values from one random sketch."""
    sketch = jax.random.normal(key, (g.shape[1], size), g.dtype)
    y = np.asarray(_sketched(g, sketch), np.float64) / np.sqrt(size)
    values = np.linalg.eigvalsh(y.T @ y)[::-1]
    return np.sqrt(np.maximum(values, values[0] * 1e-16))


def factorize(
    g: Float[Array, "rows columns"], *, key: Array, num_images: int | None = None
) -> Factors:
    """Returns the SVD cut at the widest gap of the spectrum, or at `num_images`.

    Randomized (Halko et al., 2011, algorithm 4.4) with two power iterations. The rank
    is looked for in sketches that grow until the widest gap lies inside one.

    Args:
      g: any matrix.
      key: typed key of the random sketches.
      num_images: rank at which to cut; None is the widest gap.
    """
    limit = min(g.shape)
    rank = num_images
    size = min(limit, 128)
    while rank is None:
        guess, gap = _widest(_spectrum(g, key, size), whole=size == limit)
        if gap > 8.0 or size == limit:
            # Faint gaps are judged on the refined spectrum of a wide basis.
            rank = guess if gap > 8.0 else None
            break
        size = min(limit, 4 * size)
    basis_size = min(limit, 128 if rank is None else rank + 8)
    sketch = jax.random.normal(key, (g.shape[1], basis_size), g.dtype)
    q = _orthonormal(_sketched(g, sketch))
    for _ in range(2):
        q = _orthonormal(_powered(g, q))
    small = np.asarray(_products(q, g), np.float64)
    squares, vectors = np.linalg.eigh(small @ small.T)
    values = np.sqrt(np.maximum(squares[::-1], squares[-1] * 1e-16))
    vectors = vectors[:, ::-1]
    if rank is None:
        rank, _ = _widest(values, whole=basis_size == limit)
    rank = min(rank, basis_size)
    gap = float(values[rank - 1] / values[rank]) if rank < basis_size else 1.0
    left = _mm(q, jnp.asarray(vectors[:, :rank], g.dtype))
    right = (vectors[:, :rank] / values[:rank]).T @ small
    return Factors(left, values, jnp.asarray(right, g.dtype), gap)


def count_inputs(change: Float[Array, "d units"], *, key: Array) -> int | None:
    """Returns how many images span the change of the first layer's kernel.

    Its gradients are outer products with the images, whatever the features do, so its
    rank is their number even where that of the gates is lost. None if the rank is not
    clear: more images than pixels or units, or images that depend on each other.

    Args:
      change: of the first layer's kernel.
      key: typed key of the random sketches.
    """
    factors = factorize(change, key=key)
    return factors.right.shape[0] if factors.gap > CLEAR_GAP else None
