"""How much was read back: the reconstruction curve, PSNR, SSIM and counts.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758) and Loo et al., ICLR 2024
(arXiv:2302.01428) match reconstructions greedily to training images. Their text speaks
of squared L2 distances, published plots show plain L2; both are returned here, named.

Host statistics: NumPy, in float64. Only PSNR and SSIM run in JAX (dm-pix), in float32.
"""

from typing import NamedTuple

import dm_pix
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _versions

__all__ = [
    "Evaluation",
    "Matching",
    "evaluate",
    "greedy_pairs",
    "greedy_pairs_by_repeated_minimum",
    "match",
    "squared_distance_at",
]

RECOVERED_PSNR = 25.0
"""Decibels on the [0, 1] scale from which a pair counts as recovered."""

_BLOCK = 65_536


class Matching(NamedTuple):
    """Pairs of the greedy matching, nearest first; k = min(n, m) pairs.

    train_index: row of the training image of each pair.
    reconstruction_index: row of its reconstruction.
    distances: plain L2 distance of each pair (intensity), ascending.
    squared_distances: its square, the paper's curve (intensity^2), ascending.
    """

    train_index: Int[np.ndarray, " k"]
    reconstruction_index: Int[np.ndarray, " k"]
    distances: Float[np.ndarray, " k"]
    squared_distances: Float[np.ndarray, " k"]


class Evaluation(NamedTuple):
    """Figures of a reconstruction; arrays hold one entry per pair, nearest first.

    squared_distances: the reconstruction curve (intensity^2), ascending; inf if the
      reconstruction holds a NaN.
    distances: its square root, the curve of the published plots (intensity).
    psnr: decibels on the [0, 1] scale, reconstructions clipped; inf if equal.
    ssim: structural similarity, at most 1, reconstructions clipped.
    num_recovered: pairs whose PSNR reaches the threshold.
    mean_error: mean of `distances`; mean_squared_error: mean of `squared_distances`;
      inf without pairs.
    train_index, reconstruction_index: rows of each pair.
    """

    squared_distances: Float[np.ndarray, " k"]
    distances: Float[np.ndarray, " k"]
    psnr: Float[np.ndarray, " k"]
    ssim: Float[np.ndarray, " k"]
    num_recovered: int
    mean_error: float
    mean_squared_error: float
    train_index: Int[np.ndarray, " k"]
    reconstruction_index: Int[np.ndarray, " k"]


