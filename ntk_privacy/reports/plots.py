"""Figures: reconstruction curves, and training images above their reconstructions."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ntk_privacy import _checks
from ntk_privacy.evaluation.reconstruction_curve import squared_distance_at
from ntk_privacy.reports.canvas import COLOURS, STYLES, drawn, show_image, write

__all__ = [
    "MAX_PAIRS",
    "curve",
    "gallery",
    "pictures",
    "scatter",
]

MAX_PAIRS = 60
"""The most pairs that a gallery shows; of more, evenly chosen ones."""


def _legend_below(axes: Axes, count: int) -> None:
    below = {"loc": "outside lower center", "ncols": 1 if count < 4 else 2}
    axes.figure.legend(**below, fontsize=10)


def curve(
    curves: Mapping[str, Float[Array | np.ndarray, " k"]],
    path: str | pathlib.Path | io.BufferedIOBase,
    *,
    image_shape: tuple[int, int, int],
    title: str = "Reconstruction curve",
    psnr: float | int = 25.0,
) -> None:
    """Draws squared distances against rank, with a line at `psnr` decibels.

    Args:
      curves: label to `squared_distances` of an evaluation (intensity^2). Infinite
        entries are left out, zeros stand at the bottom edge.
      path: the PNG to write.
      image_shape: (height, width, depth) in pixels, which places the line.
      title: above the axes.
      psnr: decibels on the [0, 1] scale from which a pair counts as recovered.

    Raises:
      ValueError: there is no curve.
    """
    _checks.at_least(1, num_curves=len(curves))
    threshold = squared_distance_at(psnr, image_shape)
    sorted_curves = {k: np.sort(np.asarray(v, np.float64)) for k, v in curves.items()}
    drawable = np.concatenate(
        [v[np.isfinite(v) & (v > 0)] for v in sorted_curves.values()]
    )
    low = min([threshold / 3, *drawable]) / 3
    high = max([threshold, *drawable]) * 3
    longest = max(1, *(len(v) for v in sorted_curves.values()))
    with drawn(path, title=title) as axes:
        axes.axhspan(low, threshold, color="#009E73", alpha=0.08, linewidth=0)
        axes.axhline(
            threshold,
            color="0.35",
            linewidth=1,
            label=f"PSNR {psnr:g} dB (below: recovered)",
        )
        for i, (label, values) in enumerate(sorted_curves.items()):
            shown = np.where(np.isfinite(values), np.maximum(values, low), np.nan)
            axes.plot(
                np.arange(1, len(values) + 1),
                shown,
                STYLES[i // len(COLOURS) % len(STYLES)],
                color=COLOURS[i % len(COLOURS)],
                linewidth=1.8,
                marker="o" if longest <= 100 else None,
                markersize=3.5,
                label=label,
            )
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        last = longest + 0.5 if longest <= 100 else longest
        axes.set_xlim(0.5 if longest <= 100 else 1, max(last, 1.5))
        locator = axes.xaxis.get_major_locator()
        assert isinstance(locator, MaxNLocator)  # of a linear axis
        locator.set_params(integer=True)
        axes.set_xlabel("training image, sorted by distance (rank)")
        axes.set_ylabel("squared L2 distance (intensity²)")
        axes.grid(which="major")
        _legend_below(axes, len(curves))


def scatter(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: str | pathlib.Path,
    *,
    x_label: str,
    y_label: str,
    title: str,
) -> None:
    """Draws points on two logarithmic axes, one colour and marker per series.

    Args:
      series: label to (x, y) pairs; those that are not positive and finite are left
        out.
      path: the PNG to write.
      x_label: with its unit.
      y_label: with its unit.
      title: above the axes.

    Raises:
      ValueError: there is no series.
    """
    _checks.at_least(1, num_series=len(series))
    with drawn(path, title=title) as axes:
        for i, (label, pairs) in enumerate(series.items()):
            points = np.asarray(pairs, np.float64).reshape(-1, 2)
            points = points[np.isfinite(points).all(1) & (points > 0).all(1)]
            colour = COLOURS[i % len(COLOURS)]
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=28,
                edgecolor=colour,
                # Hollow once the colours have all been used.
                facecolor=colour if i < len(COLOURS) else "none",
                marker="os^Dv*"[i % 6],
                label=label,
            )
        if any(np.size(drawn.get_offsets()) for drawn in axes.collections):
            # Without a point there is no scale.
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(which="major")
        _legend_below(axes, len(series))


def _even_choice(count: int, limit: int) -> list[int]:
    """Returns at most `limit` of `count` places, evenly spread, both ends kept."""
    if count <= limit:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()


def _told_psnr(value: float) -> str:
    if np.isnan(value):
        return "no value"
    return "exact" if value == np.inf else f"{value:.1f} dB"


def _mark(place: int, count: int, ends: tuple[str, str]) -> str:
    """Returns what stands above the first and the last pair."""
    if count == 1:
        return ""
    return {0: ends[0], count - 1: ends[1]}.get(place, "")


def gallery(
    images: Float[Array | np.ndarray, "k h w c"],
    reconstructions: Float[Array | np.ndarray, "k h w c"],
    path: str | pathlib.Path | io.BufferedIOBase,
    *,
    mean: Float[Array | np.ndarray, " c"],
    distances: Float[Array | np.ndarray, " k"] | Sequence[float],
    psnr: Float[Array | np.ndarray, " k"] | Sequence[float],
    max_columns: int = 20,
    sorted_by: str = "L2 distance",
    ends: tuple[str, str] = ("worst", "best"),
    title: str = "Training images above their reconstructions",
) -> None:
    """Draws training images above their reconstructions, worst to best.

    Of no pair the figure is its title and "nothing was reconstructed".
    `reconstructions.compared` finds the pairs itself.

    Args:
      images: one row per pair, less the mean (intensity).
      reconstructions: row for row the partners of `images`; NaN pixels are black.
      path: the PNG to write, or an open file.
      mean: per channel, what was subtracted (intensity); sums are clipped to [0, 1].
      distances: of each pair (intensity); the greatest is the worst.
      psnr: of each pair, decibels on the [0, 1] scale, printed below it.
      max_columns: pairs per row block; more pairs than 60 are thinned out evenly, and
        the title says so.
      sorted_by: what `distances` are, for the title.
      ends: what the pair of the greatest distance and that of the least are called.
      title: above the figure.

    Raises:
      ValueError: lengths differ.
    """
    _checks.same_length(
        images=images, reconstructions=reconstructions, distances=distances, psnr=psnr
    )
    _checks.at_least(1, max_columns=max_columns)
    if not len(images):
        figure = Figure(figsize=(5.0, 0.8))
        told = f"{title}\nnothing was reconstructed"
        figure.text(0.5, 0.5, told, ha="center", va="center", fontsize=9)
        write(figure, path)
        return
    worst_first = np.argsort(
        -np.nan_to_num(np.asarray(distances), nan=np.inf), kind="stable"
    )
    places = _even_choice(len(worst_first), MAX_PAIRS)
    shown = worst_first[places]
    shift = np.asarray(mean, np.float64)[None, None, None, :]
    truth = np.asarray(images, np.float64)[shown] + shift
    found = np.nan_to_num(np.asarray(reconstructions, np.float64)[shown] + shift)
    decibels = np.asarray(psnr, np.float64)[shown]
    thinned = len(places) < len(worst_first)
    chosen = f"{len(places)} of {len(worst_first)} pairs, evenly chosen; " * thinned
    title += f"\n{chosen}sorted by {sorted_by}, PSNR below each pair"

    columns = min(max_columns, len(shown))
    blocks = -(-len(shown) // columns)
    cell = 0.62  # inches: room for "25.3 dB" in 7 points
    head, foot = 0.46, 0.06
    mark, note, gap = 0.17, 0.19, 0.03
    block = mark + 2 * cell + gap + note
    width = max(columns * cell, 4.8) + 0.2
    height = head + blocks * block + foot
    figure = Figure(figsize=(width, height))
    left = (width - columns * cell) / 2
    with rc_context({"font.size": 7}):
        figure.text(0.5, 1 - 0.07 / height, title, ha="center", va="top", fontsize=9)
        for k in range(len(shown)):
            row, column = divmod(k, columns)
            x = left + column * cell
            top = height - head - row * block
            middle = (x + cell / 2) / width
            label = _mark(k, len(shown), ends)
            if label:
                y = (top - mark + 0.03) / height
                figure.text(middle, y, label, ha="center", va="bottom", weight="bold")
            for which, picture in enumerate((truth[k], found[k])):
                bottom = top - mark - (which + 1) * cell - which * gap
                axes = figure.add_axes(
                    (
                        (x + gap / 2) / width,
                        (bottom + gap / 2) / height,
                        (cell - gap) / width,
                        (cell - gap) / height,
                    )
                )
                show_image(axes, picture)
            y = (top - mark - 2 * cell - gap - 0.04) / height
            figure.text(middle, y, _told_psnr(decibels[k]), ha="center", va="top")
        write(figure, path)


def pictures(
    images: Float[Array | np.ndarray, "k h w c"],
    path: str | pathlib.Path,
    *,
    mean: Float[Array | np.ndarray, " c"],
    notes: Sequence[str],
    title: str,
    columns: int = 10,
) -> None:
    """Draws images in rows, a note below each.

    Args:
      images: less the mean (intensity).
      path: the PNG to write.
      mean: per channel, what was subtracted (intensity); sums are clipped to [0, 1].
      notes: one per image.
      title: above the figure.
      columns: images per row.

    Raises:
      ValueError: lengths differ, or there is no image.
    """
    _checks.same_length(images=images, notes=notes)
    _checks.at_least(1, num_images=len(images), columns=columns)
    shown = np.nan_to_num(np.asarray(images, np.float64))
    shown = shown + np.asarray(mean, np.float64)[None, None, None, :]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    cell, note, head, gap = 0.9, 0.19, 0.3, 0.05
    width = max(columns * cell, 4.8) + 0.2
    height = head + rows * (cell + note)
    figure = Figure(figsize=(width, height))
    left = (width - columns * cell) / 2
    with rc_context({"font.size": 7}):
        figure.text(0.5, 1 - 0.07 / height, title, ha="center", va="top", fontsize=9)
        for k, picture in enumerate(shown):
            row, column = divmod(k, columns)
            x, y = left + column * cell, height - head - row * (cell + note) - cell
            size = ((cell - gap) / width, (cell - gap) / height)
            place = ((x + gap / 2) / width, (y + gap / 2) / height)
            show_image(figure.add_axes((*place, *size)), picture)
            middle = (x + cell / 2) / width
            figure.text(middle, y / height, notes[k], ha="center", va="top")
        write(figure, path)
