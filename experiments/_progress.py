"""A progress bar with loss and time left, as a callback of the library's loops."""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tqdm

from ntk_privacy import resume

_FORMAT = (
    "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
)


class Progress:
    """Shows steps done, loss and time left on stderr; a context manager.

    Call it as `(done, state, metrics)`; it never stops the loop.

    Args:
      num_steps: steps in all.
      description: what is running, a word or two.
      first_step: steps already done when the run goes on from a checkpoint: they enter
        the count but not the speed.
      loss: the entry of `metrics` to show, its last value; left out if there is none.
      show: True or False, or None for "if stderr is a terminal".
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
            bar_format=_FORMAT,
        )

    def __call__(self, done: int, state: Any, metrics: Mapping[str, Any]) -> None:
        """`done` steps are done; metrics hold one value per step of the last chunk."""
        del state
        if self._bar.disable:
            return
        if self._loss in metrics:
            last = np.asarray(metrics[self._loss]).reshape(-1)[-1]
            self._bar.set_postfix_str(f"{self._loss} {last:.3g}", refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Draws the last state and leaves the line."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        """Returns itself; the bar is drawn already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Draws the last state and leaves the line."""
        self.close()


class Paced(Protocol):
    """The flags of every binary that runs for long."""

    @property
    def progress(self) -> bool:
        """Show a bar even if stderr is no terminal."""
        ...

    @property
    def checkpoint_seconds(self) -> float:
        """Time between checkpoints."""
        ...


def stage(
    config: Paced,
    folder: pathlib.Path,
    timer: resume.Timer,
    *,
    description: str | None = None,
    loss: str = "loss",
) -> resume.Stage:
    """Returns what runs the loops of a binary: resumable, timed, with a bar.

    Args:
      config: its flags.
      folder: of the checkpoints.
      timer: of these loops.
      description: on the bar; None is the name of the loop.
      loss: the metric that the bar shows.
    """

    def bar(name, num_steps, done):
        return Progress(
            num_steps,
            description=description or name,
            first_step=done,
            loss=loss,
            show=config.progress,
        )

    return resume.resumed(
        folder, timer=timer, seconds=float(config.checkpoint_seconds), bar=bar
    )
