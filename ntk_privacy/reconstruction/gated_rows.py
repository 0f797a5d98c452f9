r"""Finds the gated rows of a network with several outputs in a row space.

With C outputs the change of the last hidden layer is a sum of outer products of
$(a_{1,i}, 1)$ and $r_i = s_i \circ (W_3 \alpha_i)$: not binary any more, but exactly
zero where the gate $s_i$ is closed, on about half of the units. A direction of the row
space that vanishes on more units than the space has dimensions is such a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy.reconstruction import gates as gates_lib
from ntk_privacy.reconstruction import low_rank

__all__ = ["GatedRows", "find_gated_rows"]

_HIGHEST = jax.lax.Precision.HIGHEST
# Half of the units are closed to an image. Of those that are closed to it but not to
# all, so much is asked to vanish: less while the start is still coarse.
_COARSE, _FINE = 0.7, 0.84


class GatedRows(NamedTuple):
    """Rows of a row space that vanish where their gates are closed.

    rows: of norm 1, the sign is arbitrary. residuals: norm on the units asked to
    vanish, over the norm of the row. rounds: of starts that were used.
    """

    rows: Float[np.ndarray, "m columns"]
    residuals: Float[np.ndarray, " m"]
    rounds: int


@jax.jit
def _vanish(
    closed: Bool[Array, "b columns"],
    basis: Float[Array, "r columns"],
    places: Int[Array, "2"],
    num_steps: Int[Array, ""],
) -> tuple[Float[Array, "b columns"], Float[Array, " b"]]:
    """Alternates between the direction least on the closed units, and these units.

    Args:
      closed: where each start expects its gates closed.
      basis: orthonormal rows of the row space.
      places: how many units are asked to vanish, in the first four steps and later.
      num_steps: of the alternation.
    """

    def step(i, state):
        mask, _ = state
        masked = mask.astype(basis.dtype)[:, None, :] * basis[None]
        gram = jnp.einsum("bil,jl->bij", masked, basis, precision=_HIGHEST)
        least = jnp.linalg.eigh(gram)[1][..., 0]
        y = jnp.matmul(least, basis, precision=_HIGHEST)
        size = jnp.abs(y)
        place = jnp.where(i < 4, places[0], places[1])
        bound = jnp.take(jnp.sort(size, axis=1), place, axis=1)
        return size < bound[:, None], y

    mask, y = jax.lax.fori_loop(
        0, num_steps, step, (closed, jnp.zeros(closed.shape, basis.dtype))
    )
    outside = jnp.sqrt(jnp.sum(jnp.where(mask, y, 0.0) ** 2, axis=1))
    return y, outside / jnp.linalg.norm(y, axis=1)


def _least(
    row: Float[np.ndarray, " columns"],
    basis: Float[np.ndarray, "r columns"],
    place: int,
    num_steps: int,
) -> Float[np.ndarray, " columns"]:
    """The alternation for one row, in float64, with `place` units asked to vanish."""
    for _ in range(num_steps):
        closed = np.argpartition(np.abs(row), place)[:place]
        part = basis[:, closed]
        row = np.linalg.eigh(part @ part.T)[1][:, 0] @ basis
    return row / np.linalg.norm(row)


def _refined(
    row: Float[np.ndarray, " columns"],
    basis: Float[np.ndarray, "r columns"],
    place: int,
    tolerance: float,
) -> tuple[Float[np.ndarray, " columns"], float]:
    """Finishes one row on the host: as many zeros as it can have.

    Where images share most of their closed units, a mixture of two rows vanishes on
    many units as well. Asked for more zeros than it has, it becomes one of the two.
    """
    columns = basis.shape[1]
    small = tolerance / columns**0.5

    def zeros(row):
        return int(np.sum(np.abs(row) < small))

    row = _least(row, basis, place, 4)
    count = zeros(row)
    while True:
        more = count + max(2, columns // 100)
        if more >= columns:
            break
        sparser = _least(row, basis, more, 8)
        if zeros(sparser) <= count:
            break
        row, count = sparser, zeros(sparser)
    return row, float(np.linalg.norm(np.sort(np.abs(row))[:place]))


def find_gated_rows(
    factors: low_rank.Factors,
    forward,
    gates_of,
    change: Float[Array, "d units0"],
    *,
    key: Array,
    tolerance: float,
    num_starts: int,
    max_rounds: int,
    auxiliary: Float[Array, "k d"] | None = None,
    num_steps: int = 25,
) -> GatedRows:
    """Collects rows over rounds of starts until the rank is reached.

    Starts are those of `gates.find_gate_rows`: inputs in the span of the training
    images, whose activations climb the skewness of the column space of what is not yet
    found; the gates that they predict tell which units to ask zeros of.

    Args:
      factors: of the change of the last hidden layer, bias row last.
      forward: inputs (b, d) -> activations (b, units) that feed the layer.
      gates_of: (activations, bias coordinates) -> gates on the columns.
      change: of the first layer; its columns span the training inputs.
      key: typed key.
      tolerance: on the residuals.
      num_starts: per round.
      max_rounds: at most.
      auxiliary: inputs that every first round starts from too.
      num_steps: of the alternation.

    Raises:
      ValueError: too few units for the rank.
    """
    rank, columns = factors.right.shape
    basis64 = np.asarray(factors.right, np.float64)
    norms = np.linalg.norm(basis64, axis=0)
    dead = int(np.sum(norms < tolerance * np.sqrt(rank / columns)))
    places = [int(dead + share * (columns / 2 - dead)) for share in (_COARSE, _FINE)]
    if places[0] - dead < rank + 8:
        raise ValueError(
            f"num_images={rank} but only {columns - dead} of {columns} units of the "
            "last hidden layer are open to some image and closed to others: too few "
            "zeros to tell images apart; use reconstruction.kkt.reconstruct."
        )
    rows, residuals, rounds, idle = np.zeros((0, columns)), [], 0, 0
    steps = jnp.asarray(num_steps, jnp.int32)
    while len(rows) < rank and rounds < max_rounds and idle < 4:
        key, key_round = jax.random.split(key)
        mix = jax.random.normal(key_round, (num_starts, change.shape[1]), change.dtype)
        inputs = gates_lib._unit(jnp.matmul(mix, change.T, precision=_HIGHEST))
        # Unit norm: the activations' scale matters where biases are not zero.
        inputs = inputs * jnp.sqrt(jnp.asarray(inputs.shape[1], inputs.dtype)) / 4
        if auxiliary is not None and rounds == 0:
            inputs = jnp.concatenate([inputs, auxiliary[:num_starts]])
        space = gates_lib._column_space(factors, rows)
        climbed, lasts = gates_lib._climb(
            forward(inputs), space, jnp.asarray(2 + rounds % 3, jnp.int32)
        )
        scale = jnp.sign(lasts)
        found, outside = _vanish(
            ~gates_of(climbed * scale[:, None], lasts * scale),
            factors.right,
            jnp.asarray(places, jnp.int32),
            steps,
        )
        found, outside = np.asarray(found, np.float64), np.asarray(outside)
        before = len(rows)
        # In float32 a true row shows as one part in a thousand; float64 decides.
        for i in np.argsort(outside, kind="stable"):
            if not outside[i] < max(30 * tolerance, 3e-2) or len(rows) == rank:
                break
            unit = found[i] / np.linalg.norm(found[i])
            if len(rows) and np.max(np.abs(rows @ unit)) > 0.98:
                continue
            row, residual = _refined(unit, basis64, places[1], tolerance)
            fresh = not len(rows) or np.max(np.abs(rows @ row)) < 0.98
            if residual < tolerance and fresh:
                rows = np.concatenate([rows, row[None]])
                residuals.append(residual)
        rounds += 1
        idle = 0 if len(rows) > before else idle + 1
    return GatedRows(rows, np.asarray(residuals), rounds)
