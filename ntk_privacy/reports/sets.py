"""Pictures of a distilled set: its images, and the training images next to them."""

import pathlib

import numpy as np

from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation.copies import Nearest
from ntk_privacy.evaluation.judged import has_classes, pixels
from ntk_privacy.reports import plots

__all__ = ["class_name", "draw", "draw_classes", "draw_nearest"]


def class_name(images: ImageSet, number: int) -> str:
    """Returns what a class is called, "class 3" where its name is a number.

    Args:
      images: the set.
      number: of the class.

    Example:
      >>> from ntk_privacy import data
      >>> from ntk_privacy.reports import sets
      >>> sets.class_name(data.load_set("digits"), 3)
      'class 3'
    """
    name = images.class_names[number]
    return f"class {name}" if name.isdigit() else name


def _notes(images: ImageSet, distilled: Distilled) -> list[str]:
    labels = np.asarray(distilled.labels)
    if has_classes(distilled):
        return [class_name(images, int(label)) for label in labels]
    codes = labels.shape[1] == images.num_classes
    return [
        f"{label[0]:+.2g}" if len(label) == 1
        else class_name(images, int(label.argmax())) if codes
        else f"class {int(label.argmax())}"
        for label in labels
    ]  # fmt: skip


def draw(
    images: ImageSet,
    distilled: Distilled,
    path: str | pathlib.Path,
    *,
    title: str,
    columns: int = 10,
) -> None:
    """Draws a set, the label below each image.

    Args:
      images: that were distilled.
      distilled: the set.
      path: the PNG to write.
      title: above the figure.
      columns: images per row.

    Raises:
      ValueError: there is no image.
    """
    shown = pixels(images, distilled)
    plots.pictures(
        shown.distilled,
        path,
        mean=shown.mean,
        notes=_notes(images, distilled),
        columns=columns,
        title=title,
    )


def draw_classes(
    images: ImageSet,
    distilled: Distilled,
    path: str | pathlib.Path,
    *,
    called: str,
    dataset: str,
) -> None:
    """Draws a set of classes, a row or two for each.

    Args:
      images: that were distilled.
      distilled: the set, as many images of each class.
      path: the PNG to write.
      called: what made it.
      dataset: what the images are called.
    """
    each, count = len(distilled.images) // images.num_classes, len(images.x_train)
    columns = min(each, 10) if each > 1 else 5
    title = f"{called}: {count} images of {dataset} condensed to {each} of each class"
    draw(images, distilled, path, title=title, columns=columns)


def draw_nearest(
    images: ImageSet, distilled: Distilled, found: Nearest, path: str | pathlib.Path
) -> None:
    """Draws above each image of a set the training image of the greatest PSNR.

    Args:
      images: that were distilled.
      distilled: the set.
      found: of `evaluation.copies.nearest`.
      path: the PNG to write.
    """
    real, made, mean = pixels(images, distilled)
    alike = real[found.psnr_index]
    plots.gallery(
        alike,
        made,
        path,
        mean=mean,
        distances=np.sqrt(np.sum((alike - made) ** 2, axis=(1, 2, 3))),
        psnr=found.psnr,
        title="Training images of the greatest PSNR above the distilled ones",
        # Here the nearest leaks most.
        ends=("least alike", "most alike"),
    )
