"""All rows of a change: search, removal of what is found, and search again."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy.reconstruction import (
    fine_unit_search,
    unit_rows,
    unit_search,
    unit_set,
    unit_space,
)
from ntk_privacy.reconstruction.unit_space import Space

__all__ = ["Found", "find", "passes"]

_AGREEMENT = 0.75  # of a row that is kept for the moment
_RATIO = 0.03
_SAME = 0.995
# Shares: surely closed units that vanish, surely open ones that do, agreement of all,
# and leaks to any other image.
_STRICT = (0.7, 0.25, 0.7, 0.75)
_PATIENCE = 3  # rounds without a find, before starts grow more
_MOST_STARTS = 8  # times those of a round
_DOUBT = 1000.0  # over the least ratio: rows that bar the way to others
_NOISY = 100.0  # over its noise: a row of less is weak, or rounded, and in no doubt
_HOPELESS = 64  # rough images that led to no row, before the first one that does
_IN_VAIN = 24  # after it: those that vanish best come first
_BOUNDED = 0.1  # error of an image that is worth something
_WHOLES = 3  # sets that agree with their units, where no error is bounded in any
_ROWS = 8  # an image, true and false ones, that a fine round may find
_DEPENDS = 1e-3  # of a row: what others leave of it, if it depends on them
_NARROW = 16  # units an image, below which it is hard to tell combinations


class Found(NamedTuple):
    """What the search ended with.

    Attributes:
      rows: as were found, when some are missing.
      whole: the set, when none is.
      good: which of the whole pass the strict test.
      rounds: of starts.
    """

    rows: list[unit_rows.Row]
    whole: unit_set.Whole | None
    good: np.ndarray
    rounds: int


def _correlation(z: np.ndarray, others: np.ndarray) -> float:
    """Largest correlation of a vector with any row."""
    if not len(others):
        return 0.0
    sizes = np.linalg.norm(others, axis=1) * np.linalg.norm(z)
    return float(np.max(np.abs(others @ z) / np.maximum(sizes, 1e-300)))


def _signals(space: Space, rows: list[unit_rows.Row]) -> np.ndarray:
    c = np.array([row.c for row in rows]).reshape(-1, len(space.values))
    return c @ space.signals


def _doubtful(row: unit_rows.Row, limit: float) -> bool:
    """Whether a row vanishes worse than others do, and than its noise lets it."""
    return row.ratio > limit and row.noises > _NOISY


def _accepted(
    space: Space,
    rough: np.ndarray,
    rows: list,
    inverse,
    limit: float = _RATIO,
    *,
    most: int | None = None,
) -> list:
    """Rows that rough images lead to and that are not among those known."""
    new, misses, tried = [], 0, np.zeros((0, space.gates.shape[1]))
    known, most = _signals(space, rows), most or len(space.values)
    for u in rough:
        if len(rows) + len(new) >= most:
            break
        if misses >= (_IN_VAIN if new else _HOPELESS) and (new or not rows):
            break
        z = u @ space.gates
        if _correlation(z, tried) > _SAME:
            continue
        tried = np.concatenate([tried, z[None]])
        row, misses = unit_rows.exact(space, u, inverse), misses + 1
        if row is None or row.agreement < _AGREEMENT or row.ratio > _RATIO:
            continue
        if _doubtful(row, limit):
            continue
        signal = row.c @ space.signals
        if _correlation(signal, known) > _SAME:
            continue
        known = np.concatenate([known, signal[None]])
        new.append(row)
        misses = 0
    return new


def _sure(rows: list[unit_rows.Row], limit: float) -> tuple[list, float]:
    """Rows that are in no doubt, and the limit of ratios for those to come."""
    limit = min(limit, _DOUBT * min(row.ratio for row in rows))
    return [row for row in rows if not _doubtful(row, limit)], limit


def _fullest(space: Space, rows: list[unit_rows.Row]) -> list[unit_rows.Row]:
    """Independent rows that vanish on most of the units that their images close.

    A combination vanishes on fewer than its parts, as a rule: once these are found, it
    depends on rows that came before it.
    """
    if not rows:
        return rows
    c, u = (np.array([getattr(row, name) for row in rows]) for name in ("c", "u"))
    closed = unit_rows.preactivations(space, u) < 0
    zeros = np.sum(unit_rows.vanishing(space, c) & closed, axis=1)
    kept, basis = [], np.zeros((0, c.shape[1]))
    for k in np.argsort(-zeros, kind="stable"):
        rest = c[k] - (c[k] @ basis.T) @ basis
        size = np.linalg.norm(rest)
        if size > _DEPENDS * np.linalg.norm(c[k]):
            kept.append(rows[k])
            basis = np.concatenate([basis, rest[None] / size])
    return kept


class _Suspects:
    """Rows that are left out by turns, where the search for the last ones stalls.

    A combination of two rows vanishes where both do, so on fewer units than either, and
    bars the way to both.
    """

    def __init__(self):
        self.out, self.tried = None, []

    def clear(self) -> None:
        self.out, self.tried = None, []

    def next(self, space: Space, rows: list[unit_rows.Row]) -> list[unit_rows.Row]:
        """Puts the last suspect back, and leaves out the next one."""
        if self.out is not None:
            signal = self.out.c @ space.signals
            if _correlation(signal, _signals(space, rows)) <= _SAME:
                rows = [*rows, self.out]
        self.out = None
        if len(rows) < 2 or 2 * len(rows) < len(space.values):
            return rows
        signals, tried = _signals(space, rows), np.array(self.tried)
        vanish = unit_rows.vanishing(space, np.array([row.c for row in rows]))
        for k in np.argsort(np.sum(vanish, axis=1), kind="stable"):
            if _correlation(signals[k], tried) <= _SAME:
                self.out = rows[k]
                self.tried.append(signals[k])
                return [*rows[:k], *rows[k + 1 :]]
        return rows


def passes(whole: unit_set.Whole) -> Bool[np.ndarray, " n"]:
    """Returns which rows of a set agree with what their images close, strictly.

    Args:
      whole: by `unit_set.complete`.
    """
    closed, opened, all_of_them, leaks = _STRICT
    return (
        (whole.closed_vanish > closed)
        & (whole.open_vanish < opened)
        & (whole.agreement > all_of_them)
        & (whole.leaks < leaks)
        & (whole.ratios < _RATIO)
        & (whole.surplus > 0)
    )


def _bounded(whole: unit_set.Whole) -> int:
    return int(np.sum(whole.errors < _BOUNDED))


def _more_bounded(one: unit_set.Whole, other: unit_set.Whole | None) -> unit_set.Whole:
    return one if other is None or _bounded(other) <= _bounded(one) else other


def find(
    space: Space,
    *,
    key: Array,
    starts: Float[np.ndarray, "k n"] | None,
    num_starts: int,
    max_rounds: int,
    dtype,
) -> Found:
    """Searches until every row is found, or patience ends.

    Args:
      space: the coordinates.
      key: typed key of the random starts.
      starts: u of given images.
      num_starts: random ones a round.
      max_rounds: at most.
      dtype: of the search on the device.
    """
    n, rows, whole, good = len(space.values), [], None, np.zeros(0, bool)
    idle, limit, count, most, suspects = 0, _RATIO, num_starts, 0, _Suspects()
    most_fine, wholes = fine_unit_search.most_starts(space), 0
    narrow = most_fine > 0 and space.signals.shape[1] < _NARROW * n
    hard, turn, failed = False, 0, 0
    for k in range(max_rounds):
        found = np.array([row.c for row in rows]).reshape(-1, n)
        inverse = unit_space.inverse_gates(space, found)
        key_starts, key_shifts = jax.random.split(jax.random.fold_in(key, k))
        # By turns, once the rough climb stalls: either finds rows that the other one
        # does not.
        fine = most_fine > 0 and (turn if hard else idle) % 2 == 1
        turn += hard
        size = min(count, most_fine) if fine else count
        u = np.asarray(jax.random.normal(key_starts, (size, n)), np.float64)
        if starts is not None and not k:
            u = np.concatenate([starts, u])[: max(size, len(starts))]
        if len(found):
            basis = np.linalg.qr(found.T)[0]
            u = u - (u @ basis) @ basis.T
        if space.scale is not None:
            u = u * np.where(u @ space.scale < 0, -1, 1)[:, None]
        given = {"key": key_shifts, "dtype": dtype}
        if fine:
            rough = fine_unit_search.climb(space, u, inverse, found, **given)
        else:
            rough = unit_search.climb(space, u, inverse, **given)
        if space.scale is not None:
            rough = rough * np.where(rough @ space.scale < 0, -1, 1)[:, None]
        if fine or hard:
            new = _accepted(space, rough, rows, inverse, limit, most=_ROWS * n)
            rows = _fullest(space, rows + new)
        else:
            rows = rows + _accepted(space, rough, rows, inverse, limit)
        idle += 1
        if len(rows) > most:
            most, idle = len(rows), 0
            suspects.clear()
        elif narrow and not hard:
            hard, turn = True, 1
        if len(rows) == n:
            judged = np.zeros(n, bool)
            made = unit_set.complete(space, np.array([row.c for row in rows]))
            if narrow and made is not None and _bounded(made) < n:
                # Rows that were false are replaced by now, and spoil no zeros.
                made = _more_bounded(made, unit_set.complete(space, made.c))
            if made is not None:
                judged = passes(made)
                if whole is None or judged.sum() > good.sum():
                    whole, good = made, judged
                wholes += judged.all()
                enough = not narrow or _bounded(made) or wholes == _WHOLES
                if judged.all() and (enough or k + 1 == max_rounds):
                    return Found(rows, unit_set.polish(space, made), judged, k + 1)
            sure, limit = _sure(rows, limit)
            failed += 1
            if narrow and not hard and failed > 1:
                hard, turn = True, 1
            if len(sure) < n:
                rows = sure
            elif hard:
                # Combinations among them spoil the images: the least full ones go.
                rows = _fullest(space, rows)[: -1 - k % max(n // 4, 1)]
            elif made is not None:
                rows = [
                    row._replace(c=c)
                    for row, c, fine in zip(rows, made.c, judged, strict=True)
                    if fine
                ]
            else:
                # Some are combinations of others: the least sure go.
                rows = sorted(rows, key=lambda row: -row.agreement)[: n // 2]
            most = len(rows)
        elif idle >= _PATIENCE:
            if not rows:
                return Found(rows, whole, good, k + 1)
            sure, limit = _sure(rows, limit)
            if len(sure) < len(rows):
                rows, idle, most = sure, 0, len(sure)
                suspects.clear()
            elif hard:
                rows = rows[: -1 - k % max(n // 4, 1)]
                idle, most = 0, len(rows)
            else:
                rows = suspects.next(space, rows)
            count = min(2 * count, _MOST_STARTS * num_starts)
    left = [] if suspects.out is None else [suspects.out]
    return Found(rows + left, whole, good, max_rounds)
