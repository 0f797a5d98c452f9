"""Means over runs, and their spread as every table here gives it.

One convention for all: "+-" is the sample deviation, over n - 1, which does not shrink
where runs are few; a single run has none. The papers print the population deviation, at
two runs a factor of 1.41 below it, at five 1.12.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from ntk_privacy import _checks

__all__ = ["Rate", "in_percent", "mean_and_deviation"]


class Rate(NamedTuple):
    """A mean over runs and its sample deviation, in the units of the runs.

    Attributes:
      mean: over the runs.
      deviation: the root of the summed squares over n - 1; None of a single run.
    """

    mean: float
    deviation: float | None

    def scaled(self, factor: _checks.Number) -> "Rate":
        """Returns the same in other units, such as per cent.

        Args:
          factor: positive.
        """
        wide = None if self.deviation is None else factor * self.deviation
        return Rate(factor * self.mean, wide)

    def __format__(self, spec: str) -> str:
        """Returns "mean +- deviation", or the mean alone of a single run."""
        told = format(self.mean, spec)
        if self.deviation is None:
            return told
        return f"{told} +- {format(self.deviation, spec)}"


def mean_and_deviation(
    values: Sequence[_checks.Number] | Shaped[np.ndarray, " n"],
) -> Rate:
    """Returns the mean and the sample deviation, of n - 1.

    Args:
      values: one per run, in any unit.

    Raises:
      ValueError: there are none.
    """
    if len(values) == 0:
        raise ValueError("values is empty: give the result of at least one run.")
    runs = np.asarray(values, np.float64)
    deviation = float(runs.std(ddof=1)) if len(runs) > 1 else None
    return Rate(float(runs.mean()), deviation)


def in_percent(
    values: Sequence[_checks.Number] | Shaped[np.ndarray, " n"],
    *,
    digits: int = 1,
) -> str:
    """Returns shares as tables show them: "37.4 +- 1.2", or "37.4" of a single run.

    Args:
      values: one share per run, in [0, 1].
      digits: after the point.

    Raises:
      ValueError: there are none.
    """
    return f"{mean_and_deviation(values).scaled(100):.{digits}f}"
