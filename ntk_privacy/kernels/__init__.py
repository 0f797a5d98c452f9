"""Kernels: empirical and infinite-width neural tangent kernels, and their interop."""

from ntk_privacy.kernels import (
    blockwise,
    empirical,
    infinite,
    infinite_conv,
    named,
    neural_tangents,
    products,
    stationarity,
    structured,
)

__all__ = [
    "blockwise",
    "empirical",
    "infinite",
    "infinite_conv",
    "named",
    "neural_tangents",
    "products",
    "stationarity",
    "structured",
]
