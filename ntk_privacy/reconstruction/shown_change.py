"""What a first layer's change shows of images: factors, decay, a bias that fits."""

import numpy as np

from ntk_privacy.reconstruction import change_factors, first_layer, unit_verdict
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["bias_change", "coarse", "factorized", "fitting"]

_FIT = 0.02  # share of a bias's change that may lie outside the row space
_NOISY = 0.3  # the same, where the kernel's noise is as large
_NOISES = 2.0  # of the kernel's noise
_CLEAN = 1e4  # gap behind which no weight decay hides
_DECAYED = 80  # images at most, for a first try at weight decay


def coarse(bias: np.ndarray, kernel: np.ndarray) -> float:
    """How much more coarsely a bias is rounded than the kernel.

    Args:
      bias: as it was sent.
      kernel: as it was sent.
    """
    sizes = [np.sqrt(np.mean(leaf**2)) for leaf in (bias, kernel)]
    return max(1.0, float(sizes[0] / max(sizes[1], 1e-300)))


def factorized(
    read: first_layer.FirstLayer,
    plain: change_factors.Factors,
    num_images: int | None,
) -> tuple[change_factors.Factors, float] | Verdict:
    """Factors and the share of old weights that is left; or why there are none.

    Args:
      read: the first layer before and after training.
      plain: factors of the plain change.
      num_images: N, if it is known.
    """
    change = read.kernel_t - read.kernel_0
    seen = plain.gap <= _CLEAN and change_factors.decays(read.kernel_0, change, plain)
    if plain.shown and not seen:
        return plain, 1.0
    tried = plain
    if np.any(read.kernel_0):
        for rank in (_DECAYED, None):
            decay = change_factors.decay(read.kernel_0, read.kernel_t, rank=rank)
            tried = change_factors.factorize(read.kernel_t - decay * read.kernel_0)
            if tried.shown and (not plain.shown or tried.gap > 3 * plain.gap):
                return tried, decay
    if plain.shown:
        return plain, 1.0
    if num_images is None:
        return unit_verdict.hidden(max(plain.gap, tried.gap), "")
    told = change_factors.factorize(change, rank=num_images)
    if told.gap < change_factors.CLEAR / 2:
        return unit_verdict.hidden(told.gap, f"; N of {num_images} was told")
    return told, 1.0


def fitting(
    factors: change_factors.Factors, change: np.ndarray, *, share: float = _FIT
) -> np.ndarray | None:
    """The bias's change, if it is a sum of the rows that the kernel's is, and noise.

    That of the kernel's entries, where it was added to a gradient, is in the bias too.

    Args:
      factors: of the kernel's change.
      change: of the bias.
      share: of it that may lie outside, besides that noise.
    """
    size = float(np.linalg.norm(change))
    rest = change - factors.right.T @ (factors.right @ change)
    noise = _NOISES * factors.noise * np.sqrt(len(change))
    most = max(share * size, min(noise, _NOISY * size))
    return change if size > 0 and np.linalg.norm(rest) < most else None


def bias_change(factors, before, after, decay: float) -> np.ndarray | None:
    """The bias's change, where biases decay too or do not.

    Args:
      factors: of the kernel's change.
      before: bias before training.
      after: bias after it.
      decay: share of old kernels that is left.
    """
    for share in dict.fromkeys((decay, 1.0)):
        change = fitting(factors, after - share * before)
        if change is not None:
            return change
    return None
