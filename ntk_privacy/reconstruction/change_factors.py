r"""The change of a first layer as images times signals and noise: rank, scale, decay.

$\Delta W = \sum_i x_i d_i^\top + E$ has the rank of the images; what stands behind it
in the spectrum is noise, whose size is read from there. Weight decay under SGD leaves
$W_t = a W_0 + \sum_i x_i d_i^\top$ with one unknown scalar a: the rest of the
spectrum, where no image is, tells it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Factors", "decay", "decays", "factorize"]

CLEAR = 3.0
"""Least gap in the spectrum that shows a rank."""

_POWERS = 2
_STEPS, _STILL = 12, 1e-10  # of the search for a
_FIRST = 96  # size of the first sketch
_WHOLE = 400  # below it the whole spectrum is cheap
_SEEN = 1e-2  # of what no image is: the share that old weights explain, if any decayed


class Factors(NamedTuple):
    """Truncated singular value decomposition, in float64.

    Attributes:
      left: (d, r) orthonormal columns.
      values: (r,) singular values kept.
      right: (r, units) orthonormal rows.
      gap: last kept over first dropped singular value; inf where none is left.
      shown: the spectrum shows the rank: noise behind it is flat.
      noise: root mean square of an entry of the rest.
    """

    left: Float[np.ndarray, "d r"]
    values: Float[np.ndarray, " r"]
    right: Float[np.ndarray, "r units"]
    gap: float
    shown: bool
    noise: float


def _leading(change: np.ndarray, size: int):
    """The leading singular triplets (Halko et al., 2011, algorithm 4.4)."""
    if min(change.shape) <= max(size, _WHOLE):
        return np.linalg.svd(change, full_matrices=False)
    sketch = np.random.default_rng(0).standard_normal((change.shape[1], size))
    q = np.linalg.qr(change @ sketch)[0]
    for _ in range(_POWERS):
        q = np.linalg.qr(change @ (change.T @ q))[0]
    left, values, right = np.linalg.svd(q.T @ change, full_matrices=False)
    return q @ left, values, right


def _shown_rank(values: np.ndarray, *, whole: bool) -> int | None:
    """Rank at the widest gap, if what stands behind it is as flat as noise."""
    tiny = np.finfo(np.float64).eps * values[0]
    floor = np.maximum(values, tiny)
    ratios = floor[:-1] / floor[1:]
    # The last ones of a sketch are not exact, and the last of all fall off.
    last = len(ratios) - max(len(ratios) // (3 if whole else 8), 4)
    best = None
    for k in np.argsort(-ratios[: max(last, 0)])[:4]:
        behind = floor[k + 1] / floor[min(k + 9, len(floor) - 1)]
        if ratios[k] > CLEAR and behind < max(ratios[k] ** 0.5, 2.0):
            best = int(k) + 1 if best is None else best
    return best


def factorize(
    change: Float[np.ndarray, "d units"], *, rank: int | None = None
) -> Factors:
    """Returns the factors of a change, cut where noise begins.

    Args:
      change: of the kernel.
      rank: if it is known; None reads it from the spectrum. Where the spectrum shows
        none, the factors have rank 0.
    """
    limit = min(change.shape)
    # Pixels that are always black leave no noise: where it ends is no rank.
    moved = min(int(np.any(change, axis=axis).sum()) for axis in (0, 1))
    size = min(limit, _FIRST if rank is None else rank + 24)
    while True:
        left, values, right = _leading(change, size)
        whole = len(values) == limit
        ends = whole or len(values) >= moved
        shown = _shown_rank(values[:moved], whole=ends) if moved else None
        if shown is None:
            shown = _shown_rank(values, whole=whole)
        if rank is not None or shown is not None or whole:
            break
        size = min(limit, 3 * size)
    kept = min(rank if rank is not None else (shown or 0), limit)
    gap = 1.0
    if kept:
        behind = values[kept] if kept < len(values) else 0.0
        gap = float(values[kept - 1] / behind) if behind else float("inf")
        if rank is not None and kept == limit:
            gap = 1.0  # nothing is left that would show the noise
    left, right = left[:, :kept], right[:kept]
    rest = change - (left * values[:kept]) @ right
    noise = np.linalg.norm(rest) / np.sqrt(max(rest.size, 1))
    return Factors(
        left, values[:kept], right, gap, shown == kept and kept > 0, float(noise)
    )


def _outside(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    matrix = matrix - left @ (left.T @ matrix)
    return matrix - (matrix @ right.T) @ right


def decays(
    before: Float[np.ndarray, "d units"],
    change: Float[np.ndarray, "d units"],
    factors: Factors,
) -> bool:
    """Whether a multiple of the old weights is seen in what no image is.

    Of noise alone it explains one part in as many as there are entries.

    Args:
      before: kernel before training.
      change: of the kernel.
      factors: of the change.
    """
    base = _outside(before, factors.left, factors.right)
    rest = _outside(change, factors.left, factors.right)
    squares = float(np.vdot(base, base)) * float(np.vdot(rest, rest))
    return float(np.vdot(base, rest)) ** 2 > _SEEN * squares


def decay(
    before: Float[np.ndarray, "d units"],
    after: Float[np.ndarray, "d units"],
    *,
    rank: int | None = None,
) -> float:
    """Returns the a for which `after - a before` has the least outside a low rank.

    Regression of what the leading part of the spectrum leaves, repeated: images are in
    that part, and the rest is a multiple of the kernel before training.

    Args:
      before: kernel before training.
      after: kernel after it.
      rank: of that part, more than there are images; None is a third of the spectrum.
    """
    count = min(before.shape) // 3
    count = max(count if rank is None else min(rank, count), 1)
    a = float(np.vdot(before, after) / np.vdot(before, before))
    for _ in range(_STEPS):
        rest = after - a * before
        left, _, right = _leading(rest, count)
        left, right = left[:, :count], right[:count]
        base = _outside(before, left, right)
        size = np.vdot(base, base)
        if not size:  # the leading part is all there is
            break
        step = float(np.vdot(base, _outside(rest, left, right)) / size)
        a += step
        if abs(step) < _STILL:
            break
    return a
