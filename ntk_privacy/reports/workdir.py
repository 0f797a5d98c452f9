"""The folder of one run: its config, its results, its checkpoints, one writer."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ntk_privacy.data import ArgumentError
from ntk_privacy.reports import files

__all__ = ["Workdir"]


# As `atomic.replacing` and `models.saved` name them.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # of another user, or no number of a process
    return True


class Workdir(contextlib.AbstractContextManager["Workdir"]):
    """One run's folder, held by one process at a time; see `close`.

    The first start writes config.json; later starts with the same config go on, and
    another is refused. Every file appears whole or not at all.

    Args:
      folder: made if it is missing.
      config: a dataclass instance or a dict, written to config.json.
      ignore: names of flags that do not change the results: they may differ.
      older: given a folder's flags, what today's code would have written.

    Raises:
      ArgumentError: another config or process has the folder, it is a file, or its name
        is empty, which would be the current folder.

    Example:
      >>> import tempfile
      >>> from ntk_privacy.reports.workdir import Workdir
      >>> with Workdir(tempfile.mkdtemp(), {"seed": 0}) as workdir:
      ...     workdir.write_json("results.json", {"loss": 0.5})
      ...     workdir.is_done(), workdir.read_json("config.json")
      (True, {'seed': 0})
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        config: object,
        *,
        ignore: Collection[str] = ("workdir",),
        older: Callable[[dict[str, Any]], dict[str, Any]] = lambda stored: stored,
    ) -> None:
        if not str(folder).strip():
            raise ArgumentError("workdir is empty: name a folder for the results.")
        self.folder = pathlib.Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ArgumentError(f"workdir={self.folder} is a file: give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        # The system drops the lock when the process ends, however it ends.
        self._lock = (self.folder / ".lock").open("w")
        try:
            self._take()
            if self.path("config.json").exists():
                self._agree(files.plain(config), ignore, older)
                self._sweep()
            else:
                self._begin(config)
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = "is in use by another process: wait for it, or give another"
            raise ArgumentError(f"workdir={self.folder} {told}.") from error

    def _sweep(self) -> None:
        """Removes what processes that were killed left half-written in this run."""
        for leftover in self.folder.rglob(".*.tmp"):
            below = leftover.relative_to(self.folder).parents[:-1]
            process = _TEMPORARY.fullmatch(leftover.name)
            # A folder of another run, such as a cell of a study, has a lock of its own.
            if (
                process is None
                or _lives(int(process[1]))
                or not leftover.is_file()
                or any((self.folder / each / ".lock").exists() for each in below)
            ):
                continue
            with contextlib.suppress(OSError):
                leftover.unlink()

    def _begin(self, config: object) -> None:
        for name in ("results.json", "arrays.npz", "checkpoints"):
            if self.path(name).exists():
                raise ArgumentError(
                    f"workdir={self.folder} holds {name} but no config.json, so it is "
                    "unknown what made it: give another workdir."
                )
        self.write_json("config.json", config)

    def _agree(
        self,
        config: dict[str, Any],
        ignore: Collection[str],
        older: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        stored, path = None, self.path("config.json")
        with contextlib.suppress(ValueError):
            stored = self.read_json("config.json")
        if not isinstance(stored, dict):
            raise ArgumentError(f"{path} is no config: give another workdir.")
        stored = files.plain(older(stored))

        def told(config: dict[str, Any], name: str) -> str:
            return json.dumps(config[name]) if name in config else "absent"

        differences = [
            f"{name}: {told(stored, name)} in the folder, {told(config, name)} asked"
            for name in dict.fromkeys((*config, *stored))
            if name not in ignore and told(stored, name) != told(config, name)
        ]
        if differences:
            raise ArgumentError(
                f"workdir={self.folder} belongs to another config ("
                + "; ".join(differences)
                + "): ask for the same, or give another workdir."
            )

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        """Where checkpoints are saved; not made before the first."""
        return self.folder / "checkpoints"

    def path(self, name: str) -> pathlib.Path:
        """Returns the path of a file."""
        return self.folder / name

    def is_done(self) -> bool:
        """True once results.json is there: write it last."""
        return self.path("results.json").exists()

    def earlier(self) -> dict[str, Any]:
        """Returns what results.json held when less was asked for; nothing without."""
        return self.read_json("results.json") if self.is_done() else {}

    def write_json(self, name: str, value: Any) -> None:
        """Writes strict JSON; NaN and infinities become "nan", "inf" and "-inf"."""
        files.write_json(self.path(name), value)

    def read_json(self, name: str) -> Any:
        """Returns what `write_json` wrote."""
        return files.read_json(self.path(name))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        files.write_string(self.path(name), text)

    def write_arrays(self, name: str, **arrays: Any) -> None:
        """Writes an .npz: equal arrays give equal bytes."""
        files.write_arrays(self.path(name), **arrays)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns what `write_arrays` wrote."""
        return files.read_arrays(self.path(name))

    def close(self) -> None:
        """Lets another process take the folder."""
        self._lock.close()

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()
