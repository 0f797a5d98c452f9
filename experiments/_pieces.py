"""Parts of a run that are files of its folder: made once, read back ever after."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from experiments import _run
from experiments._workdir import Workdir
from ntk_privacy import resume
from ntk_privacy._types import Callback

State = TypeVar("State")
Result = TypeVar("Result")

Part = dict[str, Any]


class Pieces:
    """Makes parts of a run, or reads them back.

    NAME.npz holds a part that is arrays alone, and NAME.json its seconds; NAME.json any
    other, its seconds in it.

    Args:
      workdir: of the run.
      paced: its flags.
      called: what the seconds of stages are called, where it is not the stage's name.
    """

    def __init__(
        self, workdir: Workdir, paced: _run.Paced, called: Mapping[str, str]
    ) -> None:
        self._workdir, self._paced, self._called = workdir, paced, called
        self._seconds: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, make: Callable[[resume.Stage], Part]) -> Part:
        """Returns the part, of `make(stage)` if there is none yet."""
        arrays, told = f"{name}.npz", f"{name}.json"
        if not any(self._workdir.path(file).exists() for file in (arrays, told)):
            self._make(name, make)
        about: Part = {}
        # Older folders have arrays without their seconds.
        if self._workdir.path(told).exists():
            about = self._workdir.read_json(told)
        self._seconds[name] = about.get("seconds", {})
        if self._workdir.path(arrays).exists():
            return self._workdir.read_arrays(arrays)
        return about

    def _make(self, name: str, make: Callable[[resume.Stage], Part]) -> None:
        folder = self._workdir.checkpoint_folder / name
        timers: dict[str, resume.Timer] = {}

        def timed(
            name: str,
            start: State,
            go: Callable[[State, int, Callback], Result],
            num_steps: int,
        ) -> resume.Ran[Result]:
            timer = timers.setdefault(name, resume.Timer())
            told = f"{folder.name}, {name}"
            run = _run.stage(self._paced, folder, timer, description=told)
            return run(name, start, go, num_steps)

        part = make(timed)
        seconds = {"compile": sum(timer.compile for timer in timers.values())}
        for loop, timer in timers.items():
            entry = self._called.get(loop, loop)
            seconds[entry] = seconds.get(entry, 0.0) + timer.run
        if all(isinstance(value, np.ndarray) for value in part.values()):
            self._workdir.write_arrays(f"{name}.npz", **part)
            part = {}
        self._workdir.write_json(f"{name}.json", part | {"seconds": seconds})
        shutil.rmtree(folder, ignore_errors=True)

    def seconds(self, *names: str) -> dict[str, float]:
        """Returns what was spent on all parts that were asked for, by name."""
        spent = self._seconds.values()
        return {name: sum(part.get(name, 0.0) for part in spent) for name in names}
