"""Parts of a run that are files of its folder: made once, read back ever after."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ntk_privacy import resume
from ntk_privacy.reports.loops import Loops

__all__ = ["Pieces"]

Part = dict[str, Any]


class Pieces:
    """Makes parts of a run, or reads them back.

    NAME.npz holds a part that is arrays alone, and NAME.json its seconds; NAME.json any
    other, its seconds in it.

    Args:
      loops: of the run; each part has timers of its own.
      called: what the seconds of stages are called, where it is not the stage's name.
    """

    def __init__(self, loops: Loops, called: Mapping[str, str]) -> None:
        self._workdir, self._loops, self._called = loops.workdir, loops, called
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
        loops = self._loops.anew()
        part = make(loops.by_loop(self._called, name))
        if all(isinstance(value, np.ndarray) for value in part.values()):
            self._workdir.write_arrays(f"{name}.npz", **part)
            part = {}
        self._workdir.write_json(f"{name}.json", part | {"seconds": loops.seconds()})
        done = self._workdir.checkpoint_folder / name
        shutil.rmtree(done, ignore_errors=True)

    def seconds(self, *names: str) -> dict[str, float]:
        """Returns what was spent on all parts that were asked for, by name."""
        spent = self._seconds.values()
        return {
            name: sum((part.get(name, 0.0) for part in spent), 0.0) for name in names
        }
