"""A run under way: what is asked, its folder, and its loops."""

from typing import Any

from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.workdir import Workdir

from ._groups import Run
from ._program import Asked


class Job(Loops):
    """Runs the loops of a run: resumable, timed by name, each with a bar.

    Args:
      asked: of the run.
      workdir: its folder, which is held.
      *timers: told whether or not there is such a loop.
    """

    def __init__(self, asked: Asked[Any], workdir: Workdir, *timers: str) -> None:
        run = asked.group(Run)
        often = {"seconds": float(run.checkpoint_seconds), "show": run.progress}
        super().__init__(workdir, *timers, **often)
        self.asked, self.seed = asked, run.seed
