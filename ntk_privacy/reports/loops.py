"""The loops of a run: they go on from their checkpoints, timed by name, each a bar."""

import pathlib
from collections.abc import Mapping

from ntk_privacy import resume
from ntk_privacy.reports.progress import Progress

__all__ = ["Loops"]


class Loops:
    """Makes the stages of a run, see `resume`, whose checkpoints are in one folder.

    Args:
      folder: of the checkpoints.
      *timers: told whether or not there is such a loop.
      seconds: between checkpoints.
      show: whether to show bars; None is where stderr is a terminal.

    Example:
      >>> import pathlib, tempfile
      >>> import jax
      >>> from ntk_privacy import data, training
      >>> from ntk_privacy.reports.loops import Loops
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=4, key=key)
      >>> loops = Loops(pathlib.Path(tempfile.mkdtemp()), show=False)
      >>> victim = training.victim.train(
      ...     digits.x_train,
      ...     digits.y_train,
      ...     key=key,
      ...     width=16,
      ...     stage=loops.stage("fit"),
      ... )
      >>> sorted(loops.seconds())
      ['compile', 'fit']
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *timers: str,
        seconds: float = 30.0,
        show: bool | None = None,
    ) -> None:
        self._folder, self._every, self._show = folder, seconds, show
        self._timers = {name: resume.Timer() for name in timers}

    def anew(self) -> "Loops":
        """Returns loops in the same folder, with timers of their own."""
        return Loops(self._folder, seconds=self._every, show=self._show)

    def timer(self, name: str) -> resume.Timer:
        """Returns the timer of loops that are told together."""
        return self._timers.setdefault(name, resume.Timer())

    def stage(
        self,
        name: str,
        folder: str = "",
        *,
        description: str | None = None,
        loss: str = "loss",
    ) -> resume.Stage:
        """Returns a stage.

        Args:
          name: of the timer.
          folder: of the checkpoints, in that of the run.
          description: on the bar; None is the name of the loop.
          loss: the metric that the bar shows.
        """
        place, timer = self._folder / folder, self.timer(name)

        def bar(loop: str, num_steps: int, done: int) -> Progress:
            told = {"description": description or loop, "first_step": done}
            return Progress(num_steps, loss=loss, show=self._show, **told)

        return resume.resumed(place, timer=timer, seconds=self._every, bar=bar)

    def by_loop(
        self, called: Mapping[str, str] | None = None, piece: str = ""
    ) -> resume.Stage:
        """Returns a stage that times each loop apart.

        Args:
          called: names of timers, where they are not those of loops.
          piece: of the run, whose folder its checkpoints have.
        """

        def run(name, start, go, num_steps):
            timer = called.get(name, name) if called else name
            told = f"{piece}, {name}" if piece else None
            return self.stage(timer, piece, description=told)(
                name, start, go, num_steps
            )

        return run

    def seconds(self) -> dict[str, float]:
        """Returns what every timer tells, and what all of them spent on compiling."""
        spent = {name: timer.run for name, timer in self._timers.items()}
        compiling = (timer.compile for timer in self._timers.values())
        return spent | {"compile": sum(compiling, 0.0)}
