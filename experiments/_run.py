"""What every run does: take its folder, run loops, write what it was asked and found.

A start of a finished run returns what results.json holds, without a look at its images,
which may be gone. Folders that earlier versions wrote are read by their presets.
"""

import contextlib
import functools
import importlib.metadata
import pathlib
import platform
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from experiments import _flags
from experiments._groups import NOT_RESULTS, Run, Source
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy import resume
from ntk_privacy.reports import files
from ntk_privacy.reports.progress import Progress

Loaded = TypeVar("Loaded")


def opened(asked: Asked[Any], later: Collection[str] = ()) -> Workdir:
    """Returns the folder of a run, which an earlier version may have begun.

    Args:
      asked: of the run.
      later: flags that may differ when it goes on, apart from those of every run.

    Raises:
      UsageError: another run has it.
    """
    return Workdir(
        asked.group(Run).workdir,
        asked.flat(),
        ignore=asked.group(Source).not_results((*NOT_RESULTS, *later)),
        older=functools.partial(_of_today, asked),
    )


def _of_today(asked: Asked[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an older folder's flags as today's code would have written them.

    What it lacks is the preset's, or metadata `before`; names of other methods mean
    nothing; none is "not given" where a flag cannot be none. Values that metadata
    `means` takes for the same are the same.
    """
    program, method, flat = asked.program, asked.method, asked.flat()
    told = {program.flag, program.former} & set(stored)
    try:
        found = program.today(stored if told else {program.flag: method.name, **stored})
    except ValueError:  # of no method of this binary: it will be refused
        return dict(stored)
    entries = {e.name: e for e in program.entries(method)}
    every = {name for one in program.methods.values() for name in program.names(one)}
    every |= {e.name for kind in program.beside.values() for e in _flags.entries(kind)}
    kept = {}
    for name, value in found.items():
        if name not in entries and name in every:
            continue
        entry = entries.get(name)
        if value is None and entry and not _flags.allows_none(entry.hint):
            continue
        kept[name] = tuple(value) if isinstance(value, list) else value
        means = entry.field.metadata.get("means") if entry else None
        if means and means(value) == means(flat[name]):
            kept[name] = flat[name]
    names = program.names(method)
    given = {e.name: e.field.metadata.get("before") for e in entries.values()}
    given = {k: v for k, v in given.items() if v is not None and k not in kept}
    given |= {name: value for name, value in kept.items() if name in names}
    try:
        absent = program.asked(method.name, asked.preset, **given).flat()
    except ValueError:  # of another method: it will be refused
        absent = flat
    return absent | kept


class Stored(dict[str, Any]):
    """What results.json held: an entry that it lacks is a fault of the file."""

    path = pathlib.Path("results.json")

    @classmethod
    def of(cls, path: pathlib.Path) -> "Stored":
        """Reads a file; raises ValueError if it is damaged or holds no entries."""
        found = files.read_json(path)
        if not isinstance(found, dict):
            told = f"{path} holds no results: delete it to make it again."
            raise ValueError(told)  # noqa: TRY004  # the file is at fault
        stored = cls(found)
        stored.path = path
        return stored

    def __missing__(self, name: str) -> Any:
        """Raises ValueError."""
        raise ValueError(f"{self.path} lacks {name!r}: delete it to make it again.")


def resumed(
    asked: Asked[Any],
    load: Callable[[Asked[Any]], Loaded],
    work: Callable[[Asked[Any], Workdir, Loaded], dict[str, Any]],
    *,
    later: Collection[str] = (),
    files: Collection[str] = (),
    whole: Callable[[Asked[Any], Workdir], bool] | None = None,
    look: Callable[[Asked[Any], Workdir], None] | None = None,
    tidy: bool = False,
) -> dict[str, Any]:
    """Returns what results.json holds, of a run that is whole or of `work`.

    Args:
      asked: of the run.
      load: returns what the work is done on: before the folder is touched, so that
        images that cannot be had leave nothing behind.
      work: `(asked, workdir, loaded)` returns the results.
      later: flags that may differ when a run goes on: see `opened`.
      files: without which a run is not whole.
      whole: whether a folder with these files holds all that is asked; of none, it was
        asked for the same values of `later`.
      look: what a start of a whole run still does, such as a check of its model.
      tidy: whether to remove the checkpoints of a whole run.

    Raises:
      UsageError: another run has the folder, or see `load`.
    """
    folder = pathlib.Path(asked.group(Run).workdir)
    names, loaded = ("results.json", *files), None
    is_there = all((folder / name).exists() for name in names)
    if not is_there:
        loaded = load(asked)
    with opened(asked, later) as workdir:
        is_there = all(workdir.path(name).exists() for name in names)
        asks_no_more = whole or functools.partial(_is_same, later=later)
        if is_there and asks_no_more(asked, workdir):
            if look:
                look(asked, workdir)
            return Stored.of(workdir.path("results.json"))
        results = work(asked, workdir, load(asked) if loaded is None else loaded)
        told = versions()
        results |= {"device": told.pop("device"), "versions": told}
        workdir.write_json("results.json", results)
        if later and not whole:
            # After them: until then it is of the results that there are.
            workdir.write_json("config.json", asked.flat())
        if tidy:
            shutil.rmtree(workdir.checkpoint_folder, ignore_errors=True)
        return workdir.read_json("results.json")


def _is_same(asked: Asked[Any], workdir: Workdir, later: Collection[str]) -> bool:
    stored, flat = workdir.read_json("config.json"), asked.flat()
    wanted = {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}
    return all(stored.get(name) == wanted[name] for name in later if name in flat)


def versions() -> dict[str, str]:
    """Returns what the figures depend on: software versions and the device."""
    device = jax.devices()[0]
    told = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "ntk_privacy"):
        try:
            told[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            told[name] = "not installed"
    return told | {"device": f"{device.platform}: {device.device_kind}"}


@runtime_checkable
class Paced(Protocol):
    """The flags of every binary that runs for long: see `_groups.Run`."""

    @property
    def progress(self) -> bool: ...
    @property
    def checkpoint_seconds(self) -> float: ...


def stage(
    paced: Paced,
    folder: pathlib.Path,
    timer: resume.Timer,
    *,
    description: str | None = None,
    loss: str = "loss",
) -> resume.Stage:
    """Returns what runs the loops of a binary: resumable, timed, with a bar.

    Args:
      paced: its flags.
      folder: of the checkpoints.
      timer: of these loops.
      description: on the bar; None is the name of the loop.
      loss: the metric that the bar shows.
    """

    def bar(name: str, num_steps: int, done: int) -> Progress:
        told, show = description or name, paced.progress
        return Progress(
            num_steps, description=told, first_step=done, loss=loss, show=show
        )

    seconds = float(paced.checkpoint_seconds)
    return resume.resumed(folder, timer=timer, seconds=seconds, bar=bar)


@contextlib.contextmanager
def precision(name: str | None) -> Iterator[None]:
    """Computes in float64 where that is asked for, or set; None is what is set."""
    double = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    with jax.enable_x64(name == "float64" or double):
        yield


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Yields a list that holds, at the end, every warning's text once.

    The warnings themselves are raised again where it ends, so that filters that were
    set outside, and the terminal, see them.
    """
    told: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield told
    finally:
        told += dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
        for one in caught:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def table(rows: list[tuple[str, str]]) -> str:
    """Returns a short table for the terminal, of names and values."""
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)
