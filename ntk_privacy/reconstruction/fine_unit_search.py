r"""Rough images where units are few for the images, or have flipped in training.

There the climb of `unit_search` is too rough: true images are no fixed points of it.
This one takes the least row itself, on down to hardly more units than there are images,
leaves out units that stand out (they opened for a while), and asks for the u whose
gates are the pattern, by logistic regression, where the other one regresses
preactivations. It costs N^2 products a unit, so it is for few images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.reconstruction import unit_search
from ntk_privacy.reconstruction.unit_space import Space

__all__ = ["climb", "most_starts"]

# Widths of the gate, in standard deviations of the preactivation.
_WIDTHS = (*(0.1,) * 10, *(0.03,) * 10)
_LEAST = 1.25  # surest units, an image
_MOST = 0.45  # of all units
_RIDGE = 1e-5
_POWERS = (4, 1)  # of the inverse
_REWEIGHTINGS = 2
_HALF = 0.3  # of the mean energy: a unit of as much counts half
_PATTERN = 0.3  # of the mean size: a signal of less is about to vanish
_NEWTON = 3  # steps
_STEEP = 1.5  # standard deviation of the preactivations that they begin with
_FLAT = 1e-2  # curvature at least
_SHRINK = 3e-4
_ENTRIES = 2**22  # of products at once
_WORK = 2**25  # products a step, of all starts
_FEWEST = 64  # starts
_IMAGES = 64  # at most

_HIGHEST = jax.lax.Precision.HIGHEST


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _unit(u: Array) -> Array:
    return u / jnp.maximum(jnp.linalg.norm(u), 1e-30)


def _least(rows: Array, weight: Array, u: Array, powers: Array) -> Array:
    """The c of least energy; powers as of `unit_search`."""
    gram = _mm(rows * weight[None], rows.T)
    ridge = _RIDGE * jnp.trace(gram) / len(gram)
    inverse = jnp.linalg.inv(gram + ridge * jnp.eye(len(gram), dtype=gram.dtype))
    return jax.lax.fori_loop(0, powers, lambda _, c: _unit(_mm(inverse, c)), u)


def _opening(gates: Array, inverse: Array, inside: Array, pattern: Array) -> Array:
    """The u whose gates are most like a pattern of numbers from 0 to 1.

    Damped Newton steps, inside the space that is orthogonal to all that was found.
    """
    u = _mm(inverse, _mm(gates, pattern - jnp.mean(pattern)))
    u = u * _STEEP / jnp.maximum(jnp.std(_mm(u, gates)), 1e-30)
    shrink = _SHRINK * _mm(gates, gates.T)
    outside = jnp.eye(len(u), dtype=u.dtype) - inside

    def step(_, u):
        opens = jax.nn.sigmoid(_mm(u, gates))
        slope = _mm(gates, pattern - opens) - _mm(shrink, u)
        weight = opens * (1 - opens) + _FLAT
        bend = _mm(gates * weight[None], gates.T) + shrink
        bend = _mm(inside, _mm(bend, inside)) + jnp.trace(bend) / len(u) * outside
        return u + _mm(inside, jnp.linalg.solve(bend, _mm(inside, slope)))

    return jax.lax.fori_loop(0, _NEWTON, step, u)


def _one(rows, mix, gates, inverse, inside, widths, u, share, powers):
    """Climbs from one start; returns u and the energy of its row where it closes."""
    n, m = rows.shape
    fewest = _LEAST * n / m
    share = fewest + share * max(_MOST - fewest, 0.0)

    def step(u, width):
        z = _mm(u, gates)
        z = z / jnp.maximum(jnp.std(z), 1e-30)
        edge = jnp.minimum(jnp.quantile(z, share), 0.0)
        closed = jax.nn.sigmoid((edge - z) / width)
        closed = closed / jnp.maximum(jnp.sum(closed), 1e-6) * m
        start = _mm(mix, u)
        c = _least(rows, closed, start, powers)
        for _ in range(_REWEIGHTINGS):
            energies = _mm(c, rows) ** 2
            middle = _HALF * jnp.mean(closed * energies) + 1e-12
            c = _least(rows, closed / (1 + energies / middle), start, powers)
        size = jnp.abs(_mm(c, rows))
        energy = jnp.mean(closed * size**2) / jnp.mean(size**2)
        pattern = jnp.tanh(size / (_PATTERN * jnp.mean(size)))
        return _unit(_opening(gates, inverse, inside, pattern)), energy

    u, energies = jax.lax.scan(step, _unit(u), widths)
    return u, energies[-1]


@functools.partial(jax.jit, static_argnames="at_once")
def _climb(
    rows, mix, gates, inverse, inside, widths, starts, shares, powers, *, at_once
):
    return jax.lax.map(
        lambda each: _one(rows, mix, gates, inverse, inside, widths, *each),
        (starts, shares, powers),
        batch_size=at_once,
    )


def most_starts(space: Space) -> int:
    """Returns how many starts a round is worth; 0 where there are too many images.

    Args:
      space: the coordinates.
    """
    n, m = space.rows.shape
    return 0 if n > _IMAGES else max(_FEWEST, _WORK // (n * n * m))


def climb(
    space: Space,
    starts: Float[np.ndarray, "s n"],
    inverse: Float[np.ndarray, "n n"],
    found: Float[np.ndarray, "k n"],
    *,
    key: Array,
    dtype=jnp.float32,
) -> Float[np.ndarray, "s n"]:
    """Returns rough u of every start that came to one, those that vanish best first.

    Args:
      space: the coordinates.
      starts: u to begin from; the sign is theirs.
      inverse: see `unit_space.inverse_gates`.
      found: c of the images found so far, to which every u is orthogonal.
      key: typed key of the shares of units that are taken for closed.
      dtype: of the search.
    """
    n, m = space.rows.shape
    inside = np.eye(n)
    if len(found):
        basis = np.linalg.qr(found.T)[0]
        inside = inside - basis @ basis.T
    cast = functools.partial(jnp.asarray, dtype=dtype)
    # Of unit size: products in float32 neither overflow nor vanish.
    size = np.sqrt(np.mean(space.gates**2))
    u, energies = _climb(
        cast(space.rows),
        cast(space.mix),
        cast(space.gates / size),
        cast(inverse * size**2),
        cast(inside),
        cast(_WIDTHS),
        cast(starts),
        jax.random.uniform(key, (len(starts),), dtype),
        jnp.asarray(np.resize(_POWERS, len(starts)), jnp.int32),
        at_once=max(1, min(len(starts), _ENTRIES // (n * m))),
    )
    return unit_search.surest(np.asarray(u, np.float64), np.asarray(energies))
