r"""Rough images from random starts: which direction closes units that vanish?

From a rough u, its surely closed units tell c, the direction of the row space with the
least energy there; the size of the row c V tells which units are open; regression of
that on A is the next u. A start that agrees with an image on three quarters of the
units ends at one in a few rounds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.reconstruction.unit_space import Space

__all__ = ["climb"]

# Widths of the gate, in standard deviations of the preactivation.
_WIDTHS = (*(0.3,) * 10, *(0.1,) * 6, *(0.03,) * 4)
_LEAST = 4  # rounds of inverse iteration
_MOST = 2.0  # a signal counts no more than this, in means
_RIDGE = 1e-6
_ENTRIES = 2**23  # of masked rows at once

_HIGHEST = jax.lax.Precision.HIGHEST


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _least(gram: Array, start: Array) -> tuple[Array, Array]:
    """Eigenvector of the smallest eigenvalue, by inverse iteration."""
    n = len(gram)
    lifted = gram + _RIDGE * jnp.trace(gram) / n * jnp.eye(n, dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(lifted, lower=True)

    def step(c, _):
        y = jax.scipy.linalg.cho_solve(factor, c)
        size = jnp.linalg.norm(y)
        return y / size, 1 / size

    c, values = jax.lax.scan(step, start, None, length=_LEAST)
    return c, values[-1]


def _one(rows: Array, gates: Array, inverse: Array, widths: Array, u, shift):
    """Climbs from one start; returns u, c, and its least eigenvalue."""

    def step(carry, width):
        u, c = carry
        z = _mm(u, gates)
        z = z / jnp.maximum(jnp.std(z), 1e-30)
        closed = jax.nn.sigmoid(-(z + shift) / width)
        closed = closed / jnp.maximum(jnp.sum(closed), 1e-6) * len(z)
        c, value = _least(_mm(rows * closed, rows.T), c)
        size = jnp.abs(_mm(c, rows))
        size = jnp.minimum(size / jnp.mean(size), _MOST)
        u = _mm(inverse, _mm(gates, size - jnp.mean(size)))
        return (u / jnp.maximum(jnp.linalg.norm(u), 1e-30), c), value

    (u, c), values = jax.lax.scan(step, (u, jnp.ones_like(u)), widths)
    return u, c, values[-1]


@functools.partial(jax.jit, static_argnames="at_once")
def _climb(rows, gates, inverse, widths, starts, shifts, *, at_once):
    return jax.lax.map(
        lambda each: _one(rows, gates, inverse, widths, *each),
        (starts, shifts),
        batch_size=at_once,
    )


def climb(
    space: Space,
    starts: Float[np.ndarray, "s n"],
    inverse: Float[np.ndarray, "n n"],
    *,
    key: Array,
    dtype=jnp.float32,
) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, "s n"]]:
    """Returns rough u and c of every start, those that vanish best first.

    Args:
      space: the coordinates.
      starts: u to begin from; the sign is theirs.
      inverse: see `unit_space.inverse_gates`.
      key: typed key of the margins that closed units have to keep.
      dtype: of the search.
    """
    n, m = space.rows.shape
    shifts = jax.random.uniform(key, (len(starts),), dtype)
    cast = functools.partial(jnp.asarray, dtype=dtype)
    # Of unit size: products in float32 neither overflow nor vanish.
    size = np.sqrt(np.mean(space.gates**2))
    u, c, values = _climb(
        cast(space.rows),
        cast(space.gates / size),
        cast(inverse * size**2),
        cast(_WIDTHS),
        cast(starts),
        shifts,
        at_once=max(1, min(len(starts), _ENTRIES // (n * m))),
    )
    u, c, values = (np.asarray(a, np.float64) for a in (u, c, values))
    order = np.argsort(np.where(np.isfinite(values), values, np.inf))
    whole = order[np.all(np.isfinite(u[order]), axis=1)]
    return u[whole], c[whole]
