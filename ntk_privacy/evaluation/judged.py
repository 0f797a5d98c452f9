"""What a judge of a distilled set returns, and how it sees the images."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled

__all__ = ["Judged", "Pixels", "has_classes", "pixels"]


class Judged(NamedTuple):
    """A row of figures, and what they were measured on.

    Attributes:
      figures: by name, as a file of results holds them.
      made: networks or images that the judge made, for whoever wants to keep them.

    Example:
      >>> from ntk_privacy.evaluation import judged
      >>> row = judged.Judged({"num_copies": 0})
      >>> row.figures["num_copies"], row.made is None
      (0, True)
    """

    figures: dict[str, Any]
    made: Any = None


class Pixels(NamedTuple):
    """Real and distilled images in one unit: intensity less a mean.

    Attributes:
      real: training images.
      distilled: those of the set.
      mean: what was subtracted, per channel.
    """

    real: Float[np.ndarray, "n h w d"]
    distilled: Float[np.ndarray, "m h w d"]
    mean: Float[np.ndarray, " d"]


def has_classes(distilled: Distilled) -> bool:
    """Returns whether a set has classes for labels, not targets to regress on.

    Args:
      distilled: the set.
    """
    return np.ndim(distilled.labels) == 1


def pixels(images: ImageSet, distilled: Distilled) -> Pixels:
    """Returns images in the unit of intensities.

    Args:
      images: that were distilled.
      distilled: normalised images with classes, or images less the mean with targets.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.distillation import real
      >>> from ntk_privacy.evaluation import judged
      >>> images = data.load_set("digits")
      >>> some = real.of_classes(images, images_per_class=1, key=jax.random.key(0))
      >>> judged.pixels(images, some).distilled.shape
      (10, 8, 8, 1)
    """
    made = np.asarray(distilled.images)
    if not has_classes(distilled):
        return Pixels(images.centred(images.x_train), made, images.statistics.mean)
    mean, deviation = images.normal
    return Pixels(images.x_train - mean, made * deviation, mean)
