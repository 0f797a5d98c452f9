"""What all figures share: colours, lines, axes, and how a picture is written.

Figures are made without pyplot, and files appear whole or not at all. The style is that
of one thread at a time: it is Matplotlib's own while a figure is drawn, and put back.
"""

import contextlib
import io
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntk_privacy import _checks
from ntk_privacy.reports.atomic import replacing

__all__ = [
    "COLOURS",
    "STYLES",
    "drawn",
    "figure",
    "panels",
    "show_image",
    "write",
]

_DPI = 150
# Distinct without colour: the line style changes with the colour. Okabe and Ito's set.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of lines and points, in order."""

STYLES = ("-", "--", "-.", ":")
"""Of lines, in order."""

_ONE = threading.RLock()
_LOOK = {
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


def write(figure: Figure, path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """Writes a PNG; equal figures give equal files.

    Args:
      figure: to write.
      path: the file, which appears whole or not at all, or a stream.

    Example:
      >>> import io
      >>> from matplotlib.figure import Figure
      >>> from ntk_privacy.reports import canvas
      >>> file = io.BytesIO()
      >>> canvas.write(Figure(figsize=(1, 1)), file)
      >>> file.getvalue()[1:4]
      b'PNG'
    """
    FigureCanvasAgg(figure)
    # No date or version inside.
    options: dict[str, Any] = {"format": "png", "dpi": _DPI}
    options["metadata"] = {"Software": None}
    if not isinstance(path, str | pathlib.Path):
        # Its stub leaves out streams that `io` makes.
        figure.savefig(path, **options)  # pyright: ignore[reportArgumentType]
        return
    with replacing(path) as temporary:
        figure.savefig(temporary, **options)


@contextlib.contextmanager
def figure(
    path: str | pathlib.Path | io.BufferedIOBase,
    *,
    size: tuple[_checks.Number, _checks.Number],
    font: _checks.Number = 11,
) -> Iterator[Figure]:
    """Yields an empty figure in the style of all, and then writes it.

    Args:
      path: the PNG to write, or a stream.
      size: width and height, inches.
      font: size of letters, points.

    Example:
      >>> import io
      >>> from ntk_privacy.reports import canvas
      >>> file = io.BytesIO()
      >>> with canvas.figure(file, size=(3, 2)) as shown:
      ...     _ = shown.add_subplot().plot([1, 2])
      >>> file.getvalue()[1:4]
      b'PNG'
    """
    look: dict[Any, Any] = _LOOK | {"font.size": font}
    with _ONE, rc_context(look):
        wide, high = map(float, size)
        made = Figure(figsize=(wide, high), layout="constrained")
        yield made
        write(made, path)


@contextlib.contextmanager
def drawn(
    path: str | pathlib.Path | io.BufferedIOBase,
    *,
    title: str,
    size: tuple[float, float] = (7.2, 4.6),
) -> Iterator[Axes]:
    """Yields the axes of a figure in the style of all, and then writes it.

    Args:
      path: the PNG to write, or a stream.
      title: above the axes.
      size: of the figure, inches.
    """
    with figure(path, size=size) as made:
        axes = made.add_subplot()
        yield axes
        axes.set_title(title, fontsize=12)


@contextlib.contextmanager
def panels(
    path: str | pathlib.Path, names: Sequence[str], *, title: str, columns: int = 2
) -> Iterator[list[Axes]]:
    """Yields axes side by side, one per name, which share their scale, and writes them.

    Args:
      path: the PNG to write.
      names: above each of the axes.
      title: above all.
      columns: at most so many stand in a row.

    Raises:
      ValueError: there is no name.
    """
    _checks.at_least(1, num_panels=len(names), columns=columns)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = (max(3.4 * columns, 4.6), 2.6 * rows + 1.0)
    with figure(path, size=size, font=9) as made:
        grid = made.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        each = list(grid.flat)
        for spare in each[len(names) :]:
            spare.set_visible(False)
        yield each[: len(names)]
        for name, axes in zip(names, each, strict=False):
            axes.set_title(name, fontsize=9)
        made.suptitle(title, fontsize=10)
        lines, labels = each[0].get_legend_handles_labels()
        if labels:
            below = {"loc": "outside lower center", "ncols": 3, "fontsize": 8}
            made.legend(lines, labels, **below)


def show_image(axes: Axes, picture: Float[np.ndarray, "h w c"]) -> None:
    """Draws one image: grey for one channel, colour for three.

    Args:
      axes: to draw on.
      picture: intensities, clipped to [0, 1].

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from ntk_privacy.reports import canvas
      >>> axes = Figure().add_subplot()
      >>> canvas.show_image(axes, np.ones((8, 8, 1)))
      >>> len(axes.images)
      1
    """
    picture = np.clip(picture, 0.0, 1.0)
    if picture.shape[-1] != 3:
        picture = picture.mean(axis=-1)
    axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("0.6")
        spine.set_linewidth(0.5)
