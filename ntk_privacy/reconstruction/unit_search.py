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

__all__ = ["climb", "surest"]

# Widths of the gate, in standard deviations of the preactivation.
_WIDTHS = (*(0.3,) * 10, *(0.1,) * 6, *(0.03,) * 4)
_MOST = 2.0  # a signal counts no more than this, in means
_RIDGE = 1e-5
_UNITS, _UNITS_EACH = 512, 12
_POWERS = (4, 1)  # of the inverse
_KRYLOV = 12  # dimensions
_ROUND = 16
_ENTRIES = 2**23  # of preactivations at once

_HIGHEST = jax.lax.Precision.HIGHEST


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _least(rows: Array, closed: Array, u: Array, powers: Array) -> Array:
    """The c of least energy: of those with c . u = 1 with one power, of all with many.

    Rows that were found are orthogonal to u, so one power returns none of them; more
    powers are surer of the least row there is. All powers of the inverse are taken in
    one Krylov space (Lanczos): closed units are many for the images, so that all
    energies but those of rows lie close together, and few steps tell the least.
    """

    def step(carry, _):
        before, now, beta = carry
        after = _mm(rows, closed * _mm(now, rows)) - beta * before
        alpha = jnp.vdot(now, after)
        after = after - alpha * now
        beta = jnp.linalg.norm(after)
        return (now, after / jnp.maximum(beta, 1e-30), beta), (now, alpha, beta)

    count = min(_KRYLOV, len(rows))
    start = u / jnp.maximum(jnp.linalg.norm(u), 1e-30)
    zero = jnp.zeros((), u.dtype)
    carry = jnp.zeros_like(u), start, zero
    _, (basis, alphas, betas) = jax.lax.scan(step, carry, None, length=count)
    small = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    ridge = _RIDGE * jnp.sum(closed * jnp.sum(rows**2, 0)) / len(rows)
    inverse = jnp.linalg.inv(small + ridge * jnp.eye(count, dtype=u.dtype))

    def again(_, c):
        c = _mm(inverse, c)
        return c / jnp.maximum(jnp.linalg.norm(c), 1e-30)

    first = jnp.zeros(count, u.dtype).at[0].set(1)
    return _mm(jax.lax.fori_loop(0, powers, again, first), basis)


def _one(rows, mix, gates, inverse, widths, u, shift, powers):
    """Climbs from one start; returns u and the energy of its row where it closes."""

    def step(u, width):
        z = _mm(u, gates)
        z = z / jnp.maximum(jnp.std(z), 1e-30)
        closed = jax.nn.sigmoid(-(z + shift) / width)
        closed = closed / jnp.maximum(jnp.sum(closed), 1e-6) * len(z)
        c = _least(rows, closed, _mm(mix, u), powers)
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
        at_once=max(1, min(len(starts), _ENTRIES // count)),
    )
    return surest(np.asarray(u, np.float64), np.asarray(energies))


def surest(
    u: Float[np.ndarray, "s n"], energies: Float[np.ndarray, " s"]
) -> Float[np.ndarray, "k n"]:
    """Returns the finite u, those whose rows vanish best first.

    Args:
      u: where a climb ended, one a start.
      energies: of their rows where they close.
    """
    order = np.argsort(np.where(np.isfinite(energies), energies, np.inf))
    return u[order[np.all(np.isfinite(u[order]), axis=1)]]
