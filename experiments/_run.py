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
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ntk_privacy import _versions, compilation_cache, data
from ntk_privacy.reports import files
from ntk_privacy.reports.workdir import Workdir

from . import _flags, _hosts, _listed
from ._groups import NOT_RESULTS, Run
from ._job import Job
from ._kinds import Results
from ._program import Asked


def opened(asked: Asked[Any]) -> Workdir:
    """Returns the folder of a run, which an earlier version may have begun.

    Raises:
      UsageError: another run has it.
    """
    ignore = (*NOT_RESULTS, *asked.kind.later(asked))
    for group in asked.groups:
        if hasattr(group, "not_results"):
            ignore = group.not_results(ignore)
    with _flags.usage(data.ArgumentError):
        return Workdir(
            asked.group(Run).workdir,
            asked.flat(),
            ignore=ignore,
            older=functools.partial(_of_today, asked),
        )


def _of_today(asked: Asked[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an older folder's flags as today's code would have written them.

    What it lacks is the preset's, or metadata `before`; names of other methods mean
    nothing; none is "not given" where a flag cannot be none. Values that metadata
    `means` takes for the same are the same.
    """
    program, method, flat = asked.program, asked.method, asked.flat()
    try:
        found = program.today({program.flag: method.name, **stored})
    except ValueError:  # of no method of this binary: it will be refused
        return dict(stored)
    entries = {e.name: e for e in _listed.entries(program, method)}
    every = {name for one in program.methods.values() for name in program.names(one)}
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
    """What results.json holds: an entry that it lacks is a fault of the file.

    Raises:
      ValueError: it is damaged, or lacks what is looked up.
    """

    def __init__(self, path: pathlib.Path) -> None:
        found, self._path = files.read_json(path), path
        if not isinstance(found, dict):
            told = f"{path} holds no results: delete it to make it again."
            raise ValueError(told)  # noqa: TRY004  # the file is at fault
        super().__init__(found)

    def __missing__(self, name: str) -> Any:
        """Raises ValueError."""
        raise ValueError(f"{self._path} lacks {name!r}: delete it to make it again.")


def run(asked: Asked[Any]) -> Results:
    """Runs one configuration, or a grid of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, a loss is not finite, or the work cannot go on.
    """
    with _flags.usage(data.ArgumentError):
        cells = asked.kind.grid(asked, run)
        if cells is not None:
            return cells
        with precision(asked.flat().get("precision")):
            return _resumed(asked)


def _resumed(asked: Asked[Any]) -> Results:
    """Returns the results of a run that is whole, or of the work."""
    folder, kind = pathlib.Path(asked.group(Run).workdir), asked.kind
    names, loaded = ("results.json", *kind.files), None
    if not all((folder / name).exists() for name in names):
        loaded = kind.load(asked)
    with opened(asked) as workdir:
        if workdir.is_done():
            stored = workdir.read_json("config.json")
            earlier = Stored(workdir.path("results.json"))
            is_there = all(workdir.path(name).exists() for name in names)
            if is_there and kind.is_whole(asked, stored, earlier):
                kind.look(asked, workdir)
                return earlier
            asked = kind.with_earlier(asked, stored, earlier)
        loaded = kind.load(asked) if loaded is None else loaded
        results, told = kind.work(Job(asked, workdir, *kind.timers), loaded), versions()
        results |= {"device": told.pop("device"), "versions": told}
        workdir.write_json("results.json", results)
        if kind.later(asked):
            # After them: until then it is of the results that there are.
            workdir.write_json("config.json", asked.flat())
        if kind.tidy:
            shutil.rmtree(workdir.checkpoint_folder, ignore_errors=True)
        return workdir.read_json("results.json")


def main(asked: Asked[Any]) -> None:
    """Runs, and prints what was found."""
    if asked.group(Run).compilation_cache:
        compilation_cache.enable()
    with _hosts.own(asked) as mine:
        print(asked.kind.told(mine, run(mine)))


def placed(asked: Asked[Any], text: str, files: str) -> str:
    """Returns a text, and where files are besides results.json."""
    return f"{text}\n{files} and results.json are in {asked.group(Run).workdir}"


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


@contextlib.contextmanager
def precision(name: str | None) -> Iterator[None]:
    """Computes in float64 where that is asked for, or set; None is what is set."""
    double = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    with _versions.enable_x64(name == "float64" or double):
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
