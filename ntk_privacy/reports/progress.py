"""A progress bar with loss and time left, as a callback of the library's loops."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tqdm

from ntk_privacy._types import AtMost

__all__ = ["Progress"]

_FORMAT = (
    "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
)
# No share and no time left: the loop ends sooner, nobody knows when.
_UNKNOWN = "{desc} {n_fmt} steps, at most {total_fmt}{postfix}"


class Progress:
    """Shows steps done, loss and time left on stderr; a context manager.

    Call it as `(done, state, metrics)`; it never stops the loop.

    Args:
      num_steps: steps in all; of `AtMost` neither share nor time left is shown.
      description: what is running, a word or two.
      first_step: steps already done when the run goes on from a checkpoint: they enter
        the count but not the speed.
      loss: the entry of `metrics` to show, its last value; left out if there is none.
      show: True or False, or None for "if stderr is a terminal".

    Example:
      >>> from ntk_privacy.reports.progress import Progress
      >>> with Progress(10, description="attack", show=False) as progress:
      ...     progress(5, None, {"loss": 0.1})
    """

    def __init__(
        self,
        num_steps: int,
        *,
        description: str,
        first_step: int = 0,
        loss: str = "loss",
        show: bool | None = None,
    ) -> None:
        on_terminal = sys.stderr.isatty()
        self._loss = loss
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=first_step,
            desc=description,
            disable=not (on_terminal if show is None else show),
            # A log file gets a line now and then, not ten a second.
            mininterval=0.2 if on_terminal else 30.0,
            file=sys.stderr,
            bar_format=_UNKNOWN if isinstance(num_steps, AtMost) else _FORMAT,
        )
        # Until the first steps are done, nearly all of the time is the compiler's.
        self._bar.set_postfix_str("compiling")

    def __call__(self, done: int, state: Any, metrics: Mapping[str, Any]) -> None:
        """`done` steps are done; metrics hold one value per step of the last chunk."""
        del state
        if self._bar.disable:
            return
        self._bar.set_postfix_str("", refresh=False)
        if self._loss in metrics:
            last = np.asarray(metrics[self._loss]).reshape(-1)[-1]
            self._bar.set_postfix_str(f"{self._loss} {last:.3g}", refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Draws the last state and leaves the line.

        A loop that ended before its last step, as one that has converged, has no steps
        left; one that an exception ends has.
        """
        if sys.exc_info()[0] is None and self._bar.n:
            self._bar.total = self._bar.n
            self._bar.bar_format = _FORMAT
            self._bar.refresh()
        self._bar.close()

    def __enter__(self) -> "Progress":
        """Returns itself; the bar is drawn already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Draws the last state and leaves the line."""
        self.close()  # within the handling of an exception, if there is one
