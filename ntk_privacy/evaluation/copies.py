"""The training image nearest to each distilled one: does a set show what it hides?"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation.judged import Judged, pixels
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.method import Method
from ntk_privacy.resume import Stage, straight

__all__ = ["JUDGE", "Config", "Nearest", "nearest"]

# Training images at a time, whose products with the distilled ones are in memory.
_ROWS = 4096


class Nearest(NamedTuple):
    """Each image's nearest training image.

    Attributes:
      nearest: row of the nearest in L2.
      distances: to it (intensity).
      psnr_index: of that with the greatest PSNR, which clipping may make another one.
      psnr: decibels, images clipped to [0, 1]; inf of an equal one.
      num_copies: images whose PSNR counts as recovered.
      psnr_outside_noise: the best over all training images of the entries that are no
        noise; None without noise.
    """

    nearest: Int[np.ndarray, " m"]
    distances: Float[np.ndarray, " m"]
    psnr_index: Int[np.ndarray, " m"]
    psnr: Float[np.ndarray, " m"]
    num_copies: int
    psnr_outside_noise: Float[np.ndarray, " m"] | None = None


def nearest(
    x_train: Float[np.ndarray, "n h w d"],
    images: Float[Array | np.ndarray, "m h w d"],
    *,
    mean: Float[np.ndarray, " d"],
    noise: Bool[np.ndarray, "m h w d"] | None = None,
) -> Nearest:
    """Returns each image's nearest training image.

    Args:
      x_train: training images less the mean (intensity).
      images: distilled ones, in the same units.
      mean: per channel, what was subtracted.
      noise: entries that are noise for good, which alone keep the PSNR of a copy low.

    Raises:
      ValueError: there are no images, they are not finite, shapes differ, or an image
        is noise alone.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation import copies
      >>> x = np.linspace(0, 1, 3 * 4, dtype=np.float32).reshape(3, 2, 2, 1)
      >>> found = copies.nearest(x, x[[2, 0]] + 0.01, mean=np.zeros(1, np.float32))
      >>> found.nearest.tolist(), found.num_copies
      ([2, 0], 2)
    """
    images = np.asarray(images)
    _checks.at_least(1, num_images=min(len(x_train), len(images)))
    # NaN is near nothing: it would hide every copy.
    _checks.finite_data(x_train=x_train, images=images)
    if noise is not None and np.all(noise, axis=(1, 2, 3)).any():
        raise ValueError(
            "noise covers all of an image, which leaves nothing to compare: use less."
        )
    if x_train.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"images have shape {images.shape[1:]}, training images "
            f"{x_train.shape[1:]}: give both alike."
        )
    index = _closest(x_train, images)
    apart = (x_train[index] - images).reshape(len(images), -1)
    shown, truth = np.clip(images + mean, 0, 1), np.clip(x_train + mean, 0, 1)
    psnr_index = _closest(truth, shown)
    errors = np.mean((truth[psnr_index] - shown) ** 2, axis=(1, 2, 3))
    psnr = _decibels(errors)
    outside = None
    if noise is not None:
        outside = np.asarray(
            [
                _decibels(np.mean(((truth - image) ** 2)[:, ~mask], axis=1).min())
                for image, mask in zip(shown, noise, strict=True)
            ]
        )
    return Nearest(
        nearest=index,
        distances=np.linalg.norm(apart, axis=1),
        psnr_index=psnr_index,
        psnr=psnr,
        num_copies=int(np.sum(psnr >= RECOVERED_PSNR)),
        psnr_outside_noise=outside,
    )


def _decibels(errors: Any) -> Any:
    with np.errstate(divide="ignore"):
        return -10 * np.log10(errors)


def _closest(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the row next to each point, up to rounding."""
    points = points.reshape(len(points), -1)
    least, index = np.full(len(points), np.inf), np.zeros(len(points), int)
    for first in range(0, len(rows), _ROWS):
        block = rows[first : first + _ROWS].reshape(-1, points.shape[1])
        scores = np.sum(block**2, axis=1)[:, None] - 2 * block @ points.T
        found = scores.min(axis=0)
        index = np.where(found < least, first + scores.argmin(axis=0), index)
        least = np.minimum(found, least)
    return index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing is to be chosen.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> from ntk_privacy.distillation import real
      >>> some = real.of_classes(images, images_per_class=1, key=key)
      >>> judge = evaluation.JUDGES["copies"]
      >>> judge.run(images, some, judge.configured(), key=key).figures["num_copies"]
      2
    """


def _run(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
) -> Judged:
    del config, key, stage
    real, made, mean = pixels(images, distilled)
    found = nearest(real, made, mean=mean, noise=distilled.noise)
    index, *rest = found._asdict().items()
    # As files of results name it.
    figures = {"index": index[1]} | {k: v for k, v in rest if v is not None}
    return Judged(figures, found)


JUDGE = Method(
    name="copies",
    about="looks for the training image nearest to each of the set.",
    config=Config,
    presets={"paper": Config},
    run=_run,
)
