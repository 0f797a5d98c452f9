"""Kernels and their ridge solves on the host in float64, whatever the images hold.

A regression divides by eigenvalues as small as its ridge: at 1e-5 the rounding of
float32 entries alone is some percent of that. Where nothing is traced, the few numbers
of a dense kernel are worth computing in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import blockwise

__all__ = ["add_ridge", "factor", "is_concrete", "kernel", "solve"]


def is_concrete(*arrays: Array | np.ndarray) -> bool:
    """Whether none of the arrays is traced by jit, grad or vmap."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def kernel(
    kernel_fn: KernelFn,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
) -> np.ndarray:
    """Returns the kernel of images in float64, (n1, n2); x2 absent is x1 itself.

    A `kernel_fn` that takes no float64, or answers in less, is asked in the images' own
    dtype, and its rounding is the caller's.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: concrete images.
      x2: concrete images.
    """

    def evaluate(first, second):
        if second is None:
            return np.asarray(blockwise.self_kernel(kernel_fn, first), np.float64)
        return np.asarray(kernel_fn(first, second), np.float64)

    with jax.enable_x64(True):
        wide = [
            None if x is None else jnp.asarray(np.asarray(x).astype(np.float64))
            for x in (x1, x2)
        ]
        try:
            return evaluate(*wide)
        except (TypeError, ValueError):
            pass  # for its own dtype alone
    return evaluate(x1, x2)


def add_ridge(k: np.ndarray, diag_reg: float) -> np.ndarray:
    """Returns k + diag_reg mean(diag(k)) I."""
    return k + diag_reg * np.trace(k) / len(k) * np.eye(len(k))


def factor(k: np.ndarray, diag_reg: float) -> np.ndarray | None:
    """Returns the Cholesky factor of k with its ridge; None if it is not positive.

    A pivot within rounding of 0 is no more positive than one below it.
    """
    ridged = add_ridge(k, diag_reg)
    try:
        root = np.linalg.cholesky(ridged)
    except np.linalg.LinAlgError:
        return None
    least = 16 * np.finfo(np.float64).eps * np.diag(ridged).max()
    return root if np.diag(root).min() ** 2 > least else None


def solve(k: np.ndarray, y: Array | np.ndarray, *, diag_reg: float = 0.0) -> np.ndarray:
    """Returns (k + ridge)^-1 y, NaN if it is singular in float64."""
    y = np.asarray(y, np.float64)
    root = factor(k, diag_reg)
    if root is None:
        return np.full(y.shape, np.nan)
    return np.linalg.solve(root.T, np.linalg.solve(root, y))
