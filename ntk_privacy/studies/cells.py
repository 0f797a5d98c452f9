"""A grid in a folder: every cell is made once, by whoever claims it first.

Any number of processes, on hosts that share the folder, may work on it. A claim is a
lock that the operating system frees when its process ends, however it ends; the next
one goes on from the cell's checkpoints. What is finished is read back.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from ntk_privacy.data import ArgumentError
from ntk_privacy.reports import files
from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.workdir import Workdir
from ntk_privacy.studies import page
from ntk_privacy.studies.item import Cell, Figures, Item, Scale

__all__ = ["make"]

_WAIT = 2.0
# Seconds between two writings of the tables, besides the first and the last.
_OFTEN = 20.0


def _untold(line: str) -> None:
    del line


def make(
    item: Item[Any],
    scale: Scale,
    folder: Path,
    *,
    checkpoint_seconds: float = 30.0,
    show: bool | None = None,
    wait: float = _WAIT,
    told: Callable[[str], None] = _untold,
) -> dict[str, Any]:
    """Makes the cells that are missing, waits for those of others, writes the tables.

    Args:
      item: the study.
      scale: of its grid.
      folder: of this item at this scale.
      checkpoint_seconds: between checkpoints of the loops of a cell.
      show: whether to show bars; None is where stderr is a terminal.
      wait: seconds between looks at cells that others have claimed.
      told: is given a line per cell that was made here.

    Returns:
      What results.json holds: see `page.results`.

    Raises:
      ArgumentError: the folder holds another item or scale.
      ValueError: a file in it is damaged, or holds a cell of another config.
      OSError: a file cannot be read or written.

    Example:
      >>> import pathlib
      >>> import tempfile
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import cells
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     made = cells.make(item, "smoke", pathlib.Path(folder), show=False)
      >>> made["num_made"] == made["num_cells"]
      True
    """
    grid = item.grids[scale]
    page.agree(item, scale, folder)
    stored = page.stored(item, scale, folder)
    todo = [cell for cell in grid.cells() if cell.name() not in stored]
    for cell in todo:
        _forget_failure(folder, cell)
    page.write(item, scale, folder)
    written = time.monotonic()
    while todo:
        held = []
        for cell in todo:
            with _claimed(folder, cell.name()) as mine:
                if not mine:
                    held.append(cell)
                    continue
                if page.is_made(folder, cell):
                    continue
                _make(item, cell, folder, checkpoint_seconds, show)
                told(f"{item.title}: {cell.name()}")
            if time.monotonic() - written > _OFTEN:
                page.write(item, scale, folder)
                written = time.monotonic()
        if len(held) == len(todo):
            time.sleep(wait)
        todo = held
    return page.write(item, scale, folder)


@contextlib.contextmanager
def _claimed(folder: Path, name: str) -> Iterator[bool]:
    """Yields whether the cell is this process's for now."""
    place = folder / page.WORK / "claims"
    place.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place / f"{name}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _make(
    item: Item[Any],
    cell: Cell,
    folder: Path,
    seconds: float,
    show: bool | None,
) -> None:
    """Makes a cell; one that cannot be made holds an error."""
    with Workdir(page.place(folder, cell), cell.asked()) as workdir:
        loops, begin = Loops(workdir, seconds=seconds, show=show), time.perf_counter()
        try:
            figures = item.run(cell.config, key=cell.key(), stage=loops.by_loop())
            _check_finite(figures)
            row: dict[str, Any] = {"figures": files.plain(figures)}
        except ArgumentError:  # images that are not there: no fault of the cell
            raise
        except (ValueError, FloatingPointError) as error:
            row = {"error": " ".join(str(error).split())}
        device = jax.devices()[0]
        row["seconds"] = round(time.perf_counter() - begin, 2)
        row["made_by"] = f"jax {jax.__version__}, {device.platform}"
        workdir.write_json("results.json", {**cell.asked(), **row})
        shutil.rmtree(workdir.checkpoint_folder, ignore_errors=True)


def _check_finite(figures: Figures) -> None:
    for name, value in figures.items():
        if not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(f"{name} is not finite.")


def _forget_failure(folder: Path, cell: Cell) -> None:
    """Lets a cell be tried again that failed in an earlier start."""
    with _claimed(folder, cell.name()) as mine:
        if mine and "error" in page.read(folder, cell):
            (page.place(folder, cell) / "results.json").unlink()
