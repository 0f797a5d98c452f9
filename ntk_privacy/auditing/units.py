r"""In which units a network saw its images: intensities up to a scale and a shift.

Networks are trained on images less their mean, over their deviation, or from -1 to 1.
What is read back from one has the units that it was trained in; private images lie in
[0, 1]. Where certain images are given ones up to one scale and one shift per channel,
these are the units: two numbers a channel, against all pixels of all pairs.
"""

import contextlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ntk_privacy import _checks
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR

__all__ = ["Units", "fitted", "num_up_to_brightness", "told_by_bounds"]

_ALIKE = 0.95  # correlation of a pair that may be one image in two units
_SURELY_ALIKE = 0.98  # of a pair by itself
_FEWEST = 2  # pairs; one image alone might be bent to fit another
_SAME = 0.02  # of a scale from 1 and of a shift from 0: the told units are right
_DECIMALS = 4


class Units(NamedTuple):
    """Intensities in [0, 1] are `scale` times the network's units, plus `shift`.

    Attributes:
      scale: (c,), per channel.
      shift: (c,), intensity that the network takes as 0.
    """

    scale: Float[np.ndarray, " c"]
    shift: Float[np.ndarray, " c"]

    def intensities(
        self, images: Float[np.ndarray, "n h w c"]
    ) -> Float[np.ndarray, "n h w c"]:
        """Returns images of the network as intensities.

        Args:
          images: in the network's units.
        """
        return np.asarray(images, np.float64) * self.scale + self.shift

    def as_seen(
        self, images: Float[np.ndarray, "n h w c"]
    ) -> Float[np.ndarray, "n h w c"]:
        """Returns intensities as the network takes them.

        Args:
          images: intensities in [0, 1].
        """
        return (np.asarray(images, np.float64) - self.shift) / self.scale


def told_by_bounds(bounds: tuple[Any, Any], depth: int) -> Units:
    """Returns the units in which black and white are the bounds.

    Args:
      bounds: smallest and largest intensity in the network's units, scalar or one per
        channel.
      depth: channels.

    Raises:
      ValueError: the bounds are no two numbers, or sets of one per channel, in order.

    Example:
      >>> from ntk_privacy.auditing import units
      >>> units.told_by_bounds((-1.0, 1.0), 1)
      Units(scale=array([0.5]), shift=array([0.5]))
    """
    low = high = np.zeros(depth)  # refused below
    with contextlib.suppress(ValueError, TypeError):
        low, high = (
            np.broadcast_to(np.asarray(edge, np.float64), (depth,)) for edge in bounds
        )
    sound = bool(np.all(np.isfinite(high - low)) and np.all(high > low))
    if not sound:
        raise ValueError(
            f"bounds={bounds} must be the smallest and the largest intensity that the "
            "network takes, such as 0,1 or -1,1."
        )
    return Units(1 / (high - low), -low / (high - low))


def fitted(
    images: Float[np.ndarray, "n h w c"],
    found: Float[np.ndarray, "m h w c"],
) -> Units | None:
    """Returns the units in which found images are given ones, if others than told.

    Args:
      images: private ones, in [0, 1].
      found: certain ones, by the units that were told.

    Returns:
      Of the found images; None where they are right as they are, or fit in no units.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.auditing import units
      >>> x = np.random.default_rng(0).random((4, 5, 5, 1))
      >>> units.fitted(x, (x[::-1] - 0.5) / 0.25)
      Units(scale=array([0.25]), shift=array([0.5]))
    """
    if min(len(images), len(found)) < _FEWEST:
        return None
    _checks.same_width(
        images=images.reshape(len(images), -1), found=found.reshape(len(found), -1)
    )
    truth, read = (np.asarray(a, np.float64) for a in (images, found))
    alike = _unit(truth) @ _unit(read).T
    rows, columns = reconstruction_curve.greedy_pairs(-alike)
    kept = alike[rows, columns] >= _ALIKE
    if np.sum(kept) < max(_FEWEST, len(rows) / 2):
        return None
    x, z = truth[rows[kept]], read[columns[kept]]
    scale, shift = np.ones(x.shape[-1]), np.zeros(x.shape[-1])
    for channel in range(x.shape[-1]):
        a, b = z[..., channel].ravel(), x[..., channel].ravel()
        spread = np.var(a)
        if spread > 0:
            scale[channel] = np.mean((a - a.mean()) * (b - b.mean())) / spread
        shift[channel] = b.mean() - scale[channel] * a.mean()
    same = np.all(np.abs(scale - 1) < _SAME) and np.all(np.abs(shift) < _SAME)
    if same or np.any(scale <= 0):
        return None
    error = np.mean((z * scale + shift - x) ** 2, axis=(1, 2, 3))
    if np.median(error) > 10 ** (-RECOVERED_PSNR / 10):
        return None
    return Units(scale.round(_DECIMALS), shift.round(_DECIMALS))


def num_up_to_brightness(
    images: Float[np.ndarray, "n h w c"], found: Float[np.ndarray, "m h w c"]
) -> int:
    """Returns how many given images are found ones up to brightness and contrast.

    Of a network without a bias in its first layer images are known up to that, and one
    image alone tells no units. A pair counts that correlates by 0.98 at least, or as
    much with its sign turned, and is within 25 dB by the best scale and shift: a black
    image, which any scale of zero would fit, is no pair of anything.

    Args:
      images: private ones, in [0, 1].
      found: reconstructed ones, in any units.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.auditing import units
      >>> x = np.random.default_rng(0).random((4, 5, 5, 1))
      >>> units.num_up_to_brightness(x, 3 - 7 * x[:3])
      3
    """
    if not len(found):
        return 0
    truth, read = (np.asarray(a, np.float64) for a in (images, found))
    alike = np.abs(_unit(truth) @ _unit(read).T)
    rows, columns = reconstruction_curve.greedy_pairs(-alike)
    kept = alike[rows, columns]
    spread = np.mean((truth - truth.mean(axis=(1, 2), keepdims=True)) ** 2, (1, 2, 3))
    error = spread[rows] * np.maximum(1 - kept**2, 0)
    near = error <= 10 ** (-RECOVERED_PSNR / 10)
    return int(np.sum(near & (kept >= _SURELY_ALIKE)))


def _unit(images: np.ndarray) -> np.ndarray:
    """Returns images without the mean of each channel, of unit norm; (n, pixels)."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    flat = centred.reshape(len(images), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
