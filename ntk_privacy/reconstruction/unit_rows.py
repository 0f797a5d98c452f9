"""Exact rows from rough images, and what speaks for each of them."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

from ntk_privacy.reconstruction.unit_space import Space

__all__ = [
    "EXTRA",
    "Row",
    "exact",
    "from_surest",
    "null_row",
    "preactivations",
    "robust_rows",
    "vanishing",
]

_SHARES = (0.5, 0.65)  # of the closed units: the surest
_MORE = (0.8, 0.9, 0.97)
_CLEAR = 50.0  # of the least row: how far the next stands above it
_NOISES = 8.0  # a unit vanishes below so many standard deviations of its noise
_SMALL = 1e-4  # or below this share of the row
_TRIMS = 4
_OUTLIER = 8.0  # over the median
_TURNS = 12  # of reweighting
_KEPT = 0.55  # of the units, whatever stands out
_REWEIGHTINGS = 8
_STILL = 0.02  # of the deviation: a row that moves by less is found
_STEPS = 80
_LITTLE = 1e-4  # of the energy that is left, in a step
_BENDS = 1e-2  # of the energy of a way: what noise leaves of it
_SPREAD = 1.5  # standard deviation over the median of sizes
EXTRA = 8  # units beyond N that a row takes


class Row(NamedTuple):
    """A row of signals, and what speaks for it.

    Attributes:
      c: (n,) in the coordinates of `Space.signals`.
      u: (n,) of the image whose closed units vanish, as far as regression tells.
      ratio: root mean square of the row at its surely closed units, over that at all.
      noises: the same, over the noise that belongs there.
      agreement: share of the units that vanish where the image closes them, and only
        there.
    """

    c: Float[np.ndarray, " n"]
    u: Float[np.ndarray, " n"]
    ratio: float
    noises: float
    agreement: float


def preactivations(
    space: Space, u: Float[np.ndarray, "... n"]
) -> Float[np.ndarray, "... m"]:
    """Largest preactivation of either end of the training, over their deviation.

    Args:
      space: of the rows, and of the gates before and after training.
      u: coefficients of directions.
    """
    before, after = u @ space.gates_0, u @ space.gates_t
    spread = np.std(before, axis=-1, keepdims=True)
    return np.maximum(before, after) / np.maximum(spread, 1e-300)


def _least(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """Eigenvector of the least eigenvalue, and how far the next one stands above."""
    values, vectors = scipy.linalg.eigh(
        gram, subset_by_index=[0, min(1, len(gram) - 1)]
    )
    # Where every direction vanishes none stands out.
    told = np.finfo(np.float64)
    floor = max(told.eps * np.trace(gram), told.tiny)
    return vectors[:, 0], float(np.sqrt(max(values[-1], floor) / max(values[0], floor)))


def row_noise(
    space: Space, c: Float[np.ndarray, "... n"]
) -> Float[np.ndarray, "... 1"]:
    """Standard deviation of an entry of the row c V."""
    return space.noise * np.linalg.norm(c / space.values, axis=-1, keepdims=True)


def vanishing(
    space: Space,
    c: Float[np.ndarray, "... n"],
    floor: float | np.ndarray = 0.0,
    *,
    noises: float = _NOISES,
) -> Bool[np.ndarray, "... m"]:
    """Units at which a row is nothing but noise.

    Args:
      space: the coordinates.
      c: of the row.
      floor: noise that was seen at its surely closed units, where it is more.
      noises: standard deviations of it below which an entry is nothing else.
    """
    row = np.abs(c @ space.signals)
    typical = np.sqrt(np.mean(row**2, axis=-1, keepdims=True))
    # A row that vanishes nowhere is not helped by its own noise.
    noise = np.minimum(np.maximum(row_noise(space, c), floor) * noises, typical / 20)
    return row < np.maximum(noise, _SMALL * typical * noises / _NOISES)


def null_row(space: Space, closed: np.ndarray) -> tuple[Float[np.ndarray, " n"], float]:
    """The row that is least on the closed units, and how much less than the next.

    Every unit counts alike, so that no weak image spoils it.

    Args:
      space: the coordinates.
      closed: indices of units.
    """
    inner = space.rows[:, closed]
    c, clear = _least(inner @ inner.T)
    c = space.mix @ c
    return c / np.linalg.norm(c), clear


def robust_rows(
    space: Space,
    closed: Bool[np.ndarray, "k m"],
    c: Float[np.ndarray, "k n"],
    u: Float[np.ndarray, "k n"],
) -> Float[np.ndarray, "k n"]:
    """Rows of images, each vanishing on most of the units that its image closes.

    Among rows with c . u = 1: those of other images, which may be far weaker and so
    vanish nearly everywhere, have 0.

    Every entry of the change counts alike, as its noise is, and less the farther it is
    from zero (Cauchy's weights): a unit that opened for a while is no zero.

    Args:
      space: the coordinates.
      closed: units that close at either end of the training.
      c: the rows to begin from.
      u: the images.
    """
    made = c / np.linalg.norm(c / space.values, axis=1, keepdims=True)
    left, before = np.arange(len(c)), None
    for _ in range(_REWEIGHTINGS):
        now = np.abs(made[left] @ space.signals)
        shut = closed[left]
        scale = np.array([np.median(row[z]) for row, z in zip(now, shut, strict=True)])
        scale = (_SPREAD * scale + 1e-300)[:, None]
        if before is not None:
            moved = np.max(np.abs(now - before) * shut, axis=1)
            moves = moved > _STILL * scale[:, 0]
            if not moves.any():
                break
            left, now, scale, shut = left[moves], now[moves], scale[moves], shut[moves]
        weight = shut / (1 + (now / (2 * scale)) ** 2)
        # Noise adds to every energy alike: all but a little of it is taken out.
        noise = np.sum(weight, axis=1) * scale[:, 0] ** 2
        made[left] = _least_energy(space, weight, noise, made[left], u[left])
        before = now
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def _least_energy(
    space: Space, weight: np.ndarray, noise: np.ndarray, c: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """The least energy on weighted units, less nine tenths of the noise in it.

    Conjugate gradients of all rows at once, along c . u = 1, where no direction has
    little energy: a row costs products with the signals alone, and few of them. What
    the units weigh in the mean conditions them.
    """
    signals, white = space.signals, 1 / space.values**2
    mean = np.mean(weight, axis=0)
    gram = (signals * mean) @ signals.T
    gram += np.finfo(np.float64).eps * np.trace(gram) * np.eye(len(gram))
    inverse = np.linalg.inv(gram)
    normal = u @ inverse
    normal /= np.sum(normal * u, axis=1, keepdims=True)

    def dot(a, b):
        return np.sum(a * b, axis=1, keepdims=True)

    def energy(c):
        return ((c @ signals) * weight) @ signals.T

    c = c / dot(c, u)
    slope, size = energy(c), dot(c * white, c)
    share = 0.9 * np.minimum(noise[:, None], np.maximum(dot(c, slope) / size, 0))
    slope -= share * white * c

    def projected(slope):
        step = slope @ inverse
        return step - dot(step, u) * normal

    step = projected(slope)
    way, fall, going = -step, dot(slope, step), np.ones((len(c), 1), bool)
    for _ in range(_STEPS):
        bend, less = energy(way), share * white * way
        curve, left = dot(way, bend), dot(way, bend - less)
        # A row stays where noise is all there is, or little else is to be won.
        going &= (left > _BENDS * curve) & (fall > _LITTLE * dot(c, slope))
        if not going.any():
            break
        length = np.where(going, fall / np.where(going, left, 1), 0)
        c, slope = c + length * way, slope + length * (bend - less)
        step = projected(slope)
        now = dot(slope, step)
        way = np.where(going, now / np.where(going, fall, 1) * way - step, way)
        fall = now
    return c / np.linalg.norm(c / space.values, axis=1, keepdims=True)


def _surest(z: np.ndarray, share: float, least: int) -> np.ndarray | None:
    """Units that close most surely; None where too few close at all."""
    negative = int(np.sum(z < 0))
    if negative < least:
        return None
    return np.argsort(z)[: max(int(share * negative), least)]


def _trimmed(space: Space, closed: np.ndarray, least: int):
    """The null row of the units that do vanish among those that should.

    A unit that was open for a while in between says so by standing out.
    """
    c, clear = null_row(space, closed)
    least = max(least, int(_KEPT * len(closed)))
    for _ in range(_TRIMS):
        row = np.abs(c @ space.signals[:, closed])
        order = np.argsort(row)
        middle = row[order[len(order) // 2]]
        kept = max(int(np.sum(row < _OUTLIER * middle)), least)
        if kept >= len(closed):
            break
        closed = closed[order[:kept]]
        c, clear = null_row(space, closed)
    return c, closed, clear


def _reweighted(space: Space, closed: np.ndarray, least: int):
    """The null row of those that vanish, where many that should do not.

    Where units are few for the images, one that opened for a while turns the row so
    much that it does not stand out: it counts the less the farther it is from zero
    (Cauchy's weights), nearer and nearer.
    """
    inner, weight = space.rows[:, closed], np.ones(len(closed))
    row = weight
    for _ in range(_TURNS):
        c, _ = _least((inner * weight) @ inner.T)
        row = np.abs(c @ inner)
        scale = np.quantile(row, min(least / len(closed), 1.0))
        weight = 1 / (1 + (row / max(scale, 1e-150)) ** 2)
    kept = np.argsort(row)[:least]
    c, clear = null_row(space, closed[kept])
    row = np.abs(c @ space.signals[:, closed])
    kept = row < _OUTLIER * np.sort(row)[least - 1]
    c, clear = null_row(space, closed[kept])
    return c, closed[kept], clear


def from_surest(
    space: Space, z: Float[np.ndarray, " m"], *, share: float
) -> tuple[Float[np.ndarray, " n"], np.ndarray] | None:
    """The row that vanishes where an image closes, and the units that told it.

    Images that nearly agree share most of their closed units, and any combination of
    their rows vanishes there: units are added until one row stands out.

    Args:
      space: the coordinates.
      z: preactivations of the image.
      share: of the closed units to begin with: the surest.
    """
    least = len(space.values) + EXTRA
    best = None
    for more in (share, *(s for s in _MORE if s > share)):
        closed = _surest(z, more, least)
        if closed is None:
            return None
        c, closed, clear = _trimmed(space, closed, least)
        if best is None or clear > best[2]:
            best = c, closed, clear
        if clear > _CLEAR:
            break
    assert best is not None
    if best[2] < _CLEAR:
        told = _reweighted(space, np.flatnonzero(z < 0), least)
        if told[2] > best[2] and len(told[1]) > _KEPT * np.sum(z < 0):
            best = told
    return best[:2]


def exact(
    space: Space,
    u: Float[np.ndarray, " n"],
    inverse: Float[np.ndarray, "n n"],
    *,
    rounds: int = 3,
    enough: float = 0.65,
) -> Row | None:
    """Sharpens a rough image to an exact row; None where it has too few closed units.

    Args:
      space: the coordinates.
      u: rough.
      inverse: of the regression of the gates.
      rounds: at most.
      enough: agreement below which it is given up after the first round.
    """
    best, gates = None, space.gates
    for k in range(rounds):
        z = preactivations(space, u)
        told = from_surest(space, z, share=_SHARES[min(k, len(_SHARES) - 1)])
        if told is None:
            return best
        c, closed = told
        row = c @ space.signals
        seen = float(np.sqrt(np.mean(row[closed] ** 2)))
        ratio = seen / float(np.sqrt(np.mean(row**2)))
        noise = float(row_noise(space, c)[0])
        vanish = vanishing(space, c, seen)
        share = np.mean(vanish)
        if not 0.02 < share < 0.98:
            return best
        # Regression of the pattern: the image whose units it is that close.
        u = inverse @ (gates @ np.where(vanish, -1 / share, 1 / (1 - share)))
        u = u / np.linalg.norm(u)
        agreement = float(np.mean(vanish == (preactivations(space, u) < 0)))
        now = Row(c, u, ratio, seen / max(noise, 1e-300), agreement)
        if best is None or now.agreement > best.agreement:
            best = now
        elif k:
            break
        if agreement < enough:
            break
    return best
