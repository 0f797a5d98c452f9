"""What the figures of a study say of a claim, at a stated confidence.

A claim has parts, each a number per draw that ought to lie above or below a bound. The
draws are independent, so the mean of such a number has Student's interval; a share of
trials has that of Clopper and Pearson (Biometrika, 1934).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from ntk_privacy import _checks

__all__ = [
    "CONFIDENCE",
    "Part",
    "Word",
    "above",
    "below",
    "of_parts",
    "share_above",
    "share_below",
    "spearman",
]

CONFIDENCE = 0.95
"""Of each part, on the side where its bound is."""

Word = Literal["agrees", "undecided", "differs", "refuted", "none yet"]


class Part(NamedTuple):
    """One part of a claim.

    Attributes:
      told: the part, as a sentence.
      value: mean over the draws, or the share, of what is bounded.
      low, high: each end is passed with a probability of 5%.
      side: where the value ought to be of the bound, "above" or "below".
      bound: in the unit of the value.
    """

    told: str
    value: float
    low: float
    high: float
    side: Literal["above", "below"]
    bound: float

    @property
    def holds(self) -> bool | None:
        """Whether the interval is on the right side; None if the bound is in it."""
        if self.side == "above":
            right, wrong = self.low > self.bound, self.high < self.bound
        else:
            right, wrong = self.high < self.bound, self.low > self.bound
        return True if right else False if wrong else None


def _interval(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -math.inf, math.inf
    width = float(values.std(ddof=1)) / math.sqrt(len(values))
    width *= float(stats.t.ppf(CONFIDENCE, len(values) - 1))
    return mean, mean - width, mean + width


def _drawn(values: Sequence[float] | Float[np.ndarray, " n"]) -> np.ndarray:
    drawn = np.asarray(values, np.float64)
    _checks.at_least(1, num_draws=len(drawn))
    _checks.finite_data(values=drawn)
    return drawn


def above(
    told: str, values: Sequence[float] | Float[np.ndarray, " n"], bound: float = 0.0
) -> Part:
    """Returns the part of a claim that says that values lie above a bound.

    Args:
      told: the part, as a sentence.
      values: one per draw, such as the mean of paired differences.
      bound: in their unit.

    Raises:
      ValueError: there are no values, or one is not finite.

    Example:
      >>> from ntk_privacy.studies import verdict
      >>> verdict.above("It grows.", [1.0, 1.1, 0.9]).holds
      True
      >>> verdict.above("It grows.", [1.0, -1.1, 0.9]).holds is None
      True
    """
    return Part(told, *_interval(_drawn(values)), "above", bound)


def below(
    told: str, values: Sequence[float] | Float[np.ndarray, " n"], bound: float = 0.0
) -> Part:
    """Returns the part of a claim that says that values lie below a bound.

    Args:
      told: see `above`.
      values: see `above`.
      bound: see `above`.

    Raises:
      ValueError: see `above`.

    Example:
      >>> from ntk_privacy.studies import verdict
      >>> verdict.below("It falls.", [-1.0, -1.1, -0.9]).holds
      True
    """
    return Part(told, *_interval(_drawn(values)), "below", bound)


def _share(successes: int, trials: int) -> tuple[float, float, float]:
    _checks.at_least(1, trials=trials)
    _checks.in_range(0, trials, successes=successes)
    failures, tail = trials - successes, 1 - CONFIDENCE
    low = stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
    return successes / trials, float(low), float(high)


def share_above(told: str, successes: int, trials: int, bound: float) -> Part:
    """Returns the part of a claim that says that a share lies above a bound.

    Args:
      told: see `above`.
      successes: among the trials.
      trials: independent ones.
      bound: in [0, 1].

    Raises:
      ValueError: a number is out of range.

    Example:
      >>> from ntk_privacy.studies import verdict
      >>> verdict.share_above("Most succeed.", 15, 15, 0.6).holds
      True
      >>> round(verdict.share_above("Most succeed.", 15, 15, 0.6).low, 3)
      0.819
    """
    return Part(told, *_share(successes, trials), "above", bound)


def share_below(told: str, successes: int, trials: int, bound: float) -> Part:
    """Returns the part of a claim that says that a share lies below a bound.

    Args:
      told: see `above`.
      successes: see `share_above`.
      trials: see `share_above`.
      bound: see `share_above`.

    Raises:
      ValueError: a number is out of range.

    Example:
      >>> from ntk_privacy.studies import verdict
      >>> verdict.share_below("It is rare.", 1, 100, 0.2).holds
      True
      >>> verdict.share_below("It is rare.", 1, 4, 0.5).holds is None
      True
    """
    return Part(told, *_share(successes, trials), "below", bound)


def spearman(
    one: Sequence[float] | Float[np.ndarray, " n"],
    other: Sequence[float] | Float[np.ndarray, " n"],
) -> float:
    """Returns the correlation of the ranks of two lists, ties in their middle.

    Args:
      one: numbers.
      other: as many.

    Raises:
      ValueError: lengths differ, or all numbers of a list are equal.

    Example:
      >>> from ntk_privacy.studies import verdict
      >>> round(verdict.spearman([1.0, 2.0, 5.0], [3.0, 4.0, 40.0]), 6)
      1.0
    """
    _checks.same_length(one=one, other=other)
    ranks = [stats.rankdata(np.asarray(each, np.float64)) for each in (one, other)]
    if any(np.ptp(each) == 0 for each in ranks):
        raise ValueError("all numbers of a list are equal: their ranks say nothing.")
    return float(np.corrcoef(*ranks)[0, 1])


def of_parts(parts: Sequence[Part]) -> Word:
    """Returns what the parts say together.

    Args:
      parts: of one claim; none where figures are missing.

    Returns:
      "agrees" if every part holds. Where parts are contradicted at this confidence,
      "differs" if others hold and "refuted" if none does. "undecided" where no part is
      contradicted and not every one holds. "none yet" without parts.

    Example:
      >>> from ntk_privacy.studies import verdict
      >>> verdict.of_parts([verdict.below("It falls.", [1.0, 1.1, 0.9])])
      'refuted'
    """
    if not parts:
        return "none yet"
    found = [part.holds for part in parts]
    if all(found):
        return "agrees"
    if False not in found:
        return "undecided"
    return "differs" if True in found else "refuted"
