"""A run under way: what is asked, its folder, and its loops."""

from collections.abc import Mapping
from typing import Any

from experiments._groups import Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy import resume
from ntk_privacy.reports.progress import Progress


class Job:
    """Runs the loops of a run: resumable, timed by name, each with a bar.

    Args:
      asked: of the run.
      workdir: its folder, which is held.
      *timers: told whether or not there is such a loop.
    """

    def __init__(self, asked: Asked[Any], workdir: Workdir, *timers: str) -> None:
        self.asked, self.workdir, self.seed = asked, workdir, asked.group(Run).seed
        self._timers = {name: resume.Timer() for name in timers}

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
        run, place = self.asked.group(Run), self.workdir.checkpoint_folder / folder

        def bar(loop: str, num_steps: int, done: int) -> Progress:
            told = {"description": description or loop, "first_step": done}
            return Progress(num_steps, loss=loss, show=run.progress, **told)

        seconds, timer = float(run.checkpoint_seconds), self.timer(name)
        return resume.resumed(place, timer=timer, seconds=seconds, bar=bar)

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
        return spent | {"compile": sum(t.compile for t in self._timers.values())}
