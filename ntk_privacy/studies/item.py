"""A figure or a table of a paper is one record: its claim, its grid, its verdict."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
)

import jax
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.reports import files
from ntk_privacy.studies.verdict import Part

__all__ = ["Cell", "Figures", "Grid", "Item", "Row", "Scale", "by_draw", "paired"]

Config = TypeVar("Config")
Figures = Mapping[str, Any]
"""Numbers and lists of numbers of a cell, by name."""

Scale = Literal["smoke", "cpu", "paper"]


class Row(NamedTuple):
    """A finished cell.

    Attributes:
      config: its point of the grid.
      draw: its number; cells of one draw share keys, hence images where they can.
      figures: by name.

    Example:
      >>> from ntk_privacy.studies import item
      >>> item.Row("a point", 0, {"error": 0.5}).figures["error"]
      0.5
    """

    config: Any
    draw: int
    figures: Figures


class Cell(NamedTuple):
    """A point of a grid, and a draw of images, networks and searches.

    Attributes:
      config: a frozen dataclass of numbers and texts.
      draw: from 0 on.
    """

    config: Any
    draw: int

    def name(self) -> str:
        """Returns the name of its folder."""
        values = dataclasses.asdict(self.config)
        told = [f"{k}={v}" for k, v in values.items() if v is not None]
        return ",".join([*told, f"draw={self.draw}"])

    def asked(self) -> dict[str, Any]:
        """Returns what its folder belongs to."""
        return {"config": files.plain(self.config), "draw": self.draw}

    def key(self) -> Array:
        """Returns its key, which is that of all cells of the draw."""
        return jax.random.fold_in(jax.random.key(0), self.draw)


@dataclasses.dataclass(frozen=True)
class Grid(Generic[Config]):
    """The cells of a study at one scale.

    Attributes:
      configs: points, each with every draw.
      num_draws: of images, networks and searches.

    Example:
      >>> from ntk_privacy.studies import item
      >>> len(item.Grid(("narrow", "wide"), num_draws=3).cells())
      6
    """

    configs: tuple[Config, ...]
    num_draws: int

    def cells(self) -> list[Cell]:
        """Returns all cells, those of a point together."""
        draws = range(self.num_draws)
        return [Cell(config, draw) for config in self.configs for draw in draws]


@dataclasses.dataclass(frozen=True)
class Item(Generic[Config]):
    """A figure or a table of a paper.

    Attributes:
      paper: loo, rdm or guard.
      name: of the figure or table, such as figure2.
      claim: what is claimed there, in one line.
      about: what is computed here, and where it is not what the paper did.
      grids: by scale: a taste for tests, what two cores finish, and published sizes.
      run: `run(config, *, key, stage)` returns the figures of a cell, a pure function
        whose loops run in the stage.
      judge: `judge(rows)` returns the parts of the claim, given all rows of a grid.
      columns: heads of the table, by name of the figure.
      draw: `draw(rows, path)` writes the figure: mean and spread over draws.

    Example:
      >>> from ntk_privacy import studies
      >>> figure2 = next(i for i in studies.ITEMS if i.title == "loo_figure2")
      >>> figure2.folder("cpu"), figure2.folder("smoke")
      ('loo_figure2', 'loo_figure2_smoke')
    """

    paper: str
    name: str
    claim: str
    about: str
    grids: Mapping[Scale, Grid[Config]]
    run: Callable[..., Figures]
    judge: Callable[[Sequence[Row]], Sequence[Part]]
    columns: Mapping[str, str]
    draw: Callable[[Sequence[Row], Path], None]

    @property
    def title(self) -> str:
        """Its name among the items of all papers."""
        return f"{self.paper}_{self.name}"

    def folder(self, scale: Scale) -> str:
        """Returns the name of its folder: its title, with the scale unless it is cpu.

        Args:
          scale: of the grid.
        """
        return self.title if scale == "cpu" else f"{self.title}_{scale}"


def by_draw(rows: Sequence[Row], name: str, **where: Any) -> Float[np.ndarray, " n"]:
    """Returns a figure per draw, the mean over the points of the grid.

    Args:
      rows: of a study.
      name: of the figure.
      **where: values that fields of the config must have.

    Raises:
      ValueError: there is no such row.

    Example:
      >>> import dataclasses
      >>> from ntk_privacy.studies import item
      >>> Point = dataclasses.make_dataclass("Point", ["width"], frozen=True)
      >>> rows = [item.Row(Point(w), 0, {"error": 1 / w}) for w in (1, 2)]
      >>> item.by_draw(rows, "error")
      array([0.75])
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        if all(getattr(row.config, k) == v for k, v in where.items()):
            found.setdefault(row.draw, []).append(float(row.figures[name]))
    if not found:
        raise ValueError(f"no row has {where}: ask for values of the grid.")
    return np.asarray([np.mean(found[draw]) for draw in sorted(found)])


def paired(
    rows: Sequence[Row], name: str, *, of: str, one: Any, other: Any, **where: Any
) -> Float[np.ndarray, " n"]:
    """Returns per draw the mean difference of points that differ in one field.

    Args:
      rows: of a study.
      name: of the figure.
      of: the field.
      one: its value, whose figures are taken from those of the other.
      other: see `one`.
      **where: see `by_draw`.

    Raises:
      ValueError: there is no such pair.

    Example:
      >>> import dataclasses
      >>> from ntk_privacy.studies import item
      >>> Point = dataclasses.make_dataclass("Point", ["width"], frozen=True)
      >>> rows = [item.Row(Point(w), 0, {"error": 1 / w}) for w in (1, 2)]
      >>> item.paired(rows, "error", of="width", one=1, other=2)
      array([0.5])
    """
    found: dict[int, list[float]] = {}
    index = {(row.config, row.draw): row for row in rows}
    for row in rows:
        given = {of: one, **where}
        if any(getattr(row.config, k) != v for k, v in given.items()):
            continue
        second = index.get((dataclasses.replace(row.config, **{of: other}), row.draw))
        if second is not None:
            difference = float(row.figures[name]) - float(second.figures[name])
            found.setdefault(row.draw, []).append(difference)
    if not found:
        raise ValueError(f"no pair has {of}={one} and {other}: ask for the grid's.")
    return np.asarray([np.mean(found[draw]) for draw in sorted(found)])
