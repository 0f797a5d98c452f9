"""Kernels: empirical and infinite-width neural tangent kernels, and their interop."""

from ntk_privacy.kernels import infinite, infinite_conv

__all__ = ["infinite", "infinite_conv"]
