"""What a study's folder holds: results.json, table.md and figure.png, drawn anew."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from ntk_privacy.data import ArgumentError
from ntk_privacy.evaluation import rates
from ntk_privacy.reports import files, tables
from ntk_privacy.studies.item import Cell, Item, Row, Scale
from ntk_privacy.studies.verdict import Part, of_parts

__all__ = [
    "WORK",
    "agree",
    "is_made",
    "judged",
    "of_folder",
    "place",
    "read",
    "results",
    "rows_of",
    "stored",
    "table",
    "write",
]

WORK = "work"
"""Folder of cells and claims, of no use once the study is whole."""


def place(folder: Path, cell: Cell) -> Path:
    """Returns the folder of a cell.

    Args:
      folder: of the study.
      cell: of it.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> nowhere = pathlib.Path("no_such_folder")
      >>> cell = item.grids["smoke"].cells()[0]
      >>> page.place(nowhere, cell).parent.name
      'cells'
    """
    return folder / WORK / "cells" / cell.name()


def read(folder: Path, cell: Cell) -> dict[str, Any]:
    """Returns what the folder of a cell holds; nothing where it is not made.

    Args:
      folder: of the study.
      cell: of it.

    Raises:
      ValueError: the file is damaged, or of another config.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> nowhere = pathlib.Path("no_such_folder")
      >>> cell = item.grids["smoke"].cells()[0]
      >>> page.read(nowhere, cell)
      {}
    """
    path = place(folder, cell) / "results.json"
    return _checked(path, cell, files.read_json(path)) if path.exists() else {}


def is_made(folder: Path, cell: Cell) -> bool:
    """Whether a cell is made, or failed.

    Args:
      folder: of the study.
      cell: of it.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> nowhere = pathlib.Path("no_such_folder")
      >>> cell = item.grids["smoke"].cells()[0]
      >>> page.is_made(nowhere, cell)
      False
    """
    return (place(folder, cell) / "results.json").exists()


def _checked(path: Path, cell: Cell, row: Any) -> dict[str, Any]:
    asked = cell.asked()
    if not isinstance(row, dict) or {k: row.get(k) for k in asked} != asked:
        raise ValueError(
            f"{path} holds no cell {cell.name()}: it was made by other code; delete it "
            "to make it again."
        )
    return row


def agree(item: Item[Any], scale: Scale, folder: Path) -> None:
    """Takes a folder for a study at a scale.

    Args:
      item: the study.
      scale: of its grid.
      folder: made if it is missing.

    Raises:
      ArgumentError: it is of another, or a file.

    Example:
      >>> import pathlib
      >>> import tempfile
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page.agree(item, "smoke", pathlib.Path(folder))
      ...     page.of_folder(pathlib.Path(folder))["item"]
      'lemma4_1'
    """
    own = (item.paper, item.name, scale)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"workdir={folder} is a file: give a folder.")
    with _writing(folder):
        path = folder / "results.json"
        if not path.exists():
            files.write_json(path, results(item, scale, folder))
        found = of_folder(folder)
    told = tuple(str(found.get(name)) for name in ("paper", "item", "scale"))
    if told != own:
        raise ArgumentError(
            f"workdir={folder} belongs to {' '.join(told)}, not to {' '.join(own)}: "
            "give another workdir."
        )


def _writing(folder: Path) -> filelock.BaseFileLock:
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / WORK / "tables.lock")


def of_folder(folder: Path) -> dict[str, Any]:
    """Returns what results.json holds; nothing where it is not there.

    Args:
      folder: of a study.

    Raises:
      ValueError: it is damaged.

    Example:
      >>> import pathlib
      >>> from ntk_privacy.studies import page
      >>> page.of_folder(pathlib.Path("no_such_folder"))
      {}
    """
    path = folder / "results.json"
    found = files.read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no results: delete it to make it again.")  # noqa: TRY004  # the file is at fault
    return found


def stored(item: Item[Any], scale: Scale, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the cells that are made, by name; those that failed are left out.

    Args:
      item: the study.
      scale: of its grid.
      folder: of the study; results.json is enough.

    Raises:
      ValueError: a file is damaged, or of another grid.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> nowhere = pathlib.Path("no_such_folder")
      >>> page.stored(item, "smoke", nowhere)
      {}
    """
    kept = of_folder(folder)
    earlier = {
        (_key(row["config"]), row["draw"]): row
        for row in kept.get("rows", ())
        if "figures" in row
    }
    found = {}
    for cell in item.grids[scale].cells():
        asked = cell.asked()
        row = earlier.get((_key(asked["config"]), cell.draw)) or read(folder, cell)
        if "figures" in row:
            found[cell.name()] = row
    return found


def _key(config: Mapping[str, Any]) -> str:
    return repr(sorted(config.items()))


def _failures(item: Item[Any], scale: Scale, folder: Path) -> list[dict[str, Any]]:
    rows = (read(folder, cell) for cell in item.grids[scale].cells())
    return [row for row in rows if "error" in row]


