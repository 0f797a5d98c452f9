"""Does what was reconstructed tell a training image from others of its class?

An attacker holds a training image among decoys, and picks the one that lies nearest to
anything reconstructed. By chance one of 99 decoys and the image is right in a hundred.
"""

import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks

__all__ = ["choose_decoys", "rank_among"]


def rank_among(
    images: Float[Array | np.ndarray, "m ..."],
    truth: Float[Array | np.ndarray, "n ..."],
    decoys: Float[Array | np.ndarray, "n k ..."],
) -> Int[np.ndarray, " n"]:
    """Returns the rank of each training image among its decoys, 1 the nearest.

    Candidates are ranked by the L2 distance to the nearest reconstructed image; decoys
    as near as the training image come before it. Without images it comes last.

    Args:
      images: (m, h, w, d), reconstructed ones (intensity); m may be 0.
      truth: (n, h, w, d), training images, in the same units.
      decoys: (n, k, h, w, d), k of each, that were not trained on.

    Raises:
      ValueError: shapes differ, there are no training images, or one is not finite.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation import identification
      >>> pool = np.random.default_rng(0).random((12, 4, 4, 1))
      >>> truth, decoys = pool[:2], pool[2:].reshape(2, 5, 4, 4, 1)
      >>> identification.rank_among(truth[::-1] + 0.01, truth, decoys).tolist()
      [1, 1]
    """
    images, truth, decoys = (np.asarray(a, np.float64) for a in (images, truth, decoys))
    _checks.at_least(1, num_truth=len(truth))
    shape = truth.shape[1:]
    if images.shape[1:] != shape or (len(decoys), *decoys.shape[2:]) != truth.shape:
        raise ValueError(
            f"images have shape {images.shape}, truth {truth.shape} and decoys "
            f"{decoys.shape}: give (m, *image), (n, *image) and (n, k, *image)."
        )
    _checks.finite(images=images, truth=truth, decoys=decoys)
    count = decoys.shape[1]
    if not len(images):
        return np.full(len(truth), count + 1)
    flat = images.reshape(len(images), -1)
    ranks = []
    for image, others in zip(truth, decoys, strict=True):
        candidates = np.concatenate([image[None], others]).reshape(count + 1, -1)
        # Differences, not products: those of an exact image would round to nothing.
        far = np.min([np.sum((candidates - one) ** 2, axis=1) for one in flat], axis=0)
        ranks.append(1 + int(np.sum(far[1:] <= far[0])))
    return np.asarray(ranks)


def choose_decoys(
    labels: Int[np.ndarray, " n"],
    pool: Int[np.ndarray, " p"],
    *,
    count: int = 99,
    seed: int = 0,
) -> Int[np.ndarray, "n count"]:
    """Returns rows of a pool, `count` of each training image's class, none twice.

    Args:
      labels: classes of the training images.
      pool: classes of images that were not trained on.
      count: decoys of each.
      seed: of the choice.

    Raises:
      ValueError: a class of the pool has fewer images than that.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation import identification
      >>> pool = np.arange(20) % 2
      >>> rows = identification.choose_decoys(np.asarray([0, 1]), pool, count=3)
      >>> (rows % 2).tolist()
      [[0, 0, 0], [1, 1, 1]]
    """
    _checks.at_least(1, count=count)
    rng, rows = np.random.default_rng(seed), []
    for label in labels:
        found = np.flatnonzero(pool == label)
        if len(found) < count:
            raise ValueError(
                f"count={count}, but the pool has {len(found)} images of class "
                f"{label}: use fewer, or a larger pool."
            )
        rows.append(rng.permutation(found)[:count])
    return np.asarray(rows).reshape(len(labels), count)
