"""What every run does: take its folder, write what it was asked, then what it found."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax

from experiments import _image_sets, _older
from experiments._groups import NOT_RESULTS, Folder, Source
from experiments._program import Asked, Program
from experiments._workdir import Workdir, versions


def opened(program: Program, asked: Asked[Any], later: Collection[str] = ()) -> Workdir:
    """Returns the folder of a run, which an earlier version may have begun.

    Args:
      program: that was asked.
      asked: of the run.
      later: flags that may differ when it goes on, apart from those of every run.

    Raises:
      UsageError: another run has it.
    """
    return Workdir(
        asked.group(Folder).workdir,
        asked.flat(),
        ignore=_image_sets.not_results(asked.group(Source), (*NOT_RESULTS, *later)),
        absent=functools.partial(_older.completed, program, asked),
        foreign=_older.foreign(program, asked.method),
        never_none=_older.never_none(program, asked.method),
    )


def finished(workdir: Workdir, results: dict[str, Any]) -> dict[str, Any]:
    """Writes results.json, last: its presence says that the run is whole.

    Args:
      workdir: of the run.
      results: what it found; versions and device are added.
    """
    told = versions()
    device = told.pop("device")
    workdir.write_json("results.json", results | {"versions": told, "device": device})
    return workdir.read_json("results.json")


def is_whole(folder: str, *files: str) -> bool:
    """Whether a folder holds results.

    Args:
      folder: of the run.
      *files: that belong to them.
    """
    names = ("results.json", *files)
    return all((pathlib.Path(folder) / name).exists() for name in names)


def told(
    program: Program, asked: Asked[Any], later: Collection[str] = (), *files: str
) -> dict[str, Any] | None:
    """Returns what a whole run holds that was asked the same; None of any other.

    Without a look at its images, which may be gone.

    Args:
      program: that was asked.
      asked: of the run.
      later: see `opened`; config.json has them as the results have.
      *files: without which it is not whole.

    Raises:
      UsageError: another run has the folder.
    """
    if not is_whole(asked.group(Folder).workdir, *files):
        return None
    with opened(program, asked, later) as workdir:
        stored, flat = workdir.read_json("config.json"), asked.flat()
        wanted = {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}
        if any(stored.get(name) != wanted[name] for name in later):
            return None
        return workdir.read_json("results.json")


@contextlib.contextmanager
def precision(name: str | None) -> Iterator[None]:
    """Computes in float64 where that is asked for.

    Args:
      name: float32, float64, or None for what is set.
    """
    double = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    with jax.enable_x64(name == "float64" or double):
        yield


def table(rows: list[tuple[str, str]]) -> str:
    """Returns a short table for the terminal.

    Args:
      rows: names and values.
    """
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)


def resumed(
    program: Program,
    asked: Asked[Any],
    work: Callable[[Workdir], dict[str, Any]],
    later: Collection[str] = (),
) -> dict[str, Any]:
    """Returns what results.json holds, of a run that is whole or of `work`.

    Args:
      program: that was asked.
      asked: of the run.
      work: given the folder, returns the results.
      later: see `opened`.

    Raises:
      UsageError: another run has the folder.
    """
    with opened(program, asked, later) as workdir:
        if workdir.is_done():
            return workdir.read_json("results.json")
        return finished(workdir, work(workdir))