def greedy_pairs(
    cost: Float[np.ndarray, "n m"],
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Repeatedly takes the least cost and drops its row and column, by one sort.

    Walking the sorted entries and passing over used rows and columns meets the same
    minima in the same order, ties by row, then column.

    Args:
      cost: no NaN; inf goes last.

    Returns:
      Rows and columns of the min(n, m) pairs, in the order taken.
    """
    num_rows, num_columns = cost.shape
    wanted = min(num_rows, num_columns)
    order = np.argsort(cost, axis=None, kind="stable")
    row_used = np.zeros(num_rows, bool)
    column_used = np.zeros(num_columns, bool)
    pairs: list[tuple[int, int]] = []
    for start in range(0, order.size, _BLOCK):
        rows, columns = np.divmod(order[start : start + _BLOCK], num_columns)
        free = ~(row_used[rows] | column_used[columns])
        for i, j in zip(rows[free].tolist(), columns[free].tolist(), strict=True):
            if not (row_used[i] or column_used[j]):
                row_used[i] = column_used[j] = True
                pairs.append((i, j))
        if len(pairs) == wanted:
            break
    taken = np.asarray(pairs, np.int64).reshape(wanted, 2)
    return taken[:, 0], taken[:, 1]


def greedy_pairs_by_repeated_minimum(
    cost: Float[np.ndarray, "n m"],
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """The definition of `greedy_pairs`, word for word: the slow twin for tests.

    Args:
      cost: no NaN; inf goes last.
    """
    rows = list(range(cost.shape[0]))
    columns = list(range(cost.shape[1]))
    pairs = []
    while rows and columns:
        left = cost[np.ix_(rows, columns)]
        a, b = np.unravel_index(np.argmin(left), left.shape)
        pairs.append((rows.pop(a), columns.pop(b)))
    taken = np.asarray(pairs, np.int64).reshape(len(pairs), 2)
    return taken[:, 0], taken[:, 1]


def _squared_distances(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """Returns ||a_i - b_j||^2 by one matrix product: exact enough to rank pairs."""
    norms_a = np.sum(a * a, axis=1)[:, None]
    norms_b = np.sum(b * b, axis=1)[None, :]
    return np.maximum(norms_a + norms_b - 2 * (a @ b.T), 0.0)


def match(
    images: Float[Array | np.ndarray, "n h w c"],
    reconstructions: Float[Array | np.ndarray, "m h w c"],
) -> Matching:
    """Matches reconstructions to training images greedily, nearest pair first.

    Args:
      images: training images, in any units (intensity below).
      reconstructions: candidates in the same units, usually m = 2 n of them. Those
        that hold a NaN or an infinity are matched last, at distance inf.

    Returns:
      min(n, m) pairs, their distances ascending; none where an attack found nothing.

    Raises:
      ValueError: no image, or a NaN among the training images.
    """
    shapes = np.shape(images), np.shape(reconstructions)
    if [len(shape) for shape in shapes] != [4, 4] or shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            f"images have shape {shapes[0]} but reconstructions {shapes[1]}: give both "
            "as (n, height, width, channels), of one size."
        )
    _checks.at_least(1, num_images=images.shape[0])
    _checks.finite(images=images)
    truth = np.asarray(images, np.float64).reshape(images.shape[0], -1)
    found = np.asarray(reconstructions, np.float64).reshape(
        len(reconstructions), truth.shape[1]
    )
    usable = np.all(np.isfinite(found), axis=1)
    cost = np.full((len(truth), len(found)), np.inf)
    cost[:, usable] = _squared_distances(truth, found[usable])
    rows, columns = greedy_pairs(cost)
    # The product above cancels digits when a pair is close: take the pairs' own
    # differences for the figures.
    squared = np.full(len(rows), np.inf)
    sound = usable[columns]
    squared[sound] = np.sum((truth[rows[sound]] - found[columns[sound]]) ** 2, axis=1)
    order = np.argsort(squared, kind="stable")
    rows, columns, squared = rows[order], columns[order], squared[order]
    return Matching(rows, columns, np.sqrt(squared), squared)


def squared_distance_at(psnr: float | int, image_shape: tuple[int, int, int]) -> float:
    """Returns the squared L2 distance of two images whose PSNR is `psnr` decibels.

    Args:
      psnr: decibels on the [0, 1] scale.
      image_shape: (height, width, depth) in pixels.
    """
    return float(np.prod(image_shape)) * 10.0 ** (-psnr / 10.0)


def _psnr_and_ssim(
    truth: Float[np.ndarray, "k h w c"], found: Float[np.ndarray, "k h w c"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Returns both metrics on the [0, 1] scale; SSIM's window is 11 or what fits."""
    if not len(truth):
        return np.zeros(0), np.zeros(0)
    side = min(truth.shape[1:3])
    window = min(11, side if side % 2 else side - 1)
    a, b = truth.astype(np.float32), found.astype(np.float32)
    # dm-pix mixes dtypes when float64 is on: one precision for every caller.
    with _versions.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        psnr = dm_pix.psnr(a, b)
        ssim = dm_pix.ssim(a, b, filter_size=window)
        return np.asarray(psnr, np.float64), np.asarray(ssim, np.float64)


def evaluate(
    images: Float[Array | np.ndarray, "n h w c"],
    reconstructions: Float[Array | np.ndarray, "m h w c"],
    *,
    mean: Float[Array | np.ndarray, " c"],
    recovered_psnr: float | int = RECOVERED_PSNR,
) -> Evaluation:
    """Matches reconstructions to training images and measures every pair.

    Distances are those of the arrays as given. For PSNR and SSIM alone, the mean is
    added back and reconstructions are clipped to [0, 1], so a pair's PSNR is never
    below what its distance says. SSIM's window is 11 pixels, or the largest odd number
    that fits (7 for the 8x8 digits).

    Args:
      images: training images less the mean, as `data.load` gives them (intensity).
      reconstructions: candidates in the same units.
      mean: per channel, what was subtracted (intensity).
      recovered_psnr: decibels from which a pair counts as recovered.

    Returns:
      The figures of min(n, m) pairs: with fewer reconstructions than images, images
      without a partner enter no mean. No reconstruction is a result: 0 recovered,
      empty curves, and means that are inf.

    Raises:
      ValueError: no images, a NaN among them, or images plus mean outside [0, 1].

    Example:
      >>> import numpy as np
      >>> from ntk_privacy import evaluation
      >>> rng, mean = np.random.default_rng(0), np.full(1, 0.5)
      >>> images = rng.uniform(-0.5, 0.5, (2, 8, 8, 1))
      >>> found = np.stack([np.zeros((8, 8, 1)), images[0] + 0.001])
      >>> measured = evaluation.evaluate(images, found, mean=mean)
      >>> measured.num_recovered, measured.train_index.tolist()
      (1, [0, 1])
    """
    pairs = match(images, reconstructions)
    mean = np.asarray(mean, np.float64)[None, None, None, :]
    shifted = np.asarray(images, np.float64) + mean
    truth = shifted[pairs.train_index]
    found = np.asarray(reconstructions, np.float64)[pairs.reconstruction_index] + mean
    low, high = float(shifted.min()), float(shifted.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"images plus mean span [{low:.4g}, {high:.4g}] but PSNR and SSIM need "
            "[0, 1]: give the images as loaded and the mean that was subtracted."
        )
    some = len(truth) > 0
    psnr, ssim = _psnr_and_ssim(truth, np.clip(found, 0.0, 1.0))
    return Evaluation(
        squared_distances=pairs.squared_distances,
        distances=pairs.distances,
        psnr=psnr,
        ssim=ssim,
        num_recovered=int(np.sum(psnr >= recovered_psnr)),
        mean_error=float(np.mean(pairs.distances)) if some else np.inf,
        mean_squared_error=float(np.mean(pairs.squared_distances)) if some else np.inf,
        train_index=pairs.train_index,
        reconstruction_index=pairs.reconstruction_index,
    )
