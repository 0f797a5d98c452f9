"""A search as a stage: all its losses, and whether it was lost."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float

from ntk_privacy._types import Callback
from ntk_privacy.resume import Stage

__all__ = ["Searched", "search"]

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Searched(Generic[Result]):
    """What a search ended with.

    Attributes:
      result: of the loop.
      losses: of every step, those before a kill too; NaN after that at which the search
        was lost.
      lost: one of them is not finite.
    """

    result: Result
    losses: Float[np.ndarray, " steps"]
    lost: bool


def search(
    stage: Stage,
    name: str,
    start: Any,
    go: Callable[[Any, int, Callback], Result],
    num_steps: int,
) -> Searched[Result]:
    """Runs a search; one that is told to stop has the losses of its steps alone.

    Args: see `resume.Stage`.
    """
    taken = 0

    def counted(state, done, callback):
        nonlocal taken
        taken = done

        def after_chunk(step, state, metrics):
            nonlocal taken
            taken = step
            return callback(step, state, metrics)

        return go(state, done, after_chunk)

    ran = stage(name, start, counted, num_steps)
    lost = not bool(np.isfinite(ran.losses[:taken]).all())
    return Searched(ran.result, ran.losses if lost else ran.losses[:taken], lost)
