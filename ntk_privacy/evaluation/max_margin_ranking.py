"""What the max-margin attack found: nearest candidates, averaged, stretched, ranked.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758) and their released code. The
candidates of all runs are pooled; each training image takes those that are nearest in
normalised cross-correlation, which neither brightness nor contrast of a candidate
changes; pairs are ranked by SSIM.

An image takes its nearest candidate whether the attack found it or not, and may share
it: the ranking of images that the network never saw is the level to compare with.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks
from ntk_privacy.data.dataset import Dataset
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.training import logistic

__all__ = [
    "Ranking",
    "compared",
    "figures",
    "normalized_distances",
    "rank",
    "stretch",
]

NUM_BEST = 10
"""Pairs that the published score is the mean of."""


class Ranking(NamedTuple):
    """One entry per training image, the best pair first.

    train_index: row of the training image.
    reconstruction_index: row of its nearest candidate.
    distances: their normalised distance, 0 to 4 (see `normalized_distances`).
    images: what stands for the candidate: mean added, stretched to [0, 1].
    ssim: structural similarity to the training image, descending.
    mean_ssim_best: over the first 10 pairs, or all if there are fewer.
    mean_dssim_best: (1 - SSIM) / 2 over the same pairs: the published score.
    """

    train_index: Int[np.ndarray, " n"]
    reconstruction_index: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    images: Float[np.ndarray, "n h w c"]
    ssim: Float[np.ndarray, " n"]
    mean_ssim_best: float
    mean_dssim_best: float


def _halve(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h2 w2 c"]:
    n, h, w, c = images.shape
    shape = (n, max(h // 2, 1), max(w // 2, 1), c)
    return np.asarray(jax.image.resize(jnp.asarray(images), shape, "cubic"), np.float64)


def _z_score(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
    """Mean 0 and variance 1 per image and channel; a constant channel becomes 0."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    spread = images.std(axis=(1, 2), keepdims=True)
    scored = centred / np.where(spread > 0, spread, 1.0)
    return scored.reshape(len(images), -1)


def normalized_distances(
    images: Float[Array | np.ndarray, "n h w c"],
    reconstructions: Float[Array | np.ndarray, "m h w c"],
    *,
    downsample: bool = True,
) -> Float[np.ndarray, "n m"]:
    """Returns mean squared distances of z-scored images: 2 - 2 correlation.

    Args:
      images: training images.
      reconstructions: candidates; brightness and contrast do not matter.
      downsample: halve both sides first (bicubic), as published.

    Returns:
      0 for equal up to brightness and contrast, 2 if unrelated, 4 for a negative; inf
      where a candidate holds a NaN.
    """
    truth = np.asarray(images, np.float64)
    found = np.asarray(reconstructions, np.float64)
    usable = np.all(np.isfinite(found), axis=(1, 2, 3))
    found = np.where(usable[:, None, None, None], found, 0.0)
    if downsample:
        truth, found = _halve(truth), _halve(found)
    a, b = _z_score(truth), _z_score(found)
    squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None, :] - 2 * a @ b.T
    return np.where(usable[None, :], np.maximum(squares, 0.0) / a.shape[1], np.inf)


