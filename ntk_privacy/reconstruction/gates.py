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
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Factors", "GateRows", "factorize", "find_gate_rows"]

_HIGHEST = jax.lax.Precision.HIGHEST


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


@jax.jit
def _range_svd(g: Array, sketch: Array) -> tuple[Array, Array, Array]:
    """Randomized SVD (Halko et al., 2011, algorithm 4.4) with two power iterations."""

    def power(q, _):
        return jnp.linalg.qr(_mm(g, _mm(g.T, q)))[0], None

    q = jnp.linalg.qr(_mm(g, sketch))[0]
    q, _ = jax.lax.scan(power, q, None, length=2)
    u, s, vt = jnp.linalg.svd(_mm(q.T, g), full_matrices=False)
    return _mm(q, u), s, vt


def factorize(
    g: Float[Array, "rows columns"], *, key: Array, num_images: int | None = None
) -> Factors:
    """Returns the SVD cut at the widest gap of the spectrum, or at `num_images`.

    The sketch doubles until the widest gap lies well inside it.
    """
    limit = min(g.shape)
    size = min(limit, 48 if num_images is None else num_images + 8)
    while True:
        sketch = jax.random.normal(key, (g.shape[1], size), g.dtype)
        left, values, right = _range_svd(g, sketch)
        s = np.maximum(np.asarray(values, np.float64), 1e-300)
        # The leading value stands far above the rest (all images share a mean), and the
        # last few of a sketch fall off by themselves: neither is a sign of rank.
        ratios = s[:-1] / s[1:]
        if size < limit:
            ratios = ratios[: max(size - 6, 1)]
        ratios = ratios.copy()
        ratios[: min(2, len(ratios) - 1)] = 1.0
        widest = int(np.argmax(ratios)) + 1
        rank = widest if num_images is None else min(num_images, size)
        gap = float(s[rank - 1] / s[rank]) if rank < size else 1.0
        clear = ratios[widest - 1] > 20.0
        if num_images is not None or clear or size == limit:
            return Factors(left[:, :rank], s, right[:rank], gap)
        size = min(limit, 2 * size)


class _Space(NamedTuple):
    """Whitened coordinates of both factors.

    columns, column_means, column_lasts: whitened column space, the means that the
    centring took away, and the coordinates of the bias row.
    rows: whitened row space. affine: orthonormal basis of span(rows, 1).
    basis: orthonormal basis of the row space.
    """

    columns: Float[Array, "r units"]
    column_means: Float[Array, " r"]
    column_lasts: Float[Array, " r"]
    rows: Float[Array, "r columns"]
    affine: Float[Array, "r1 columns"]
    basis: Float[Array, "r columns"]


def _whiten(gram: np.ndarray, samples: int, rank: int) -> np.ndarray:
    """Returns the matrix that whitens a covariance, zero beyond its leading `rank`."""
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, values[-1] * 1e-12)
    scale = np.sqrt(samples / values)
    scale[: len(values) - rank] = 0.0
    return vectors * scale


