"""Training-data privacy with neural tangent kernels: what leaks, what hides it."""

from ntk_privacy import kip, rkip

__all__ = ["kip", "rkip"]
