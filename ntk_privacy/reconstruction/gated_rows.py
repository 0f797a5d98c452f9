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
from ntk_privacy.reconstruction import low_rank, sparse_rows

__all__ = ["GatedRows", "find_gated_rows"]

_HIGHEST = jax.lax.Precision.HIGHEST
# Half of the units are closed to an image. Of those that are closed to it but not to
# all, so much is asked to vanish: less while the start is still coarse.
_COARSE, _FINE = 0.7, (0.84, 0.7, 0.6)
# Norm of a row on the units that its own activations close, above which it is wrong.
_CONTRADICTED = 1e-3
_MENDS = 4
# A round costs milliseconds up to this rank: more of them may pass without a new row.
_FEW = 32


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


def _closed_to(
    sources: Float[np.ndarray, "k rows"], gates_of, factors: low_rank.Factors
) -> Bool[np.ndarray, "k columns"]:
    """Units that activations of any scale and sign close; the bias is known positive.

    As many at a time as the rank, so that one program serves all.
    """
    dtype = factors.left.dtype
    padded = np.zeros((factors.right.shape[0], sources.shape[1]))
    sources = sources * np.where(sources[:, -1:] < 0, -1.0, 1.0)
    padded[: len(sources)] = sources / np.linalg.norm(sources, axis=1, keepdims=True)
    padded = jnp.asarray(padded, dtype)
    return ~np.asarray(gates_of(padded[:, :-1], padded[:, -1]))[: len(sources)]


def _from_columns(
    pool: sparse_rows.Pool,
    factors: low_rank.Factors,
    gates_of,
    place: int,
    tolerance: float,
) -> sparse_rows.Pool:
    """Adds the last few rows: activations are sparse too, and span what is left.

    Args:
      pool: all rows but few.
      factors: of the change, bias row last.
      gates_of: (activations, bias coordinates) -> gates on the columns.
      place: zeros that are asked for.
      tolerance: norm that a row may have on its zeros.
    """
    rank = factors.right.shape[0]
    missing = rank - len(pool.rows)
    left = np.asarray(factors.left, np.float64)
    points = (left @ gates_lib._deflated(factors, pool.rows)[:, :missing]).T
    small = tolerance / points.shape[1] ** 0.5
    sources = sparse_rows.sparsest(points, small)
    if not len(sources):
        return pool
    basis = np.asarray(factors.right, np.float64)
    for closed in _closed_to(sources, gates_of, factors):
        if closed.sum() > place:
            row = sparse_rows.null_row(basis, closed)
            more = sparse_rows.finish(row, basis, place, tolerance)
            pool = sparse_rows.merge(pool, more, rank, min(10.0 * tolerance, 0.2))
    return pool


