"""Figures of adversarial images: clean, attacked, and what was changed."""

import pathlib
import textwrap
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib import rc_context
from matplotlib.figure import Figure

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import attacked_set
from ntk_privacy.evaluation.attacked_model import Model
from ntk_privacy.evaluation.robust_accuracy import RobustAccuracy
from ntk_privacy.evasion import task as tasks
from ntk_privacy.reports.canvas import show_image, write

__all__ = ["adversarial", "attacked"]

_ROWS = ("clean", "attacked", "change")
# Of a title, to an inch.
_CHARACTERS = 13


def adversarial(
    x: Float[Array | np.ndarray, "k h w c"],
    images: Float[Array | np.ndarray, "k h w c"],
    path: str | pathlib.Path,
    *,
    clean_notes: Sequence[str],
    attacked_notes: Sequence[str],
    title: str,
) -> None:
    """Draws a column per image: clean, attacked, and the change, scaled around grey.

    The change of each image is scaled so that its largest entry is black or white; the
    factor stands below it.

    Args:
      x: clean images, intensities in [0, 1].
      images: the same under attack.
      path: the PNG to write.
      clean_notes: above each clean image, such as its class.
      attacked_notes: above each attacked one.
      title: above the figure.

    Raises:
      ValueError: lengths differ, or there is no image.
    """
    _checks.same_length(
        x=x, images=images, clean_notes=clean_notes, attacked_notes=attacked_notes
    )
    _checks.at_least(1, num_images=len(x))
    clean, found = (np.asarray(v, np.float64) for v in (x, images))
    change = found - clean
    most = np.abs(change).max(axis=(1, 2, 3), keepdims=True)
    factor = 0.5 / np.where(most > 0, most, 0.5)
    cell, note, gap, side = 0.9, 0.17, 0.05, 0.5
    width = max(len(clean) * cell + side + 0.1, 4.8)
    # Few images are narrower than what is said of them.
    lines = textwrap.wrap(title, int(width * _CHARACTERS))
    head = 0.2 + 0.16 * len(lines)
    height = head + 3 * (cell + note)
    figure = Figure(figsize=(width, height))
    scales = [
        f"x {f:.3g}" if m > 0 else "none"
        for f, m in zip(factor.flat, most.flat, strict=True)
    ]
    notes = (clean_notes, attacked_notes, scales)
    with rc_context({"font.size": 7}):
        told = {"ha": "center", "va": "top", "fontsize": 9}
        figure.text(0.5, 1 - 0.07 / height, "\n".join(lines), **told)
        rows = (clean, found, 0.5 + factor * change)
        for row, (name, pictures) in enumerate(zip(_ROWS, rows, strict=True)):
            y = height - head - row * (cell + note) - note - cell
            middle = (y + cell / 2) / height
            figure.text(0.05 / width, middle, name, ha="left", va="center")
            for k, picture in enumerate(pictures):
                left = side + k * cell
                place = ((left + gap / 2) / width, (y + gap / 2) / height)
                size = ((cell - gap) / width, (cell - gap) / height)
                show_image(figure.add_axes((*place, *size)), picture)
                figure.text(
                    (left + cell / 2) / width,
                    (y + cell) / height,
                    notes[row][k],
                    ha="center",
                    va="bottom",
                )
        write(figure, path)


def attacked(
    model: Model,
    images: ImageSet,
    found: RobustAccuracy,
    config: attacked_set.Config,
    path: str | pathlib.Path,
    *,
    key: Array,
) -> None:
    """Draws images that attacks broke, with what the model takes them for.

    Args:
      model: that was attacked.
      images: whose test images were attacked.
      found: of `evaluation.robust_accuracy`.
      config: of the attacks.
      path: the PNG to write.
      key: typed key, for a random model.
    """
    names, rows = images.class_names, attacked_set.shown(found)

    def read(pixels: np.ndarray) -> list[str]:
        x, random = jnp.asarray(pixels), tasks.takes_key(model.logits_fn)
        logits = model.logits_fn(x, key=key) if random else model.logits_fn(x)
        classes = map(int, np.asarray(logits).argmax(1))
        return [names[c] if c < len(names) else str(c) for c in classes]

    clean, after = images.x_test[rows], found.images[rows]
    broken = sum(name != "" for name in found.found_by)
    adversarial(
        clean,
        after,
        path,
        clean_notes=read(clean),
        attacked_notes=read(after),
        title=f"{config.norm}, eps = {config.eps}: {broken} of "
        f"{int(found.correct.sum())} rightly read images broken; what the model takes "
        "them for",
    )
