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
_MOST = 2.0  # a signal counts no more than this, in means
_RIDGE = 1e-5
_UNITS, _UNITS_EACH = 512, 12
_POWERS = (4, 1)  # of inverse iteration
_ROUND = 16
_ENTRIES = 2**23  # of masked rows at once

_HIGHEST = jax.lax.Precision.HIGHEST


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _least(gram: Array, u: Array, powers: Array) -> Array:
    """The c of least energy: of those with c . u = 1 with one power, of all with many.

    Rows that were found are orthogonal to u, so one power returns none of them; more
    powers are surer of the least row there is.
    """
    n = len(gram)
    lifted = gram + _RIDGE * jnp.trace(gram) / n * jnp.eye(n, dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(lifted, lower=True)

    def step(_, c):
        c = jax.scipy.linalg.cho_solve(factor, c)
        return c / jnp.maximum(jnp.linalg.norm(c), 1e-30)

    return jax.lax.fori_loop(0, powers, step, u)


def _one(rows, mix, gates, inverse, widths, u, shift, powers):
    """Climbs from one start; returns u and the energy of its row where it closes."""

    def step(u, width):
        z = _mm(u, gates)
        z = z / jnp.maximum(jnp.std(z), 1e-30)
        closed = jax.nn.sigmoid(-(z + shift) / width)
        closed = closed / jnp.maximum(jnp.sum(closed), 1e-6) * len(z)
        c = _least(_mm(rows * closed[None], rows.T), _mm(mix, u), powers)
        size = jnp.abs(_mm(c, rows))
        energy = jnp.mean(closed * size**2) / jnp.mean(size**2)
        size = jnp.minimum(size / jnp.mean(size), _MOST)
        u = _mm(inverse, _mm(gates, size - jnp.mean(size)))
        return u / jnp.maximum(jnp.linalg.norm(u), 1e-30), energy

    u, energies = jax.lax.scan(step, u, widths)
    return u, energies[-1]


@functools.partial(jax.jit, static_argnames="at_once")
def _climb(rows, mix, gates, inverse, widths, starts, shifts, powers, *, at_once):
    return jax.lax.map(
        lambda each: _one(rows, mix, gates, inverse, widths, *each),
        (starts, shifts, powers),
        batch_size=at_once,
    )


def climb(
    space: Space,
    starts: Float[np.ndarray, "s n"],
    inverse: Float[np.ndarray, "n n"],
    *,
    key: Array,
    dtype=jnp.float32,
) -> Float[np.ndarray, "k n"]:
    """Returns rough u of every start that came to one, those that vanish best first.

    Args:
      space: the coordinates.
      starts: u to begin from; the sign is theirs.
      inverse: see `unit_space.inverse_gates`.
      key: typed key of the margins that closed units have to keep.
      dtype: of the search.
    """
    n, m = space.rows.shape
    key_shifts, key_units = jax.random.split(key)
    shifts = jax.random.uniform(key_shifts, (len(starts),), dtype)
    # A rough image takes no more units than this many an image.
    count = min(m, max(_UNITS, _UNITS_EACH * n))
    # Nor an odd few, so that changes of nearly as many units share a program.
    count -= count % _ROUND if count >= _ROUND**2 // 2 else 0
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_units)))
    units = np.sort(rng.permutation(m)[:count])
    cast = functools.partial(jnp.asarray, dtype=dtype)
    # Of unit size: products in float32 neither overflow nor vanish.
    size = np.sqrt(np.mean(space.gates**2))
    u, energies = _climb(
        cast(space.rows[:, units]),
        cast(space.mix),
        cast(space.gates[:, units] / size),
        cast(inverse * size**2),
        cast(_WIDTHS),
        cast(starts),
        shifts,
        # Half of the starts each: many images are left to the one, few to the other.
        jnp.asarray(np.resize(_POWERS, len(starts)), jnp.int32),
        at_once=max(1, min(len(starts), _ENTRIES // (n * count))),
    )
    u, energies = np.asarray(u, np.float64), np.asarray(energies)
    order = np.argsort(np.where(np.isfinite(energies), energies, np.inf))
    return u[order[np.all(np.isfinite(u[order]), axis=1)]]