def _shares(
    rows: Float[np.ndarray, "m columns"], closed: Bool[np.ndarray, "m columns"]
) -> Float[np.ndarray, " m"]:
    """Norm of rows on units that should be closed, but for the few that are near zero.

    Activations tell the gate of such a unit wrongly, and its entry is no small one.
    """
    spared = max(2, rows.shape[1] // 100)
    hidden = np.sort(np.abs(np.where(closed, rows, 0.0)), axis=1)
    return np.linalg.norm(hidden[:, :-spared], axis=1)


def _contradicted(
    pool: sparse_rows.Pool,
    factors: low_rank.Factors,
    gates_of,
    place: int,
    tolerance: float,
) -> tuple[sparse_rows.Pool, np.ndarray]:
    """Replaces rows by those of their own activations; also says which fail to fit.

    In a full set a mixture in the place of a leaves the activations of a as they are:
    they tell which units a closes, and those tell its row.

    Args:
      pool: as many independent rows as the rank.
      factors: of the change, bias row last.
      gates_of: (activations, bias coordinates) -> gates on the columns.
      place: zeros that are asked for.
      tolerance: norm that a row may have on its zeros.

    Returns:
      The rows, mended, and the share of each on units that its activations close.
    """
    basis = np.asarray(factors.right, np.float64)
    left = np.asarray(factors.left, np.float64) * factors.values[: len(basis)]
    worst = max(_CONTRADICTED, 4.0 * tolerance)
    shares = np.zeros(0)
    for _ in range(_MENDS):
        sources = (left @ np.linalg.pinv(pool.rows @ basis.T)).T
        closed = _closed_to(sources, gates_of, factors)
        shares = _shares(pool.rows, closed)
        mended = pool
        for i in np.flatnonzero(shares > worst):
            if closed[i].sum() <= place:
                continue
            row = sparse_rows.null_row(basis, closed[i])
            others = sparse_rows.Pool(*(np.delete(v, i, 0) for v in mended))
            more = sparse_rows.finish(row, basis, place, tolerance)
            misfit = _shares(more.rows, np.tile(closed[i], (len(more.rows), 1)))
            if np.min(misfit, initial=np.inf) > worst:
                continue
            best = sparse_rows.Pool(*(v[[misfit.argmin()]] for v in more))
            if np.any(np.abs(others.rows @ best.rows[0]) > sparse_rows.SAME):
                continue
            mended = sparse_rows.Pool(
                *(np.insert(v, i, w[0], 0) for v, w in zip(others, best, strict=True))
            )
        if mended is pool:
            break
        pool = mended
    return pool, shares


def _searched(
    pool: sparse_rows.Pool,
    factors: low_rank.Factors,
    starts: Float[Array, "b units"],
    gates_of,
    places: list[int],
    num_climbs: Int[Array, ""],
    num_steps: Int[Array, ""],
    tolerance: float,
) -> sparse_rows.Pool:
    """Adds the rows that one round of starts leads to.

    Args:
      pool: rows that are known.
      factors: of the change, bias row last.
      starts: activations.
      gates_of: (activations, bias coordinates) -> gates on the columns.
      places: zeros that are asked for, at first and later.
      num_climbs: steps that activations take towards those of what is left.
      num_steps: of the alternation.
      tolerance: norm that a row may have on its zeros.
    """
    rank = factors.right.shape[0]
    basis = np.asarray(factors.right, np.float64)
    space = gates_lib._column_space(factors, pool.rows)
    climbed, lasts = gates_lib._climb(starts, space, num_climbs)
    scale = jnp.sign(lasts)
    closed = ~gates_of(climbed * scale[:, None], lasts * scale)
    asked = jnp.asarray(places, jnp.int32)
    found, outside = _vanish(closed, factors.right, asked, num_steps)
    found, outside = np.asarray(found, np.float64), np.asarray(outside)
    # In float32 a true row shows as one part in a thousand; float64 decides.
    for i in np.argsort(outside, kind="stable"):
        if not outside[i] < max(30 * tolerance, 3e-2) or len(pool.rows) == rank:
            break
        unit = found[i] / np.linalg.norm(found[i])
        if np.any(np.abs(pool.rows @ unit) > sparse_rows.SAME):
            continue
        more = sparse_rows.finish(unit, basis, places[0], tolerance)
        pool = sparse_rows.merge(pool, more, rank, min(10.0 * tolerance, 0.2))
    return pool


def _dropped(
    pool: sparse_rows.Pool, wrong: Bool[np.ndarray, " m"], idle: int
) -> sparse_rows.Pool:
    """Leaves out what keeps a search from its end: wrong rows hide those they mix.

    A mixture contradicts its parts too, so now all that are wrong go, now the half of
    them with the fewest zeros; where none was found for long, more and more of all.
    """
    if wrong.any():
        count = int(wrong.sum()) if idle % 2 else (int(wrong.sum()) + 1) // 2
    else:
        count = int(np.ceil(len(wrong) * max(idle - 1, 0) / 8))
    order = np.lexsort((pool.zeros, ~wrong))
    return sparse_rows.Pool(*(np.delete(v, order[:count], 0) for v in pool))


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
    known: GatedRows | None = None,
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
      known: rows that are found already.
      num_steps: of the alternation.

    Raises:
      ValueError: too few units for the rank.
    """
    rank, columns = factors.right.shape
    if rank == 1:
        # One image: its row spans the row space, whatever its zeros.
        row = np.asarray(factors.right, np.float64)
        return GatedRows(row / np.linalg.norm(row), np.zeros(1), 0)
    norms = np.linalg.norm(np.asarray(factors.right, np.float64), axis=0)
    dead = int(np.sum(norms < tolerance * np.sqrt(rank / columns)))
    half = columns / 2 - dead
    if _COARSE * half < rank + 8:
        raise ValueError(
            f"num_images={rank} but only {columns - dead} of {columns} units of the "
            "last hidden layer are open to some image and closed to others: too few "
            "zeros to tell images apart; use reconstruction.kkt.reconstruct."
        )
    pool, best = sparse_rows.empty(columns), None
    if known is not None:
        zeros = np.abs(known.rows) < tolerance / columns**0.5
        pool = sparse_rows.Pool(known.rows, known.residuals, zeros.sum(1).astype(float))
    coarse = float(np.clip(1.0 - 1.75 * columns**0.5 / half, 0.5, _COARSE))
    rounds = idle = most = 0
    patience = 4 if rank > _FEW else 10
    steps = jnp.asarray(num_steps, jnp.int32)
    while most < rank and rounds < max_rounds and idle < patience:
        key, key_round = jax.random.split(key)
        mix = jax.random.normal(key_round, (num_starts, change.shape[1]), change.dtype)
        inputs = gates_lib._unit(jnp.matmul(mix, change.T, precision=_HIGHEST))
        # Unit norm: the activations' scale matters where biases are not zero.
        inputs = inputs * jnp.sqrt(jnp.asarray(inputs.shape[1], inputs.dtype)) / 4
        if auxiliary is not None and rounds == 0:
            inputs = jnp.concatenate([inputs, auxiliary[:num_starts]])
        fine = max(_FINE[rounds % len(_FINE)], coarse)
        places = [max(int(dead + s * half), dead + rank + 8) for s in (coarse, fine)]
        if rank - len(pool.rows) <= sparse_rows.MOST:
            pool = _from_columns(pool, factors, gates_of, places[0], tolerance)
        if len(pool.rows) < rank:
            starts = jnp.asarray(2 + rounds % 3, jnp.int32)
            pool = _searched(
                pool,
                factors,
                forward(inputs),
                gates_of,
                places,
                starts,
                steps,
                tolerance,
            )
        rounds += 1
        wrong = np.zeros(len(pool.rows), bool)
        if len(pool.rows) == rank:
            pool, shares = _contradicted(pool, factors, gates_of, places[0], tolerance)
            wrong = shares > max(_CONTRADICTED, 4.0 * tolerance)
        right = len(wrong) - int(wrong.sum())
        if best is None or right > most:
            best, most, idle = pool, right, 0
        else:
            idle += 1
        if right < rank:
            pool = _dropped(pool, wrong, idle)
    best = sparse_rows.empty(columns) if best is None else best
    return GatedRows(best.rows, best.residuals, rounds)