def rows_of(
    item: Item[Any], scale: Scale, found: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """Returns finished cells with their configs.

    Args:
      item: the study.
      scale: of its grid.
      found: see `stored`.

    Example:
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> page.rows_of(item, "smoke", {})
      []
    """
    return [
        Row(cell.config, cell.draw, found[cell.name()]["figures"])
        for cell in item.grids[scale].cells()
        if cell.name() in found
    ]


def judged(
    item: Item[Any], scale: Scale, found: Mapping[str, Mapping[str, Any]]
) -> Sequence[Part]:
    """Returns the parts of the claim; none while cells are missing.

    Args:
      item: the study.
      scale: of its grid.
      found: see `stored`.

    Example:
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> page.judged(item, "smoke", {})
      ()
    """
    if len(found) < len(item.grids[scale].cells()):
        return ()
    return tuple(item.judge(rows_of(item, scale, found)))


def results(item: Item[Any], scale: Scale, folder: Path) -> dict[str, Any]:
    """Returns what results.json holds: every cell, and what they say of the claim.

    Args:
      item: the study.
      scale: of its grid.
      folder: of the study.

    Raises:
      ValueError: see `stored`.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> nowhere = pathlib.Path("no_such_folder")
      >>> page.results(item, "smoke", nowhere)["verdict"]
      'none yet'
    """
    found, grid = stored(item, scale, folder), item.grids[scale]
    parts = judged(item, scale, found)
    failed = _failures(item, scale, folder)
    return {
        "paper": item.paper,
        "item": item.name,
        "scale": scale,
        "claim": item.claim,
        "about": item.about,
        "num_draws": grid.num_draws,
        "num_cells": len(grid.cells()),
        "num_made": len(found),
        "verdict": of_parts(parts),
        "parts": [{**part._asdict(), "holds": part.holds} for part in parts],
        "seconds": round(sum(row["seconds"] for row in found.values()), 1),
        "failed": failed,
        "rows": list(found.values()),
    }


def write(item: Item[Any], scale: Scale, folder: Path) -> dict[str, Any]:
    """Writes table.md, figure.png and results.json of what there is; returns the last.

    Args:
      item: the study.
      scale: of its grid.
      folder: of the study.

    Raises:
      ValueError: see `stored`.

    Example:
      >>> import pathlib
      >>> import tempfile
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page.agree(item, "smoke", pathlib.Path(folder))
      ...     page.write(item, "smoke", pathlib.Path(folder))["num_made"]
      0
    """
    with _writing(folder):
        told = results(item, scale, folder)
        rows = rows_of(item, scale, stored(item, scale, folder))
        files.write_string(folder / "table.md", table(item, rows, told))
        if rows:
            item.draw(rows, folder / "figure.png")
        files.write_json(folder / "results.json", told)
    return told


def table(item: Item[Any], rows: Sequence[Row], told: Mapping[str, Any]) -> str:
    """Returns the study to be read: claim, verdict, parts, and a row per point.

    Args:
      item: the study.
      rows: finished cells.
      told: see `results`.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import page
      >>> item = studies.of_paper("rdm")["lemma4_1"]
      >>> nowhere = pathlib.Path("no_such_folder")
      >>> told = page.results(item, "smoke", nowhere)
      >>> page.table(item, [], told).splitlines()[0]
      '# rdm, lemma4_1: none yet'
    """
    made = f"{told['num_made']} of {told['num_cells']} cells"
    lines = [
        f"# {item.paper}, {item.name}: {told['verdict']}",
        "",
        item.claim,
        "",
        item.about,
        "",
        f"Scale {told['scale']}, {made}, {told['num_draws']} draws, "
        f"{told['seconds']:.0f} s.",
        "",
    ]
    if told["parts"]:
        head = ["part of the claim", "value", "interval", "asked for", "holds"]
        body = [
            [part["told"], *_told_part(part), _WORDS[part["holds"]]]
            for part in told["parts"]
        ]
        lines += [tables.markdown(head, body), ""]
    lines += [_by_point(item, rows), ""]
    lines += [f"Failed: {row['config']}: {row['error']}" for row in told["failed"]]
    return "\n".join(lines).rstrip() + "\n"


_WORDS = {True: "yes", False: "no", None: "undecided"}


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _told_part(part: Mapping[str, Any]) -> list[str]:
    interval = f"{_number(part['low'])} to {_number(part['high'])}"
    return [_number(part["value"]), interval, f"{part['side']} {part['bound']:g}"]


def _by_point(item: Item[Any], rows: Sequence[Row]) -> str:
    """Returns a row per point of the grid: mean +- sample deviation over draws."""
    points = list(dict.fromkeys(row.config for row in rows))
    if not points:
        return "No cell is made yet."
    fields = [entry.name for entry in dataclasses.fields(points[0])]
    # What all points share is no column.
    varied = [f for f in fields if len({getattr(p, f) for p in points}) > 1]
    body = []
    for point in points:
        own = [row.figures for row in rows if row.config == point]
        told = [_mean(own, name) for name in item.columns]
        body.append([str(getattr(point, f)) for f in varied] + told + [str(len(own))])
    table = tables.markdown([*varied, *item.columns.values(), "draws"], body)
    shared = {f: getattr(points[0], f) for f in fields if f not in varied}
    told = ", ".join(f"{name} {value}" for name, value in shared.items())
    return f"{table}\n\nMean +- sample deviation. All cells: {told}."


def _mean(own: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [float(figures[name]) for figures in own if name in figures]
    return f"{rates.mean_and_deviation(values):.4g}" if values else ""
