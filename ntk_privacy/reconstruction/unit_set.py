r"""A whole set of rows: its images, their joint refinement, and what it leaves.

In coordinates in which the noise of every entry is alike, the change is Y = X D with
the zeros of D known: masked least squares for D and X in turn is the most that the
weights tell. What it leaves of Y, per degree of freedom, is the noise that moved the
images, wherever it comes from: rounding of weights or of steps, decay, wrong zeros.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from ntk_privacy.reconstruction import fuller_rows, unit_rows, unit_space
from ntk_privacy.reconstruction.unit_space import Space

__all__ = ["Whole", "complete", "polish"]

_ROUNDS = 5
_LOOSE = 2  # of them, from the surest units alone
_SLACK = 5e-3  # of the agreement
_ALTERNATIONS = 8
_ROUGHLY = 1e-3  # of what is left of the change, in an alternation
_CONVERGED = 1e-5  # in a leap
_LEAPS = 12
_FINE = 1e-5  # error of images that need no polish
_FARTHEST = 1e8  # of a leap, in steps
_SURE = 0.7  # of the units on either side of zero
_ZERO = 4.0  # standard deviations of its noise within which an entry is zero
_SPOILT = 6.0  # over the median: rest of a unit some of whose zeros are none
_MOST_SPOILT = 0.25  # of the units
_MOVED = 0.1  # change of a unit row that joint refinement is trusted with
_SCALE = 0.1  # of the most that a bias's misfit could do
_WORSE = 0.01  # agreement of a row's own that a new one may lose
_NEAR = 1e-3  # of a row's median: what vanishes for its own agreement
_FEW = 5  # units that tell a leak
_FULLER = 3  # turns, as a row that was false spoils the image of another


class Whole(NamedTuple):
    """As many images as the change has rank.

    Attributes:
      c: (n, n) rows, in the coordinates of `Space.signals`.
      u: (n, n) images, one a row, in those of `Space.left`, to scale if there is one.
      closed_vanish: share of the surely closed units of each that vanish.
      open_vanish: share of the surely open ones that vanish.
      agreement: share of all units that vanish where they close, and only there.
      leaks: of the units that an image surely closes and another one surely opens,
        the share that do not vanish; the largest over the others. A combination of two
        rows leaks on all of them.
      ratios: of each row, on the units it should vanish at, over all.
      errors: standard deviation of each image before a polish, and how far rows that
        are as full as the true one would move it; over its norm.
      moved: by that polish, over its norm; 0 without.
      unexplained: share of the squared change in the images' span that is left.
      noise: root mean square of what is left of an entry.
      misfit: root mean square of the bias's change that is no sum of rows, over the
        noise that belongs there; 0 without a bias.
      is_open: (n, m) entries of the rows that are not taken for zero.
      surplus: zeros of each row beyond N - 1, less the units that its image closes at
        either end of training and that are none. Of signals in general position a row
        of N - 1 zeros may be had anywhere, so with a surplus no other one vanishes on
        as many units.
    """

    c: Float[np.ndarray, "n n"]
    u: Float[np.ndarray, "n n"]
    closed_vanish: Float[np.ndarray, " n"]
    open_vanish: Float[np.ndarray, " n"]
    agreement: Float[np.ndarray, " n"]
    leaks: Float[np.ndarray, " n"]
    ratios: Float[np.ndarray, " n"]
    errors: Float[np.ndarray, " n"]
    moved: Float[np.ndarray, " n"]
    unexplained: float
    noise: float
    misfit: float
    is_open: Bool[np.ndarray, "n m"]
    surplus: Int[np.ndarray, " n"]


class _Seen(NamedTuple):
    u: np.ndarray
    z: np.ndarray
    vanish: np.ndarray
    agreement: np.ndarray
    zeros: np.ndarray  # of the row, for certain


def _look(space: Space, c: np.ndarray) -> _Seen | None:
    """Images of the rows, and whether their units agree; None if rows depend."""
    if np.linalg.cond(c) > 1e9:
        return None
    u = np.linalg.inv(c).T
    if space.scale is not None:
        size = u @ space.scale
        size = np.where(np.abs(size) < 1e-12 * np.abs(size).max(), 1e-30, size)
        u = u / size[:, None]
    z = unit_rows.preactivations(space, u)
    if space.scale is None:
        # Nothing tells the sign but which side vanishes.
        size = np.abs(c @ space.signals)
        flip = np.where(np.sum(size * (z > 0), 1) < np.sum(size * (z < 0), 1), -1, 1)
        u = u * flip[:, None]
        z = unit_rows.preactivations(space, u)
    seen = np.zeros(len(c))
    for i, row in enumerate(np.abs(c @ space.signals)):
        closed = np.flatnonzero(z[i] < np.quantile(np.minimum(z[i], 0), 0.25))
        seen[i] = 1.5 * np.median(row[closed]) if len(closed) else np.max(row)
    vanish = unit_rows.vanishing(space, c, seen[:, None])
    zeros = unit_rows.vanishing(space, c, seen[:, None], noises=_ZERO) & (z < 0)
    return _Seen(u, z, vanish, np.mean(vanish == (z < 0), axis=1), zeros)


def _own_agreement(space: Space, c: np.ndarray) -> np.ndarray:
    """How well the pattern of each row is that of any image, whatever the others."""
    row = c @ space.signals
    inverse = unit_space.inverse_gates(space, np.zeros((0, len(c))))
    floor = _NEAR * np.median(np.abs(row), axis=1, keepdims=True)
    vanish = unit_rows.vanishing(space, c, floor)
    share = np.clip(np.mean(vanish, axis=1, keepdims=True), 1e-3, 1 - 1e-3)
    u = np.where(vanish, -1 / share, 1 / (1 - share)) @ space.gates.T @ inverse
    return np.mean(vanish == (unit_rows.preactivations(space, u) < 0), axis=1)


def _sharpened(space: Space, c: np.ndarray, last: _Seen, weighted: bool) -> np.ndarray:
    """Every row anew, from the units that its image closes for certain."""
    made, least = c.copy(), len(c) + unit_rows.EXTRA
    if weighted:
        closed = last.z < 0
        some = np.sum(closed, axis=1) >= least
        if some.any():
            rows = closed[some], c[some], last.u[some]
            made[some] = unit_rows.robust_rows(space, *rows)
        return made
    for i in range(len(c)):
        row = unit_rows.from_surest(space, last.z[i], share=_SURE)
        if row is not None:
            made[i] = row[0]
    # A false row spoils the image of another, whose own row was right: one that is the
    # pattern of an image stays.
    worse = _own_agreement(space, made) < _own_agreement(space, c) - _WORSE
    made[worse] = c[worse]
    return made


def _sure(z: np.ndarray, sign: int) -> np.ndarray:
    """The surest of the units on one side of zero, of every image."""
    side = sign * z
    sure = np.zeros(z.shape, bool)
    for i, pre in enumerate(side):
        below = np.flatnonzero(pre < 0)
        order = np.argsort(pre[below])
        sure[i, below[order[: int(_SURE * len(below))]]] = True
    return sure


def _sure_shares(z: np.ndarray, vanish: np.ndarray):
    """Shares of vanishing units among the surest on either side, and leaks."""
    closed, opened = _sure(z, 1), _sure(z, -1)
    counts = np.maximum(closed.sum(1), 1), np.maximum(opened.sum(1), 1)

    def leaks_of(closed, opened):
        both = closed.astype(float) @ opened.T
        return (closed & ~vanish).astype(float) @ opened.T / np.maximum(both, 1), both

    leaks, both = leaks_of(closed, opened)
    # Two images that open nearly the same units are told apart by the few others, sure
    # or not.
    near, few = leaks_of(z < 0, z > 0)
    leaks = np.where(both >= _FEW, leaks, np.where(few >= 2, near, 0.0))
    np.fill_diagonal(leaks, 0.0)
    return (
        np.sum(closed & vanish, axis=1) / counts[0],
        np.sum(opened & vanish, axis=1) / counts[1],
        np.max(leaks, axis=1, initial=0.0),
    )


def _masked_signals(x: np.ndarray, y: np.ndarray, is_open: np.ndarray) -> np.ndarray:
    """Least squares for D in Y = X D, with D zero off the mask."""
    gram, target = x.T @ x, x.T @ y
    n, m = target.shape
    size = np.sqrt(np.diag(gram))
    gram, target = gram / np.outer(size, size), target / size[:, None]
    # Images that depend leave a pivot of rounding: never quite 0.
    gram = gram + n * np.finfo(np.float64).eps * np.eye(n)
    d, (posv,) = np.zeros((n, m)), scipy.linalg.get_lapack_funcs(("posv",), (gram,))
    for unit, mask in enumerate(is_open.T):
        used = np.flatnonzero(mask)
        if not len(used):
            continue
        system, right = gram[np.ix_(used, used)], target[used, unit]
        _, solved, failed = posv(system, right)
        d[used, unit] = np.linalg.solve(system, right) if failed else solved
    return d / size[:, None]


def _leapt(x: np.ndarray, once: np.ndarray, twice: np.ndarray) -> np.ndarray:
    """Where two alternations point at."""
    step, bend = once - x, twice - 2 * once + x
    size = float(np.linalg.norm(step))
    # Steps of rounding may be alike to the last bit: they point nowhere.
    length = size / max(float(np.linalg.norm(bend)), size / _FARTHEST, 1e-300)
    return x + 2 * length * step + length**2 * bend


def _converged(x: np.ndarray, y: np.ndarray, is_open: np.ndarray) -> np.ndarray:
    """Alternates to the least squares in leaps, which save hundreds of alternations.

    Two alternations tell how fast the error falls, and where it would end: SQUAREM
    (Varadhan and Roland, 2008).
    """

    def alternated(x):
        d = _masked_signals(x, y, is_open)
        rest = float(np.sum((y - x @ d) ** 2))
        after = np.linalg.lstsq(d.T, y.T, rcond=None)[0].T
        return after / np.linalg.norm(after, axis=0), rest

    x, last = x / np.linalg.norm(x, axis=0), np.inf
    for _ in range(_LEAPS):
        once, rest = alternated(x)
        if not rest < (1 - _CONVERGED) * last:
            break
        last = rest
        twice, less = alternated(once)
        leap, most = alternated(_leapt(x, once, twice))
        # Back where it leapt too far.
        x = leap if most < less else twice
    return x


class _Joint(NamedTuple):
    c: np.ndarray
    is_open: np.ndarray
    unexplained: float
    noise: float


def _jointly(space: Space, c: np.ndarray, is_open: np.ndarray) -> _Joint:
    """Alternates masked least squares, leaving out units whose zeros are none."""
    y = space.values[:, None] * space.signals
    x = np.linalg.inv(c / space.values)
    d, used = _masked_signals(x, y, is_open), 0.0
    for _ in range(_ALTERNATIONS):
        rest = y - x @ d
        free = np.maximum(len(x) - np.sum(is_open, axis=0), 1)
        size = np.sqrt(np.sum(rest**2, axis=0) / free)
        counted = ~np.all(is_open, axis=0)
        middle = np.median(size[counted]) if counted.any() else 0.0
        # An entry that was taken for zero spoils its unit alone: it says no more.
        spoilt = counted & (size > _SPOILT * middle)
        if spoilt.sum() > 0 and spoilt.sum() < _MOST_SPOILT * counted.sum():
            is_open = is_open | spoilt[None]
        elif used and np.sum(rest**2) > (1 - _ROUGHLY) * used:
            break
        used = float(np.sum(rest**2))
        x = np.linalg.lstsq(d.T, y.T, rcond=None)[0].T
        d = _masked_signals(x, y, is_open)
    moved = None
    if np.linalg.cond(x) < 1 / np.finfo(np.float64).eps:
        moved = np.linalg.inv(x) * space.values
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    if (
        moved is not None
        and np.max(1 - np.abs(np.sum(moved * c, axis=1))) < _MOVED**2 / 2
    ):
        c = moved
    else:
        x = np.linalg.inv(c / space.values)
        d = _masked_signals(x, y, is_open)
    rest = float(np.sum((y - x @ d) ** 2))
    freedom = max(y.size - np.sum(is_open) - x.size + len(x), 1)
    return _Joint(
        c, is_open, rest / float(np.sum(y**2)), float(np.sqrt(rest / freedom))
    )


def _errors(
    space: Space, c: np.ndarray, closed: np.ndarray, u: np.ndarray, noise: float
) -> np.ndarray:
    r"""Standard deviation of each image over its norm.

    A null row moves by $\epsilon |c| M^{+1/2}$, M the Gram matrix of its units; images
    are the inverse of all rows; and noise outside their span adds to every pixel.
    """
    y = space.values[:, None] * space.signals
    white = c / space.values
    x = (space.values * u).T
    inside = np.zeros(len(c))
    sizes = np.sum(x**2, axis=0)
    scale = np.einsum("in,ni->i", white, x)  # C X = diag(scale)
    for k, row in enumerate(white):
        part = y[:, closed[k]]
        if not part.size:
            return np.full(len(c), np.inf)
        values, vectors = np.linalg.eigh(part @ part.T)
        # The least one is the row itself.
        spread = (vectors[:, 1:].T @ x) ** 2 / np.maximum(values[1:, None], 1e-300)
        # Of its own, where it is noisier than others.
        own = max(noise**2, float(np.mean((row @ part) ** 2) / np.sum(row**2)))
        # Of rows that all but depend on each other it is infinite.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            weight = own * sizes[k] * np.sum(row**2) / scale[k] ** 2
            inside += weight * np.sum(spread, axis=0)
    inside = np.where(np.isnan(inside), np.inf, inside)
    dual = np.linalg.norm(u, axis=1) ** 2
    outside = space.noise**2 * len(space.left) * dual
    return np.sqrt(inside + outside) / np.sqrt(np.maximum(sizes, 1e-300))


def _surplus(is_open: np.ndarray, closed: np.ndarray) -> np.ndarray:
    odd = np.sum(closed & is_open, axis=1)
    return np.sum(~is_open, axis=1) - (len(is_open) - 1) - odd


def complete(space: Space, c: Float[np.ndarray, "n n"]) -> Whole | None:
    """Refines a full set of rows and weighs it; None where its rows depend.

    One false row `a c_i + b c_j` in place of c_j leaves u_j right: the row that its
    units tell replaces it.

    Args:
      space: the coordinates.
      c: one row an image, in those of `Space.signals`.
    """
    best = None
    for k in range(_ROUNDS):
        seen = _look(space, c)
        if seen is None:
            break
        agreement = float(np.mean(seen.agreement))
        # The robust rows are the better ones, unless they come apart.
        if best is None or agreement > best[2] - (_SLACK if k > _LOOSE else 0.0):
            best = c, seen, agreement
        elif k > _LOOSE:
            break
        elif k < _LOOSE:
            continue  # the surest units would tell the same
        c = _sharpened(space, best[0], best[1], weighted=k >= _LOOSE)
    if best is None:
        return None
    c, seen, _ = best
    for _ in range(_FULLER):
        more = fuller_rows.fuller(space, c, seen.u, seen.z < 0)
        now = None if np.array_equal(more, c) else _look(space, more)
        if now is None:
            break
        c, seen = more, now
    is_open = ~seen.zeros
    enough = np.sum(~is_open, axis=1) >= len(c) + unit_rows.EXTRA
    # One that closes too little is free, so that it spoils none of the others.
    fitted = _jointly(space, c, is_open | ~enough[:, None])
    joint, unexplained, noise = fitted.c, fitted.unexplained, fitted.noise
    again = _look(space, joint)
    if again is None:
        again, joint = seen, c
    closed_vanish, open_vanish, leaks = _sure_shares(again.z, again.vanish)
    row = joint @ space.signals
    closed = ~fitted.is_open
    ratios = np.sqrt(
        np.sum(row**2 * closed, 1)
        / np.maximum(np.sum(closed, 1), 1)
        / np.mean(row**2, axis=1)
    )
    floor = max(noise, space.noise, 1e-300)
    errors = _errors(space, joint, closed, again.u, floor)
    # What of the bias fits no image may have moved the scale of any.
    rest = space.misfit * np.sqrt(len(space.alive))
    errors = np.hypot(errors, _SCALE * rest * np.linalg.norm(again.u, axis=1))
    errors += fuller_rows.unsettled(space, joint, again.u, again.z < 0)
    return Whole(
        joint, again.u, closed_vanish, open_vanish, again.agreement, leaks,
        np.where(enough, ratios, 1.0), np.where(enough, errors, np.inf),
        np.zeros(len(c)), unexplained, noise, space.misfit / (floor * space.coarse),
        fitted.is_open, _surplus(fitted.is_open, again.z < 0),
    )  # fmt: skip


def polish(space: Space, whole: Whole) -> Whole:
    """Goes on to the least squares, and once more with the zeros that it shows.

    Moves images and says how far; as it fits what is no sum of images too, it is no
    evidence for them, and all else stays as it was judged. Nothing moves where the fit
    comes apart, or where all images are as good as exact.

    Args:
      space: the coordinates.
      whole: by `complete`, all of whose rows are true.
    """
    if np.max(whole.errors) < _FINE:
        return whole
    y, c, is_open = space.values[:, None] * space.signals, whole.c, whole.is_open
    free = np.all(is_open, axis=1)[:, None] | np.all(is_open, axis=0)
    now, u = c, whole.u
    for _ in range(2):
        x = _converged(np.linalg.inv(now / space.values), y, is_open)
        if not np.linalg.cond(x) < 1 / np.finfo(np.float64).eps:
            return whole
        now = np.linalg.inv(x) * space.values
        now /= np.linalg.norm(now, axis=1, keepdims=True)
        seen = _look(space, now)
        if seen is None or np.max(1 - np.abs(np.sum(now * c, axis=1))) > _MOVED**2 / 2:
            return whole
        # Sharper rows tell more of their zeros; what was left free stays so.
        u, is_open = seen.u, ~seen.zeros | free
    before = whole.u * space.values
    size = np.maximum(np.linalg.norm(before, axis=1), 1e-300)
    moved = np.linalg.norm(u * space.values - before, axis=1) / size
    return whole._replace(c=now, u=u, moved=moved)


def share_explained(space: Space, u: Float[np.ndarray, "k n"]) -> float:
    """Share of the squared change that images explain, with their best signals.

    Args:
      space: the coordinates.
      u: of the images, in those of `Space.left`, any number of them.
    """
    if not len(u):
        return 0.0
    y = space.values[:, None] * space.signals
    d = _masked_signals((space.values * u).T, y, unit_rows.preactivations(space, u) > 0)
    rest = y - (space.values * u).T @ d
    return float(1 - np.sum(rest**2) / np.sum(y**2))
