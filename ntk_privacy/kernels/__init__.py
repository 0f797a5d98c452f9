"""Kernels: empirical and infinite-width neural tangent kernels, and their interop."""

from ntk_privacy.kernels import (
    empirical,
    infinite,
    infinite_conv,
    stationarity,
    structured,
)

__all__ = ["empirical", "infinite", "infinite_conv", "stationarity", "structured"]