def _deflated(
    factors: Factors, found: Bool[np.ndarray, "f columns"]
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


def _space(factors: Factors, found: Bool[np.ndarray, "f columns"]) -> _Space:
    """Whitens the column space of what is not yet found, and the whole row space."""
    dtype = factors.left.dtype
    rank = factors.right.shape[0]
    left = np.asarray(factors.left, np.float64) @ _deflated(factors, found)
    units = left[:-1]
    centred = units - units.mean(0)
    mix = _whiten(centred.T @ centred, len(units), rank - len(found))
    right = np.asarray(factors.right, np.float64)
    white = right - right.mean(1, keepdims=True)
    unmix = _whiten(white @ white.T, right.shape[1], rank)
    ones = np.ones((1, right.shape[1]))
    affine = np.linalg.qr(np.concatenate([right, ones]).T)[0].T
    arrays = (
        (centred @ mix).T,
        units.mean(0) @ mix,
        left[-1] @ mix,
        unmix.T @ white,
        affine,
        right,
    )
    return _Space(*(jnp.asarray(a, dtype) for a in arrays))


def _unit(v: Array) -> Array:
    norm = jnp.linalg.norm(v, axis=1, keepdims=True)
    return v / jnp.maximum(norm, jnp.finfo(v.dtype).tiny)


@jax.jit
def _climb(
    starts: Float[Array, "b units"], space: _Space, num_steps: Int[Array, ""]
) -> tuple[Float[Array, "b units"], Float[Array, " b"]]:
    r"""Follows the skewness of the column space from start activations.

    One step is $v \leftarrow Z (Z^\top v)^2$, normalised: the gradient of
    $E[(v^\top z)^3]$. Half the units of a rectified column are zero, so its skewness is
    large, and its square costs far less sampling noise than a fourth moment; but its
    maximum is not the source itself: few steps are best, and the rows finish.

    Returns:
      Activations up to a positive scale, and the bias coordinate in the same scale.
    """
    z = space.columns
    centred = starts - jnp.mean(starts, axis=1, keepdims=True)
    v = _unit(_mm(centred, z.T))
    v = jax.lax.fori_loop(0, num_steps, lambda _, v: _unit(_mm(_mm(v, z) ** 2, z.T)), v)
    means = _mm(v, space.column_means[:, None])
    return _mm(v, z) + means, _mm(v, space.column_lasts[:, None])[:, 0]


@jax.jit
def _settle(
    gates: Float[Array, "b columns"], space: _Space, num_steps: Int[Array, ""]
) -> tuple[Bool[Array, "b columns"], Float[Array, " b"]]:
    r"""Turns approximate gates into binary rows of the row space.

    The fixed point of the fourth moment, $w \leftarrow 3 w - E[z (w^\top z)^3]$ on the
    whitened rows, then alternating projections between span(rows, 1) and {0, 1}.
    A row and its complement both lie in that span: the one nearer to the row space
    itself is the gate row.

    Returns:
      The rows, and their squared relative distance to the row space.
    """
    z = space.rows
    columns = z.shape[1]

    def newton(state):
        step, w, y, _ = state
        w = _unit(3.0 * w - _mm(y**3, z.T) / columns)
        new = _mm(w, z)
        return step + 1, w, new, jnp.mean((new > 0) != (y > 0)) * 1.0

    centred = gates - jnp.mean(gates, axis=1, keepdims=True)
    w = _unit(_mm(centred, z.T))
    state = (jnp.zeros((), jnp.int32), w, _mm(w, z), jnp.ones((), z.dtype))
    state = jax.lax.while_loop(
        lambda s: (s[0] < num_steps) & (s[3] > 1e-4),
        lambda s: (*newton(s)[:3], newton(s)[3].astype(z.dtype)),
        state,
    )

    def project(_, s):
        return (_mm(_mm(s, space.affine.T), space.affine) > 0.5).astype(z.dtype)

    rows = (state[2] > 0).astype(z.dtype)
    rows = jax.lax.fori_loop(0, 6, project, rows)

    def distance(s):
        inside = jnp.sum(_mm(s, space.basis.T) ** 2, axis=1)
        norm = jnp.maximum(jnp.sum(s, axis=1), 1.0)
        return jnp.maximum(1.0 - inside / norm, 0.0)

    straight, flipped = distance(rows), distance(1.0 - rows)
    flip = flipped < straight
    rows = jnp.where(flip[:, None], 1.0 - rows, rows)
    return rows > 0.5, jnp.where(flip, flipped, straight)


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
    """
    rank, columns = factors.right.shape
    dtype = factors.right.dtype
    rows = np.zeros((0, columns), bool)
    residuals = np.zeros(0)
    idle = used = 0
    spare = auxiliary
    while len(rows) < rank and used < max_rounds and idle < 3:
        key_start, key_mix = jax.random.split(jax.random.fold_in(key, used))
        space = _space(factors, rows)
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
            starts = starts.at[:half].set(_mm(mix, space.columns))
        climb = jnp.asarray(2 + 2 * used, jnp.int32)
        activations, lasts = _climb(starts, space, climb)
        gates = gates_of(activations, lasts).astype(dtype)
        found, distance = _settle(gates, space, jnp.asarray(40, jnp.int32))
        distance = np.asarray(distance, np.float64)
        good = np.flatnonzero(distance < tolerance)
        candidates = np.asarray(found)[good]
        new = _distinct(candidates, distance[good], rows, same=same)
        new = new[: rank - len(rows)]
        rows = np.concatenate([rows, candidates[new]])
        residuals = np.concatenate([residuals, distance[good][new]])
        used += 1
        idle = 0 if new else idle + 1
    return GateRows(rows, residuals, used)
