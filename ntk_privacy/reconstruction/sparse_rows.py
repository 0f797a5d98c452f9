r"""Finishes rows of a row space that vanish on many units, and tells mixtures apart.

Every sum $a + t b$ of two gated rows vanishes where both are closed, so on many units
too. What tells it is its null space: directions that vanish on the closed units of one
image are one, on those that two images share two. In the plane of the two, all units
that one of them closes are collinear, which gives both exactly. Of rows that depend on
each other those with the most zeros are kept (the matroid's greedy choice).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["MOST", "SAME", "Pool", "empty", "finish", "merge", "null_row", "sparsest"]

# Least share of a row's energy on units where another one vanishes: true rows keep a
# twentieth and more on each other's closed units.
_SHARED = 0.03
# Share of a row's zeros that may be chance, one in so many, left out so many at a time.
_SPARED, _CHANCE = 4, 4
# Largest number of rows that a mixture is taken apart into, and subsets tried for it.
MOST, _SUBSETS = 6, 512
# Rows that correlate above it count as one.
SAME = 0.98


class Pool(NamedTuple):
    """Rows of norm 1, the norm of each on its zeros, and how many zeros it has."""

    rows: Float[np.ndarray, "m columns"]
    residuals: Float[np.ndarray, " m"]
    zeros: Float[np.ndarray, " m"]


def empty(columns: int) -> Pool:
    """Returns a pool without rows.

    Args:
      columns: of its rows.
    """
    return Pool(np.zeros((0, columns)), np.zeros(0), np.zeros(0))


def _eigh(part: Float[np.ndarray, "r k"]) -> tuple[np.ndarray, np.ndarray]:
    return np.linalg.eigh(part @ part.T)


def null_row(
    basis: Float[np.ndarray, "r columns"], closed: Bool[np.ndarray, " columns"]
) -> Float[np.ndarray, " columns"]:
    """Returns the direction of the row space that is least on `closed`, of norm 1.

    Args:
      basis: orthonormal rows.
      closed: columns on which it is to be small.
    """
    return _eigh(basis[:, closed])[1][:, 0] @ basis


def _settle(
    row: Float[np.ndarray, " columns"],
    basis: Float[np.ndarray, "r columns"],
    place: int,
    small: float,
) -> Float[np.ndarray, " columns"]:
    """Alternates between the row and its zeros: `place` of them first, then all."""
    columns = basis.shape[1]
    for _ in range(4):
        closed = np.zeros(columns, bool)
        closed[np.argpartition(np.abs(row), place)[:place]] = True
        row = null_row(basis, closed)
    closed = np.abs(row) < small
    for _ in range(4):
        if closed.sum() < place:
            break
        row = null_row(basis, closed)
        now = np.abs(row) < small
        if np.array_equal(now, closed):
            break
        closed = now
    return row


def _shared_space(
    row: Float[np.ndarray, " columns"],
    basis: Float[np.ndarray, "r columns"],
    small: float,
) -> Float[np.ndarray, "k r"]:
    """Directions that vanish where the row does, but for few units; itself at least.

    A mixture vanishes by chance on a few units where its parts do not: they are left
    out, by the energy that the other directions have on them.
    """
    closed = np.abs(row) < small
    alive = np.linalg.norm(basis[:, closed], axis=0) > small
    spare = int(alive.sum()) // _SPARED
    while spare > 0:
        part = basis[:, closed]
        values, vectors = _eigh(part)
        count = int(np.sum(values < _SHARED))
        space = vectors[:, : max(count, 1)].T
        energy = np.sum((space @ part) ** 2, axis=0)
        loud = np.flatnonzero(energy > small**2)
        if count < 2 or not len(loud):
            return space
        worst = loud[np.argsort(-energy[loud], kind="stable")][: min(_CHANCE, spare)]
        closed[np.flatnonzero(closed)[worst]] = False
        spare -= len(worst)
    values, vectors = _eigh(basis[:, closed])
    count = int(np.sum(values < small**2 * closed.sum()))
    return vectors[:, : max(count, 1)].T


def sparsest(
    points: Float[np.ndarray, "k columns"], small: float
) -> Float[np.ndarray, "k columns"]:
    """The k independent directions with the most zeros, from random small subsets.

    Args:
      points: columns are points, and a direction is zero where it is orthogonal to one.
      small: magnitude below which an entry is zero.
    """
    count, columns = points.shape
    rng = np.random.default_rng(0)
    alive = np.flatnonzero(np.linalg.norm(points, axis=0) > 4.0 * small)
    if len(alive) < count:
        return np.zeros((0, columns))
    chosen = rng.choice(alive, (_SUBSETS, count - 1))
    # (subsets, k, k - 1): the last left singular vector is orthogonal to all points.
    normals = np.linalg.svd(points.T[chosen].swapaxes(1, 2))[0][..., -1]
    rows = normals @ points
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    zeros = np.sum(np.abs(rows) < small, axis=1).astype(float)
    kept = _greedy(rows, zeros, count, 0.02)
    return rows[kept]


def _greedy(
    rows: Float[np.ndarray, "m columns"],
    zeros: Float[np.ndarray, " m"],
    rank: int,
    dependent: float,
) -> list[int]:
    """Indices of at most `rank` rows, most zeros first, none of which the others span.

    Args:
      rows: of norm 1.
      zeros: of each.
      rank: at most.
      dependent: distance to the span of those before, below which a row is left out.
    """
    kept: list[int] = []
    span = np.zeros((0, rows.shape[1]))
    for i in np.argsort(-zeros, kind="stable"):
        if len(kept) == rank:
            break
        rest = rows[i] - (rows[i] @ span.T) @ span
        size = np.linalg.norm(rest)
        if size < dependent or np.any(np.abs(rows[kept] @ rows[i]) > SAME):
            continue
        rest -= (rest @ span.T) @ span
        span = np.concatenate([span, (rest / np.linalg.norm(rest))[None]])
        kept.append(int(i))
    return kept


def finish(
    row: Float[np.ndarray, " columns"],
    basis: Float[np.ndarray, "r columns"],
    place: int,
    tolerance: float,
) -> Pool:
    """Makes a row exact, and takes it apart where it is a mixture.

    Args:
      row: near a row with many zeros, of norm 1.
      basis: orthonormal rows of the row space.
      place: zeros that are asked for, of the coarse row.
      tolerance: norm that a row may have on its zeros.

    Returns:
      One row, or its parts; none where too few units vanish.
    """
    columns = basis.shape[1]
    small = tolerance / columns**0.5
    row = _settle(row, basis, place, small)
    rows = row[None]
    if np.linalg.norm(np.sort(np.abs(row))[:place]) < tolerance:
        space = _shared_space(row, basis, small)
        if len(space) > MOST:
            rows = rows[:0]
        elif len(space) > 1:
            parts = sparsest(space @ basis, small)
            parts = [_settle(part, basis, place, small) for part in parts]
            rows = np.stack([row, *parts])
    outside = np.sort(np.abs(rows), axis=1)[:, :place]
    residuals = np.linalg.norm(outside, axis=1)
    zeros = np.sum(np.abs(rows) < small, axis=1).astype(float)
    good = residuals < tolerance
    return Pool(rows[good], residuals[good], zeros[good])


def merge(pool: Pool, more: Pool, rank: int, dependent: float) -> Pool:
    """Returns those of both that the rows with more zeros do not span.

    Args:
      pool: rows that there are.
      more: rows that were found.
      rank: of the space: rows, at most.
      dependent: distance to the span of those before, below which a row is left out.
    """
    both = Pool(*(np.concatenate(p) for p in zip(pool, more, strict=True)))
    kept = _greedy(both.rows, both.zeros, rank, dependent)
    return Pool(*(v[kept] for v in both))