def stretch(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    """Maps each image's least value to 0 and its greatest to 1; constant images to 0.

    Args:
      images: any intensities.
    """
    low = images.min(axis=(1, 2, 3), keepdims=True)
    span = images.max(axis=(1, 2, 3), keepdims=True) - low
    return (images - low) / np.where(span > 0, span, 1.0)


def rank(
    images: Float[Array | np.ndarray, "n h w c"],
    reconstructions: Float[Array | np.ndarray, "m h w c"],
    *,
    mean: Float[Array | np.ndarray, "h w c"],
    vote: Literal["nearest", "mean"] = "nearest",
    ratio: float | int = 1.1,
    downsample: bool = True,
) -> Ranking:
    """Finds each training image among the candidates and ranks the pairs by SSIM.

    Args:
      images: training images less `mean`.
      reconstructions: candidates in the same units; concatenate those of several runs.
      mean: mean image of the training set, what was subtracted (intensity in [0, 1]).
      vote: what stands for an image: its "nearest" candidate, or the "mean" of all
        whose distance is within `ratio` of the least.
      ratio: at least 1.
      downsample: compare at half the resolution, as published.

    Raises:
      ValueError: no image, no finite candidate, a NaN among the images, an option that
        does not exist, or images plus mean outside [0, 1].
    """
    _checks.at_least(
        1, num_images=len(images), num_reconstructions=len(reconstructions)
    )
    _checks.at_least(1, ratio=ratio)
    _checks.one_of(("nearest", "mean"), vote=vote)
    _checks.finite(images=images, mean=mean)
    mean = np.asarray(mean, np.float64)[None]
    truth = np.asarray(images, np.float64) + mean
    if truth.min() < -1e-3 or truth.max() > 1 + 1e-3:
        raise ValueError(
            f"images plus mean span [{truth.min():.4g}, {truth.max():.4g}] but SSIM "
            "needs [0, 1]: give the images and the mean image that was subtracted."
        )
    distances = normalized_distances(images, reconstructions, downsample=downsample)
    nearest = np.argmin(distances, axis=1)
    least = distances.min(axis=1)
    if not np.isfinite(least).all():
        raise ValueError(
            "reconstructions hold a NaN or an infinity in every image: lower the "
            "attack's learning rates."
        )
    found = np.asarray(reconstructions, np.float64)
    if vote == "mean":
        votes = (distances <= ratio * least[:, None]).astype(np.float64)
        votes /= votes.sum(axis=1, keepdims=True)
        sound = np.isfinite(distances[0])[:, None, None, None]
        chosen = np.einsum("nm,mhwc->nhwc", votes, np.where(sound, found, 0.0))
    else:
        chosen = found[nearest]
    shown = stretch(chosen + mean)
    _, ssim = reconstruction_curve._psnr_and_ssim(truth, shown)
    order = np.argsort(-ssim, kind="stable")
    best = float(np.mean(ssim[order[:NUM_BEST]]))
    return Ranking(
        train_index=order,
        reconstruction_index=nearest[order],
        distances=least[order],
        images=shown[order],
        ssim=ssim[order],
        mean_ssim_best=best,
        mean_dssim_best=(1 - best) / 2,
    )


def compared(
    dataset: Dataset, reconstructions: Float[Array | np.ndarray, "m h w c"]
) -> tuple[Ranking, Ranking, Float[np.ndarray, " n"]]:
    """Ranks candidates against the training images, and against as many unseen ones.

    Args:
      dataset: as `data.load` gives it.
      reconstructions: candidates less the mean image, as the attack returns them.

    Returns:
      The ranking; that of unseen images, what no leak at all would score; and the PSNR
      (decibels on [0, 1]) of each pair of the first.

    Raises:
      ValueError: see `rank`.
    """
    x, centre = logistic.preprocess(dataset.x_train)
    mean = centre + dataset.mean
    ranking = rank(x, reconstructions, mean=mean)
    unseen = rank(dataset.x_test[: len(x)] - centre, reconstructions, mean=mean)
    apart = dataset.x_train[ranking.train_index] + dataset.mean - ranking.images
    return ranking, unseen, -10 * np.log10(np.mean(apart**2, axis=(1, 2, 3)))


def figures(ranking: Ranking, unseen: Ranking) -> dict[str, Any]:
    """Returns the scores of a ranking beside those of images that nobody trained on.

    Args:
      ranking: of the training images.
      unseen: of others; see `compared`.
    """
    return {
        "ssim": ranking.ssim,
        "mean_ssim_best_10": ranking.mean_ssim_best,
        "mean_ssim_best_10_of_unseen_images": unseen.mean_ssim_best,
        "mean_dssim_best_10": ranking.mean_dssim_best,
    }
