"""A gallery of a result in a notebook, or as a figure, without a file."""

import io
import math
from typing import Any

import numpy as np
from jaxtyping import Array, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntk_privacy import _checks
from ntk_privacy.auditing import Audit
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.reconstruction import Reconstruction

__all__ = ["Gallery", "show"]

_INCHES = 0.85  # of one picture


class Gallery(Figure):
    """A figure that a notebook shows where it is a cell's last value."""

    def _repr_png_(self) -> bytes:
        FigureCanvasAgg(self)
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def show(
    result: Reconstruction | Audit,
    images: Float[Array | np.ndarray, "n h w c"] | None = None,
    *,
    bounds: tuple[Any, Any] | None = None,
    columns: int = 10,
    most: int = 60,
) -> Gallery:
    """Draws what was found, below the training images if there are any.

    Args:
      result: of an attack, or of an audit, which has its own images and units.
      images: training images in the units of the result.
      bounds: what is black and white; None is the smallest and the largest entry.
      columns: pictures in a row.
      most: images that are drawn.

    Raises:
      ValueError: a number below 1, or images of another shape.

    Example:
      >>> import numpy as np
      >>> import ntk_privacy
      >>> x = np.random.default_rng(0).random((3, 8, 8, 1))
      >>> found = ntk_privacy.audit(distilled=x[:2], images=x)
      >>> len(ntk_privacy.reports.show(found).axes)
      4
    """
    _checks.at_least(1, columns=columns, most=most)
    if isinstance(result, Audit):
        truth, found, titles = _of_audit(result)
        sentence, bounds = result.verdict.sentence, (0.0, 1.0)
    else:
        truth, found, titles = _of_attack(result, images)
        sentence = f"{result.verdict.word}: {len(found)} images"
    return _drawn(truth, found[:most], titles, sentence, bounds, columns)


def _of_attack(
    result: Reconstruction, images: Any
) -> tuple[np.ndarray | None, np.ndarray, list[str]]:
    found = np.asarray(result.images, np.float64)
    titles = ["certain" if sure else "estimate" for sure in result.certified]
    if images is None:
        return None, found, titles
    pairs = reconstruction_curve.match(images, found)
    rows, columns = pairs.train_index, pairs.reconstruction_index
    truth = np.asarray(images, np.float64)[rows]
    return truth, found[columns], [titles[j] for j in columns.tolist()]


def _of_audit(result: Audit) -> tuple[np.ndarray | None, np.ndarray, list[str]]:
    pairs, private, nearest = result.pairs, result.private, result.nearest
    if result.reconstruction is not None and result.images is not None:
        if pairs is None or private is None:
            return _of_attack(
                result.reconstruction._replace(images=result.images), None
            )
        found = np.asarray(result.images)[pairs.reconstruction_index]
        truth = private.images[pairs.train_index]
        return truth, found, [_decibels(value) for value in pairs.psnr]
    if nearest is None or private is None or result.distilled is None:
        return None, np.zeros((0, 1, 1, 1)), []
    order = np.argsort(-nearest.psnr, kind="stable")
    truth = private.images[nearest.psnr_index[order]]
    titles = [_decibels(value) for value in nearest.psnr[order]]
    return truth, result.distilled.images[order], titles


def _decibels(psnr: Any) -> str:
    return "equal" if math.isinf(psnr) and psnr > 0 else f"{float(psnr):.0f} dB"


def _drawn(
    truth: np.ndarray | None,
    found: np.ndarray,
    titles: list[str],
    sentence: str,
    bounds: tuple[Any, Any] | None,
    columns: int,
) -> Gallery:
    both = 1 if truth is None else 2
    count, columns = len(found), min(columns, max(1, len(found)))
    blocks = max(1, math.ceil(count / columns))
    wide, high = max(columns * _INCHES, 5.0), blocks * both * _INCHES * 1.15 + 0.5
    figure = Gallery(figsize=(wide, high), layout="constrained")
    figure.suptitle(sentence, fontsize=10, wrap=True)
    shown = [found] if truth is None else [truth[:count], found]
    if bounds is None and count:
        low = min(float(np.nanmin(part)) for part in shown)
        bounds = low, max(float(np.nanmax(part)) for part in shown)
    grid = figure.add_gridspec(blocks * both, columns)
    for i in range(count):
        block, column = divmod(i, columns)
        for row, part in enumerate(shown):
            axes = figure.add_subplot(grid[block * both + row, column])
            assert bounds is not None
            low, high = (np.asarray(edge, np.float64) for edge in bounds)
            scaled = np.clip((part[i] - low) / np.maximum(high - low, 1e-12), 0, 1)
            drawn = scaled if scaled.shape[-1] == 3 else scaled.mean(axis=-1)
            axes.imshow(drawn, cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
            if row == len(shown) - 1:
                axes.set_title(titles[i], fontsize=7, pad=2)
    return figure
