"""The loops of a run: they go on from their checkpoints, timed by name, each a bar."""

from collections.abc import Mapping

from ntk_privacy import resume
from ntk_privacy.reports.progress import Progress
from ntk_privacy.reports.workdir import Workdir

__all__ = ["Loops"]


class Loops:
    """Makes the stages of a run, see `resume`, whose checkpoints are in its folder.

    Args:
      workdir: of the run, which is held.
      *timers: told whether or not there is such a loop.
      seconds: between checkpoints.
      show: whether to show bars; None is where stderr is a terminal.

    Example:
      >>> import tempfile
      >>> from ntk_privacy.data import choice
      >>> from ntk_privacy.reconstruction import victims
      >>> from ntk_privacy.reports.loops import Loops
      >>> from ntk_privacy.reports.workdir import Workdir
      >>> digits, key = choice.TaskImages(num_train=4).load(seed=0)
      >>> network = victims.Trained(width=16)
      >>> with Workdir(tempfile.mkdtemp(), network) as workdir:
      ...     loops = Loops(workdir, show=False)
      ...     victim = network.train(digits, key, loops.stage("fit"))
      >>> sorted(loops.seconds())
      ['compile', 'fit']
    """

    def __init__(
        self,
        workdir: Workdir,
        *timers: str,
        seconds: float = 30.0,
        show: bool | None = None,
    ) -> None:
        self.workdir, self._every, self._show = workdir, seconds, show
        self._timers = {name: resume.Timer() for name in timers}

    def anew(self) -> "Loops":
        """Returns loops in the same folder, with timers of their own."""
        return Loops(self.workdir, seconds=self._every, show=self._show)

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
        place, timer = self.workdir.checkpoint_folder / folder, self.timer(name)

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
