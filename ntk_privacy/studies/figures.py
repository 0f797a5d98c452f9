"""Figures of studies: means over draws, with their spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from ntk_privacy.reports import canvas
from ntk_privacy.studies.item import Row, by_draw

__all__ = ["Line", "Panels", "bars", "line", "lines"]

Line = tuple[Sequence[float], Float[np.ndarray, "draws x"]]
"""Places, and a row of values per draw."""

Panels = Mapping[str, Mapping[str, Line]]
"""By the name of the panel: lines by label."""


def line(rows: Sequence[Row], name: str, *, of: str, **where: Any) -> Line | None:
    """Returns a figure over a field of the config; None while cells are missing.

    Args:
      rows: of a study.
      name: of the figure.
      of: the field.
      **where: values that other fields must have.

    Example:
      >>> import dataclasses
      >>> from ntk_privacy.studies import figures, item
      >>> Point = dataclasses.make_dataclass("Point", ["width"], frozen=True)
      >>> rows = [item.Row(Point(w), 0, {"error": 1 / w}) for w in (1, 2)]
      >>> places, values = figures.line(rows, "error", of="width")
      >>> places, values.shape
      ([1.0, 2.0], (1, 2))
    """
    fixed = [
        r for r in rows if all(getattr(r.config, k) == v for k, v in where.items())
    ]
    places = sorted({getattr(row.config, of) for row in fixed})
    values = [by_draw(fixed, name, **{of: place}) for place in places]
    if len({len(one) for one in values}) != 1:
        return None
    return [float(place) for place in places], np.stack(values, 1)


_FEW = 8


def _spread(values: Float[np.ndarray, "draws x"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and sample deviation; of one draw that is 0."""
    mean = values.mean(0)
    wide = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    return mean, wide


def lines(
    shown: Panels,
    path: Path,
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    marks: bool = True,
) -> None:
    """Draws means over draws as lines, and one sample deviation around them.

    Args:
      shown: what to draw.
      path: the PNG to write.
      x_label: with its unit.
      y_label: with its unit.
      title: above all.
      log_x: whether places stand on a logarithmic axis.
      marks: whether to mark places, of which there are few then.

    Example:
      >>> import pathlib
      >>> import tempfile
      >>> import numpy as np
      >>> from ntk_privacy.studies import figures
      >>> shown = {"digits": {"search": ([1.0, 2.0], np.ones((3, 2)))}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "figure.png")
      ...     figures.lines(shown, path, x_label="width", y_label="error", title="A")
      ...     path.is_file()
      True
    """
    labels = list(dict.fromkeys(label for one in shown.values() for label in one))
    with canvas.panels(path, list(shown), title=title) as axes:
        for own, each in zip(axes, shown.values(), strict=True):
            for label, (places, values) in each.items():
                which = labels.index(label)
                colour = canvas.COLOURS[which % len(canvas.COLOURS)]
                mean, wide = _spread(np.asarray(values, np.float64))
                own.plot(
                    *(places, mean),
                    color=colour,
                    linestyle=canvas.STYLES[which % len(canvas.STYLES)],
                    linewidth=1.4,
                    marker="os^Dv*"[which % 6] if marks else None,
                    markersize=3.5,
                    clip_on=False,  # whole marks at the edge
                    label=label,
                )
                band = (places, mean - wide, mean + wide)
                own.fill_between(*band, color=colour, alpha=0.18, linewidth=0)
            if log_x:
                _logarithmic(
                    own, [place for places, _ in each.values() for place in places]
                )
            _labelled(own, x_label, y_label)
        axes[0].set_ylim(bottom=0)  # once all is drawn: it is that of all


def _logarithmic(axes: Axes, places: Sequence[float]) -> None:
    """Makes the first axis logarithmic; a few places are told as they are."""
    axes.set_xscale("log")
    shown = sorted(set(places))
    if len(shown) <= _FEW:
        axes.set_xticks(shown, [f"{place:g}" for place in shown])
        axes.set_xticks([], minor=True)


def _labelled(axes: Axes, x_label: str, y_label: str) -> None:
    place = axes.get_subplotspec()
    axes.set_xlabel(x_label)
    if place is None or place.is_first_col():
        axes.set_ylabel(y_label)
    axes.grid(which="major")


def bars(
    shown: Mapping[str, Mapping[str, Float[np.ndarray, " draws"]]],
    path: Path,
    *,
    y_label: str,
    title: str,
) -> None:
    """Draws means over draws as bars, one sample deviation, and every draw as a dot.

    Args:
      shown: by the name of the panel: a value per draw by label.
      path: the PNG to write.
      y_label: with its unit.
      title: above all.

    Example:
      >>> import pathlib
      >>> import tempfile
      >>> import numpy as np
      >>> from ntk_privacy.studies import figures
      >>> shown = {"digits": {"kip": np.ones(3), "rkip": np.zeros(3)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "figure.png")
      ...     figures.bars(shown, path, y_label="error", title="A")
      ...     path.is_file()
      True
    """
    labels = list(dict.fromkeys(label for one in shown.values() for label in one))
    with canvas.panels(path, list(shown), title=title) as axes:
        for own, each in zip(axes, shown.values(), strict=True):
            for label, values in each.items():
                place = labels.index(label)
                column = np.asarray(values, np.float64)[:, None]
                mean, wide = (float(one[0]) for one in _spread(column))
                colour = canvas.COLOURS[place % len(canvas.COLOURS)]
                own.bar(place, mean, color=colour, alpha=0.55, width=0.7)
                own.errorbar(place, mean, wide, color="0.2", capsize=3, linewidth=1)
                shift = np.linspace(-0.2, 0.2, len(column))
                own.plot(place + shift, column[:, 0], "o", color="0.2", markersize=2.5)
            own.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
            _labelled(own, "", y_label)
        axes[0].set_ylim(bottom=0)
