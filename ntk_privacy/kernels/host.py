"""Kernels and their ridge solves on the host in float64, whatever the images hold.

A regression divides by eigenvalues as small as its ridge: at 1e-5 the rounding of
float32 entries alone is some percent of that. Where nothing is traced, the few numbers
of a dense kernel are worth computing in float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _versions
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import blockwise

__all__ = ["add_ridge", "factor", "in_float64", "kernel", "solve"]


def kernel(
    kernel_fn: KernelFn,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
) -> np.ndarray:
    """Returns the kernel of images in float64, (n1, n2); x2 absent is x1 itself.

    On a processor of the host: other devices have little float64, or none. A
    `kernel_fn` that takes no float64, or answers in less, is asked in the images' own
    dtype, and its rounding is the caller's. What it fails with there is raised.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x1: concrete images.
      x2: concrete images.
    """

    def evaluate(*images):
        if len(images) == 1:
            return blockwise.self_kernel(kernel_fn, *images)
        return kernel_fn(*images)

    images = [x for x in (x1, x2) if x is not None]
    wide = in_float64(evaluate, *images)
    return np.asarray(evaluate(*images), np.float64) if wide is None else wide


def in_float64(
    fn: Callable[..., Array], *arrays: Float[Array | np.ndarray, "..."]
) -> np.ndarray | None:
    """Returns `fn(*arrays)` in float64, on a processor of the host; None if it cannot.

    Args:
      fn: takes no float64 if it raises for them, or answers in less.
      arrays: concrete.
    """
    with _versions.enable_x64(True), jax.default_device(_processor()):
        wide = [jnp.asarray(np.asarray(x).astype(np.float64)) for x in arrays]
        return np.asarray(fn(*wide), np.float64) if _takes(fn, wide) else None


def _processor() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None  # JAX was told to use none; its own choice then


def _takes(fn: Callable[..., Array], arrays: list[Array]) -> bool:
    """Whether a function maps float64 to float64: nothing of it is computed."""
    try:
        out = jax.eval_shape(fn, *arrays)
    except jax.errors.JAXTypeError:
        return True  # computes on numbers that no trace has
    except (TypeError, ValueError):
        return False  # for its own dtype alone, or at fault there too
    return getattr(out, "dtype", None) == jnp.float64


def add_ridge(k: np.ndarray, diag_reg: float) -> np.ndarray:
    """Returns k + diag_reg mean(diag(k)) I.

    Args:
      k: square kernel.
      diag_reg: ridge relative to the mean diagonal.
    """
    return k + diag_reg * np.trace(k) / len(k) * np.eye(len(k))


def factor(k: np.ndarray, diag_reg: float) -> np.ndarray | None:
    """Returns the Cholesky factor of k with its ridge; None if it is not positive.

    A pivot within rounding of 0 is no more positive than one below it.

    Args:
      k: square kernel, float64.
      diag_reg: ridge relative to the mean diagonal.
    """
    ridged = add_ridge(k, diag_reg)
    try:
        root = np.linalg.cholesky(ridged)
    except np.linalg.LinAlgError:
        return None
    least = 16 * np.finfo(np.float64).eps * np.diag(ridged).max()
    return root if np.diag(root).min() ** 2 > least else None


def solve(k: np.ndarray, y: Array | np.ndarray, *, diag_reg: float = 0.0) -> np.ndarray:
    """Returns (k + ridge)^-1 y, NaN if it is singular in float64.

    Args:
      k: square kernel, float64.
      y: right-hand sides, one row per image.
      diag_reg: ridge relative to the mean diagonal.
    """
    y = np.asarray(y, np.float64)
    root = factor(k, diag_reg)
    if root is None:
        return np.full(y.shape, np.nan)
    return np.linalg.solve(root.T, np.linalg.solve(root, y))
