r"""Find the binary gate rows hidden in the row space of a weight change.

The last hidden layer of a one-output ReLU network changes by
$\Delta W = \sum_i \alpha_i a_i (w \circ s_i)^\top$: `a_i` are the activations that feed
the layer, `s_i` in {0, 1} its gates, `w` the output weights. Divided by `w`, the change
is `U S`: non-negative columns times binary rows. Both factors are non-Gaussian, so each
is found by independent component analysis (Hyvarinen and Oja, 1997), on what it is best
at: the columns are skewed, which locates a start; the rows have a negative kurtosis,
whose fixed points are the gates themselves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ntk_privacy.reconstruction.low_rank import Factors

__all__ = [
    "GateRows",
    "find_gate_rows",
]

_HIGHEST = jax.lax.Precision.HIGHEST


class GateRows(NamedTuple):
    """Binary rows of a row space.

    Attributes:
      rows: distinct gate rows on the kept columns.
      residuals: squared distance to the row space over the squared norm of the row.
      rounds: rounds of random starts that were used.
    """

    rows: Bool[np.ndarray, "m columns"]
    residuals: Float[np.ndarray, " m"]
    rounds: int


def _mm(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


class _Columns(NamedTuple):
    """Whitened column space: basis, the means that centring took, the bias row."""

    white: Float[Array, "r units"]
    means: Float[Array, " r"]
    lasts: Float[Array, " r"]


class _Rows(NamedTuple):
    """Row space: whitened, orthonormal, and orthonormal with the constant row."""

    white: Float[Array, "r columns"]
    basis: Float[Array, "r columns"]
    affine: Float[Array, "r1 columns"]


def _whiten(gram: np.ndarray, samples: int, rank: int) -> np.ndarray:
    """Returns the matrix that whitens a covariance, zero beyond its leading `rank`."""
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, values[-1] * 1e-12)
    scale = np.sqrt(samples / values)
    scale[: len(values) - rank] = 0.0
    return vectors * scale


def _deflated(
    factors: Factors, found: Shaped[np.ndarray, "f columns"]
) -> Float[np.ndarray, "r r"]:
    r"""Coordinates, in `factors.left`, of the column space of what is not yet found.

    With $G = U_f S_f + U_r S_r$ and the orthogonal complement $B$ of $S_f$ in the row
    space, $G B^\top B = U_r (S_r B^\top) B$: the column space of the rest, exactly.
    Columns beyond the rank of the rest are zero, so that shapes stay.
    """
    right = np.asarray(factors.right, np.float64)
    rank = len(right)
    values = factors.values[:rank]
    basis = np.eye(rank)
    if len(found):
        coordinates = found.astype(np.float64) @ right.T
        complement = np.linalg.qr(coordinates.T, mode="complete")[0][:, len(found) :]
        basis = np.zeros((rank, rank))
        rest = np.linalg.qr(values[:, None] * complement)[0]
        basis[:, : rest.shape[1]] = rest
    return basis


def _column_space(factors: Factors, found: Shaped[np.ndarray, "f columns"]) -> _Columns:
    """Whitens the column space of what is not yet found; zero rows fill up."""
    dtype = factors.left.dtype
    left = np.asarray(factors.left, np.float64) @ _deflated(factors, found)
    units = left[:-1]
    centred = units - units.mean(0)
    rank = factors.right.shape[0] - len(found)
    mix = _whiten(centred.T @ centred, len(units), rank)
    arrays = (centred @ mix).T, units.mean(0) @ mix, left[-1] @ mix
    return _Columns(*(jnp.asarray(a, dtype) for a in arrays))


def _row_space(factors: Factors) -> _Rows:
    """Whitens the row space."""
    right = np.asarray(factors.right, np.float64)
    centred = right - right.mean(1, keepdims=True)
    unmix = _whiten(centred @ centred.T, right.shape[1], len(right))
    # What the constant row adds to the span, orthogonal to all rows.
    rest = np.ones(right.shape[1]) - right.T @ right.sum(1)
    rest /= np.linalg.norm(rest)
    affine = np.concatenate([right, rest[None]])
    arrays = unmix.T @ centred, right, affine
    return _Rows(*(jnp.asarray(a, factors.right.dtype) for a in arrays))


def _unit(v: Array) -> Array:
    norm = jnp.linalg.norm(v, axis=1, keepdims=True)
    return v / jnp.maximum(norm, jnp.finfo(v.dtype).tiny)


@jax.jit
def _climb(
    starts: Float[Array, "b units"], space: _Columns, num_steps: Int[Array, ""]
) -> tuple[Float[Array, "b units"], Float[Array, " b"]]:
    r"""Follows the skewness of the column space from start activations.

    One step is $v \leftarrow Z (Z^\top v)^2$, normalised: the gradient of
    $E[(v^\top z)^3]$. Half the units of a rectified column are zero, so its skewness is
    large, and its square costs far less sampling noise than a fourth moment; but its
    maximum is not the source itself: few steps are best, and the rows finish.

    Returns:
      Activations up to a positive scale, and the bias coordinate in the same scale.
    """
    z = space.white
    centred = starts - jnp.mean(starts, axis=1, keepdims=True)
    v = _unit(_mm(centred, z.T))
    v = jax.lax.fori_loop(0, num_steps, lambda _, v: _unit(_mm(_mm(v, z) ** 2, z.T)), v)
    means = _mm(v, space.means[:, None])
    return _mm(v, z) + means, _mm(v, space.lasts[:, None])[:, 0]


@jax.jit
def _settle(
    gates: Float[Array, "b columns"], space: _Rows, num_steps: Int[Array, ""]
) -> tuple[Bool[Array, "b columns"], Float[Array, " b"]]:
    r"""Turns approximate gates into binary rows of the row space.

    The fixed point of the fourth moment, $w \leftarrow 3 w - E[z (w^\top z)^3]$ on the
    whitened rows, then alternating projections between span(rows, 1) and {0, 1}.
    A row and its complement both lie in that span: the one nearer to the row space
    itself is the gate row.

    Returns:
      The rows, and their squared relative distance to the row space.
    """
    z = space.white
    columns = z.shape[1]

    def newton(state):
        step, w, y, _ = state
        w = _unit(3.0 * w - _mm(y**3, z.T) / columns)
        new = _mm(w, z)
        moved = jnp.mean(((new > 0) != (y > 0)).astype(z.dtype))
        return step + 1, w, new, moved

    centred = gates - jnp.mean(gates, axis=1, keepdims=True)
    w = _unit(_mm(centred, z.T))
    state = (jnp.zeros((), jnp.int32), w, _mm(w, z), jnp.ones((), z.dtype))
    state = jax.lax.while_loop(
        lambda s: (s[0] < num_steps) & (s[3] > 1e-4), newton, state
    )

    def project(_, s):
        return (_mm(_mm(s, space.affine.T), space.affine) > 0.5).astype(z.dtype)

    # The fixed point drifts off rows whose kurtosis is not typical: what the start
    # itself projects to is tried beside it.
    both = jnp.concatenate([(state[2] > 0).astype(z.dtype), gates])
    both = jax.lax.fori_loop(0, 6, project, both)

    def distance(s):
        inside = jnp.sum(_mm(s, space.basis.T) ** 2, axis=1)
        norm = jnp.maximum(jnp.sum(s, axis=1), 1.0)
        return jnp.maximum(1.0 - inside / norm, 0.0)

    straight, flipped = distance(both), distance(1.0 - both)
    flip = flipped < straight
    both = jnp.where(flip[:, None], 1.0 - both, both)
    far = jnp.where(flip, flipped, straight)
    climbed, direct = jnp.split(far, 2)
    better = direct < climbed
    rows = jnp.where(better[:, None], *jnp.split(both, 2)[::-1])
    return rows > 0.5, jnp.where(better, direct, climbed)


def _distinct(
    rows: Bool[np.ndarray, "b columns"],
    residuals: Float[np.ndarray, " b"],
    known: Bool[np.ndarray, "f columns"],
    *,
    same: float,
) -> list[int]:
    """Returns indices of distinct rows, best first, none of them known.

    Two rows are the same if their +-1 patterns correlate above `same`.
    """
    kept: list[int] = []
    signs = 2.0 * rows.astype(np.float32) - 1.0
    alike = signs @ (2.0 * known.astype(np.float32) - 1.0).T / rows.shape[1]
    fresh = np.all(alike < same, axis=1)
    among = signs @ signs.T / rows.shape[1]
    for i in np.argsort(residuals, kind="stable"):
        if fresh[i] and all(among[i, j] < same for j in kept):
            kept.append(int(i))
    return kept


def _independent(
    candidates: Bool[np.ndarray, "b columns"],
    order: list[int],
    known: Bool[np.ndarray, "f columns"],
    factors: Factors,
) -> list[int]:
    """Returns those of `order` that no rows before them combine to.

    Rows of images that are nearly alike, a and b, make c + a - b binary for one row c
    in many: with it in place of another image the rank is reached and wrong.
    """
    right = np.asarray(factors.right, np.float64)
    least = 0.25 / np.sqrt(candidates.shape[1])
    basis = np.linalg.qr(right @ known.T.astype(np.float64))[0]
    kept = []
    for i in order:
        row = right @ candidates[i].astype(np.float64)
        rest = row - basis @ (basis.T @ row)
        if np.linalg.norm(rest) > least * np.linalg.norm(row):
            kept.append(i)
            rest -= basis @ (basis.T @ rest)
            rest /= np.linalg.norm(rest)
            basis = np.concatenate([basis, rest[:, None]], axis=1)
    return kept


def find_gate_rows(
    factors: Factors,
    forward,
    gates_of,
    change: Float[Array, "d units0"],
    *,
    key: Array,
    tolerance: float,
    same: float,
    num_starts: int,
    max_rounds: int,
    auxiliary: Float[Array, "k d"] | None = None,
    known: GateRows | None = None,
) -> GateRows:
    """Collects gate rows over rounds of random starts until the rank is reached.

    A start is an input: a random combination of the columns of `change`, which are
    combinations of the training inputs, or an auxiliary image. Its activations are
    moved into the column space of what is not yet found and climb its skewness; the
    gates that they predict start the fixed-point iteration on the rows.

    Args:
      factors: of the divided change of the last hidden layer, bias row last.
      forward: inputs (b, d) -> activations (b, units) that feed the layer.
      gates_of: activations (b, units), bias coordinate (b,) -> predicted gates.
      change: of the first layer's kernel.
      key: typed key.
      tolerance: largest accepted squared relative distance to the row space.
      same: rows that correlate above it count as one.
      num_starts: starts per round.
      max_rounds: rounds at most; three in a row without a new row end the search.
      auxiliary: inputs of the same domain; taken in the first rounds, none twice.
      known: rows found before, which are kept.
    """
    rank, columns = factors.right.shape
    dtype = factors.right.dtype
    rows = np.zeros((0, columns), bool)
    residuals = np.zeros(0)
    if known is not None:
        rows, residuals = known.rows, known.residuals
    idle = used = 0
    spare = auxiliary
    row_space = _row_space(factors)
    while len(rows) < rank and used < max_rounds and idle < 3:
        key_start, key_mix = jax.random.split(jax.random.fold_in(key, used))
        space = _column_space(factors, rows)
        if spare is not None and len(spare) >= num_starts:
            inputs, spare = spare[:num_starts], spare[num_starts:]
        else:
            weights = (num_starts, change.shape[1])
            inputs = _mm(jax.random.normal(key_start, weights, dtype), change.T)
            # Unit norm: the activations' scale matters where biases are not zero.
            inputs = _unit(inputs) * jnp.sqrt(jnp.asarray(inputs.shape[1], dtype)) / 4
        starts = forward(inputs)
        if used:
            # Few are left: directions that no input suggests are cheap to try too.
            half = num_starts // 2
            mix = jax.random.normal(key_mix, (half, rank), dtype)
            starts = starts.at[:half].set(_mm(mix, space.white))
        climb = jnp.asarray(2 + 2 * used, jnp.int32)
        activations, lasts = _climb(starts, space, climb)
        gates = gates_of(activations, lasts).astype(dtype)
        found, distance = _settle(gates, row_space, jnp.asarray(40, jnp.int32))
        distance = np.asarray(distance, np.float64)
        good = np.flatnonzero(distance < tolerance)
        candidates = np.asarray(found)[good]
        new = _distinct(candidates, distance[good], rows, same=same)
        new = _independent(candidates, new, rows, factors)[: rank - len(rows)]
        rows = np.concatenate([rows, candidates[new]])
        residuals = np.concatenate([residuals, distance[good][new]])
        used += 1
        idle = 0 if new else idle + 1
    return GateRows(rows, residuals, used)
