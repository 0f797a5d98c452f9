"""Kernels: empirical and infinite-width neural tangent kernels, and their interop."""

from ntk_privacy.kernels import infinite

__all__ = ["infinite"]
