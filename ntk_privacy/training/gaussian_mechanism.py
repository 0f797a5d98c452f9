r"""Privacy of one release with Gaussian noise, exactly.

Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (ICML 2018,
arXiv:1805.06530), theorem 8: noise of standard deviation $\sigma$ times the sensitivity
is $(\varepsilon, \delta)$-private if and only if, with $\mu = 1 / \sigma$,

$$\delta \ge \Phi(\mu / 2 - \varepsilon / \mu)
    - e^\varepsilon \Phi(-\mu / 2 - \varepsilon / \mu).$$

Written with $\varepsilon = \mu t + \mu^2 / 2$ and the scaled complementary error
function, no term leaves the range of numbers, however little noise there is.
"""

import numpy as np
import scipy.special

from ntk_privacy import _checks

__all__ = ["delta", "epsilon"]

_ROOT = np.sqrt(2.0)
_FAR = 40.0  # standard deviations: beyond it nothing is left of a normal variable


def _excess(t: float, mu: float) -> float:
    """Delta for epsilon = mu t + mu^2 / 2."""
    other = np.exp(-(t**2) / 2) * scipy.special.erfcx((mu + t) / _ROOT) / 2
    return float(scipy.special.ndtr(-t) - other)


def delta(noise_multiplier: float, *, epsilon: float) -> float:
    """Returns the least delta for which one release is (epsilon, delta)-private.

    Args:
      noise_multiplier: standard deviation of the noise over the sensitivity: what one
        image, there or not, moves the sum by at most, the norm it was clipped to.
      epsilon: of the guarantee.

    Raises:
      ValueError: a number out of range.
    """
    _checks.positive(noise_multiplier=noise_multiplier)
    _checks.at_least(0, epsilon=epsilon)
    mu = 1 / noise_multiplier
    return max(_excess(epsilon / mu - mu / 2, mu), 0.0)


def epsilon(noise_multiplier: float, *, delta: float = 1e-5) -> float:
    """Returns the least epsilon for which one release is (epsilon, delta)-private.

    Several releases compose to more than this.

    Args:
      noise_multiplier: see `delta`.
      delta: of the guarantee.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> from ntk_privacy.training import gaussian_mechanism
      >>> round(gaussian_mechanism.epsilon(1.0, delta=1e-5), 3)
      4.377
    """
    _checks.positive(noise_multiplier=noise_multiplier)
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie between 0 and 1.")
    mu = 1 / noise_multiplier
    least = -mu / 2  # epsilon is 0
    if _excess(max(least, -_FAR), mu) <= delta:
        return 0.0
    low, high = max(least, -_FAR), _FAR
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _excess(middle, mu) > delta else (low, middle)
    return mu * high + mu**2 / 2
