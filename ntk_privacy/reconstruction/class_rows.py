r"""Finds the gated rows of a network that has not learnt yet, class by class.

At initialisation a network tells classes hardly apart: the dual of an image of class c
is nearly $p - e_c$ for one p, whether the loss is cross-entropy or squares. So the rows
of a class, $s_i \circ (W_3 \alpha_i)$, all share a direction $v_c = W_3 (e_c - p)$, and
divided by it they are binary, where those of the other classes are heavy-tailed. The
search for binary rows (`gates`) finds the former. The direction is approximate, so a
row is then taken anew, as the one that is least where its gates are closed: that one is
exact, and what is exact is removed before the next class is searched. Of many images,
or through many layers, where inputs suggest gates only roughly, it comes first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import linalg

from ntk_privacy.reconstruction import gated_rows, layer_inversion, low_rank
from ntk_privacy.reconstruction import gates as gates_lib

__all__ = ["Space", "find", "make"]

_COLUMNS = 0.75  # share of units: those of the smallest weights would blow up noise
_TOLERANCE = 0.05  # squared distance of a binary row: the direction is approximate
_SAME = 0.9
_STEPS = 15
_STARTS = 256
_RATIO = 1e-3  # of the two least energies, below which a row vanishes where it should
_OPEN = 1e-3  # of the largest entry
_AGREEMENT = 0.95  # of the units where a row vanishes with the gates that led to it
_SPARE = 8  # closed units more than images
_DEAD = 1e-6  # of the largest weight
_NOTHING = 1e-16  # of the largest energy
_SUM = 0.5  # of the duals, over that of their sizes
_POWERS = 4
_TRIMS = 5
_FAR = 50.0  # times the median square of a row where it vanishes
_ALIKE = 0.999  # correlation of rows that are one


class Space(NamedTuple):
    """A row space, and what the classes make of it.

    Attributes:
      basis: orthonormal rows of the change of the last hidden layer, in float64.
      columns: kept units of each class that has output weights, as many for all.
      directions: of each class, on its units.
      factors: of the change divided by the direction of each class.
      rows: their whitened row spaces.
    """

    basis: Float[np.ndarray, "r units"]
    columns: list[np.ndarray]
    directions: list[np.ndarray]
    factors: list[low_rank.Factors]
    rows: list[gates_lib._Rows]


def make(
    factors: low_rank.Factors,
    kernel: Float[np.ndarray, "units c"],
    change: Float[np.ndarray, " c"],
) -> Space:
    """Divides the change of the last hidden layer by the direction of every class.

    Args:
      factors: of the change, bias row last.
      kernel: of the output layer.
      change: of its bias, the sum of all duals. Those of cross-entropy and of centred
        labels sum to zero, so that p is 1 / c; those of labels of 0 and 1 do not, and
        p is the output of a new network, zero.
    """
    rank = factors.right.shape[0]
    left = np.asarray(factors.left, np.float64)
    right = np.asarray(factors.right, np.float64)
    kernel = kernel.astype(np.float64)
    kept = int(_COLUMNS * len(kernel))
    columns, directions, divided = [], [], []
    if abs(np.sum(change)) <= _SUM * np.sum(np.abs(change)):
        kernel = kernel - kernel.mean(1, keepdims=True)
    for direction in kernel.T:
        units = np.sort(np.argsort(-np.abs(direction))[:kept])
        sizes = np.abs(direction[units])
        if not sizes.min(initial=np.inf) > _DEAD * sizes.max(initial=0.0):
            continue  # Output weights that were pruned tell no gates.
        rows = factors.values[:rank, None] * right[:, units] / direction[units]
        squares, vectors = np.linalg.eigh(rows @ rows.T)
        # Of a rank that was told and is less, the last directions hold nothing.
        least = max(_NOTHING * squares[-1], 1e-300)
        squares, vectors = np.maximum(squares[::-1], least), vectors[:, ::-1]
        values = np.sqrt(squares)
        columns.append(units)
        directions.append(direction[units])
        divided.append(
            low_rank.Factors(
                jnp.asarray(left @ vectors, factors.left.dtype),
                values,
                jnp.asarray((vectors / values).T @ rows, factors.right.dtype),
                factors.gap,
            )
        )
    rows = [gates_lib._row_space(each) for each in divided]
    return Space(right, columns, directions, divided, rows)


def _binary(
    space: Space,
    c: int,
    known: Float[np.ndarray, "f units"],
    starts: Float[Array, "b units0"],
    mixes: Float[Array, "k r"],
    last: tuple[Array, Array],
    climbs: int,
) -> Bool[np.ndarray, "m kept"]:
    """Binary rows of a class, on its units, that are not known; best first."""
    units, factors = space.columns[c], space.factors[c]
    whitened = gates_lib._column_space(factors, known[:, units] / space.directions[c])
    starts = starts.at[: len(mixes)].set(gates_lib._mm(mixes, whitened.white))
    steps = jnp.asarray(climbs, jnp.int32)
    activations, lasts = gates_lib._climb(starts, whitened, steps)
    kernel, bias = last
    gates = layer_inversion.gates_of(kernel[:, units], bias[units], activations, lasts)
    rows, distances = gates_lib._settle(
        gates.astype(kernel.dtype),
        space.rows[c],
        jnp.asarray(_STEPS, jnp.int32),
    )
    rows, distances = np.asarray(rows), np.asarray(distances, np.float64)
    good = np.flatnonzero(distances < _TOLERANCE)
    open_ = _open(known)[:, units]
    new = gates_lib._distinct(rows[good], distances[good], open_, same=_SAME)
    return rows[good][new]


def _open(rows: Float[np.ndarray, "m units"]) -> Bool[np.ndarray, "m units"]:
    size = np.abs(rows)
    return size > _OPEN * np.max(size, axis=1, initial=0.0, keepdims=True)


def _least(
    part: Float[np.ndarray, "r shut"], start: Float[np.ndarray, " r"]
) -> tuple[Float[np.ndarray, " r"], float, float]:
    """The direction of least energy by powers of the inverse, and the two least."""
    gram = part @ part.T
    gram[np.diag_indices_from(gram)] += 1e-12
    factor = linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    other = np.random.default_rng(0).standard_normal(len(part))
    pair = np.stack([start, other], axis=1)
    for _ in range(_POWERS):
        pair = np.linalg.qr(linalg.cho_solve(factor, pair, check_finite=False))[0]
    inside = pair.T @ part
    energies, turn = np.linalg.eigh(inside @ inside.T)
    return pair @ turn[:, 0], float(energies[0]), float(energies[1])


def _exact(
    space: Space, c: int, binary: Bool[np.ndarray, " kept"]
) -> tuple[Float[np.ndarray, " units"], float] | None:
    """The row of norm 1 that is least where gates are closed, and its norm there.

    Units where it vanishes far worse than elsewhere were taken for closed: they go.
    None where another row vanishes as well, or where this one vanishes on other units
    too: it belongs to no single image.
    """
    units = space.columns[c]
    part = space.basis[:, units]
    row, closed = part @ (binary * space.directions[c]), ~binary
    least, next_ = 0.0, 1.0
    for _ in range(_TRIMS):
        if np.sum(closed) < len(part) + _SPARE:
            return None
        row, least, next_ = _least(part[:, closed], row)
        squares = (row @ part) ** 2
        kept = closed & (squares <= _FAR * np.median(squares[closed]))
        if np.array_equal(kept, closed):
            break
        closed = kept
    row = row @ space.basis
    if least > _RATIO * next_:
        return None
    if np.mean(_open(row[None])[0, units] == binary) < _AGREEMENT:
        return None
    return row, float(np.sqrt(max(least, 0.0)))


def find(
    space: Space,
    forward,
    last: tuple[Array, Array],
    change: Float[Array, "d units0"],
    *,
    key: Array,
    num_starts: int | None,
    max_rounds: int,
) -> gated_rows.GatedRows:
    """Sweeps over the classes until all rows are found, or one finds nothing new.

    Args:
      space: by `make`.
      forward: inputs (b, d) -> activations (b, units) that feed the layer.
      last: kernel and bias of the last hidden layer.
      change: of the first layer; its columns span the training inputs.
      key: typed key.
      num_starts: of each class in each sweep; None is 256.
      max_rounds: sweeps at most.
    """
    count = num_starts or _STARTS
    rank, units = space.basis.shape
    classes = len(space.columns)
    if not classes:
        return gated_rows.GatedRows(np.zeros((0, units)), np.zeros(0), 0)
    rows, residuals, before, k = np.zeros((0, units)), np.zeros(0), -1, 0
    while k < max_rounds * classes:
        if not k % classes:
            if len(rows) == before:
                break
            before = len(rows)
        key_inputs, key_mixes = jax.random.split(jax.random.fold_in(key, k))
        mix = jax.random.normal(key_inputs, (count, change.shape[1]), change.dtype)
        inputs = gates_lib._unit(gates_lib._mm(mix, change.T))
        # Unit norm: the activations' scale matters where biases are not zero.
        inputs = inputs * jnp.sqrt(jnp.asarray(inputs.shape[1], inputs.dtype)) / 4
        # Later few are left: directions that no input suggests are tried too.
        half = count // 2 if k >= classes else 0
        mixes = jax.random.normal(key_mixes, (half, rank), change.dtype)
        climbs = 2 + 2 * (k // classes)
        c = k % classes
        for binary in _binary(space, c, rows, forward(inputs), mixes, last, climbs):
            made = _exact(space, c, binary)
            if made is None or np.any(np.abs(rows @ made[0]) > _ALIKE):
                continue
            rows = np.concatenate([rows, made[0][None]])
            residuals = np.append(residuals, made[1])
            if len(rows) == rank:
                return gated_rows.GatedRows(rows, residuals, k // classes + 1)
        k += 1
    return gated_rows.GatedRows(rows, residuals, k // classes)
