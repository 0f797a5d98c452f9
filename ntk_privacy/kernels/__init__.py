"""Kernels: empirical and infinite-width neural tangent kernels, and their interop."""

from ntk_privacy import _public
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

__dir__ = _public.names(__name__)
