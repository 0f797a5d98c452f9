r"""Is there a row that vanishes on as many of the units that its image closes?

Where units are few, a combination $d_i + t d_k$ may pass for the row of image i: it
loses the zeros of $d_i$ that $d_k$ does not share, which may be one or two, and wins
one wherever $d_i = -t d_k$, for a unit that i opened for a while. The true row vanishes
on most. Rivals are counted on the units that $u_i$ closes, which is right as long as no
other row holds $d_i$.
"""

import numpy as np
from jaxtyping import Bool, Float

from ntk_privacy.reconstruction import unit_rows
from ntk_privacy.reconstruction.unit_space import Space

__all__ = ["fuller", "unsettled"]

_MANY = 16  # zeros that another row does not share: no combination loses so many
_TURNS = 24  # of reweighting
_LAST = 1e-4  # of the mean size: less counts as this, in the last turn
_ZERO = 1e-3  # of it: a zero, for the null row that follows


def _vanish(space: Space, c: np.ndarray, closed: np.ndarray) -> Bool[np.ndarray, "k m"]:
    """Units that vanish, for the noise that is seen where the image closes."""
    sizes = np.where(closed, np.abs(c @ space.signals), np.nan)
    some = np.any(closed, axis=1)
    floor = np.zeros((len(c), 1))
    floor[some] = 1.5 * np.nanquantile(sizes[some], 0.25, axis=1, keepdims=True)
    return unit_rows.vanishing(space, c, floor)


def _least_sizes(
    space: Space, u: Float[np.ndarray, " n"], closed: Bool[np.ndarray, " m"]
) -> Float[np.ndarray, " n"] | None:
    """The row of least sum of sizes on closed units, of those with c . u = 1.

    A sum of sizes is convex, and a few units that are no zeros hardly move the least:
    least squares, reweighted, and the null row of what is zero then; None if too
    little is.
    """
    rows, v = space.rows[:, closed], space.mix @ u
    weight = sizes = np.ones(rows.shape[1])
    for last in np.geomspace(1, _LAST, _TURNS):
        gram = (rows * weight) @ rows.T
        gram += np.finfo(np.float64).eps * np.trace(gram) * np.eye(len(gram))
        c = np.linalg.solve(gram, v)
        sizes = np.abs(c @ rows) / np.mean(np.abs(c @ space.rows))
        weight = 1 / np.maximum(sizes, last)
    zero = np.flatnonzero(closed)[sizes < _ZERO]
    if len(zero) < len(u) + unit_rows.EXTRA:
        return None
    c = unit_rows.null_row(space, zero)[0]
    return c / (c @ u) if c @ u else None


def _rivals(space: Space, c, u, closed):
    """Rivals of every row i that others may be mixed into unseen, with c . u = 1.

    Yields i, the number of its zeros, rows that vanish on a unit more where i closes,
    and their numbers of zeros.
    """
    c = c / np.sum(c * u, axis=1, keepdims=True)
    rows, vanish = c @ space.signals, _vanish(space, c, closed)
    told = (vanish & closed).astype(float) @ ~vanish.T
    np.fill_diagonal(told, np.inf)
    for i, few in enumerate(told < _MANY):
        odd = closed[i] & ~vanish[i]
        if not (few.any() and odd.any()):
            continue
        share = rows[i, odd] / np.where(vanish[few][:, odd], np.inf, rows[few][:, odd])
        made = (c[i] - share[..., None] * c[few][:, None])[share != 0]
        least = _least_sizes(space, u[i], closed[i])
        if least is not None:
            made = np.concatenate([made, least[None]])
        shut = np.broadcast_to(closed[i], (len(made), len(odd)))
        zeros = _vanish(space, made, shut) & shut
        new = np.any(zeros & odd, axis=1)
        yield i, np.sum(vanish[i] & closed[i]), made[new], np.sum(zeros[new], axis=1)


def fuller(
    space: Space,
    c: Float[np.ndarray, "n n"],
    u: Float[np.ndarray, "n n"],
    closed: Bool[np.ndarray, "n m"],
) -> Float[np.ndarray, "n n"]:
    """Returns the rows, each that has a fuller rival replaced by it.

    Args:
      space: the coordinates.
      c: rows of a whole set.
      u: their images.
      closed: units that each image closes.
    """
    made = c.copy()
    for i, zeros, rivals, theirs in _rivals(space, c, u, closed):
        if np.max(theirs, initial=0) > zeros:
            best = rivals[np.argmax(theirs)]
            made[i] = best / np.linalg.norm(best)
    return made


def unsettled(
    space: Space,
    c: Float[np.ndarray, "n n"],
    u: Float[np.ndarray, "n n"],
    closed: Bool[np.ndarray, "n m"],
) -> Float[np.ndarray, " n"]:
    r"""Returns how far rivals that are as full move each image, over its norm.

    A row $d_i + t d_k$ in the place of $d_i$ moves image k by $t x_i$, no other one;
    several rows may have rivals that move one image, so the farthest of each add up.

    Args:
      space: the coordinates.
      c: rows of a whole set.
      u: their images.
      closed: units that each image closes.
    """
    norms, far = np.linalg.norm(u * space.values, axis=1), np.zeros(len(c))
    for i, zeros, rivals, theirs in _rivals(space, c, u, closed):
        shares = np.abs(rivals[theirs >= zeros] @ u.T) * norms[i] / norms
        shares[:, i] = 0.0
        far += np.max(shares, axis=0, initial=0.0)
    return far
