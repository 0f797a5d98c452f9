"""Images that a kernel cannot tell apart, where the ridge is too small to help."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _programs
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import blockwise, regression

__all__ = ["kernel_error", "refuse"]


def kernel_error(kernel_fn: KernelFn, x: Float[Array, "n ..."]) -> float:
    """Returns what a kernel makes of the difference between an image and its copy.

    Relative to the entry, the largest of 16 images; a few eps where angles near 0 are
    taken with care, sqrt(eps) where they are an arccos of a number near 1.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.
    """
    few = x[np.linspace(0, len(x) - 1, min(16, len(x))).round().astype(int)]
    own = np.asarray(blockwise.diagonal(kernel_fn, few), np.float64)
    copied = np.asarray(jnp.diagonal(kernel_fn(few, jnp.array(few))), np.float64)
    return float(np.max(np.abs(copied - own) / np.where(own > 0, own, 1)))


def refuse(
    kernel_fn: KernelFn,
    x: Float[Array, "n ..."],
    *,
    diag_reg: float,
    block_size: int = 1000,
) -> None:
    """Raises ValueError where `diag_reg` is no more than the kernel's own error.

    That is 16 eps or 8 times `kernel_error`; and then only if two images are as near to
    each other in the kernel. It takes half a product with the kernel.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.
      diag_reg: ridge relative to the mean diagonal.
      block_size: images on either side of a block.

    Raises:
      ValueError: two images are so near to each other; it names both, and a ridge.
    """
    eps = float(jnp.finfo(x.dtype).eps)
    limit = max(16 * eps, 8 * kernel_error(kernel_fn, x))
    if diag_reg > limit:
        return
    root = jnp.sqrt(blockwise.diagonal(kernel_fn, x))
    size = min(block_size, len(x))
    starts = range(0, len(x), size)
    for i in starts:
        for j in (j for j in starts if j >= i):
            rows, columns = slice(i, i + size), slice(j, j + size)
            roots = (root[rows], root[columns])
            found = _first_pair(
                kernel_fn, x[rows], x[columns], *roots, 1 - limit, i == j
            )
            first = int(found)
            if first < 0:
                continue
            row, column = divmod(first, len(root[columns]))
            raise ValueError(
                f"The kernel of x_target is singular with diag_reg={diag_reg} (images "
                f"{i + row} and {j + column} coincide): raise diag_reg, such as "
                f"{regression.larger_ridge(max(diag_reg, limit / 8))}, or remove "
                "duplicate images."
            )


@_programs.jit()
def _first_pair(kernel_fn, x1, x2, root1, root2, nearly, same):
    """Row and column, as one number, of images that coincide; -1 if none do."""
    k = kernel_fn(x1, x2)
    near = k > jnp.asarray(nearly, k.dtype) * root1[:, None] * root2[None, :]
    above = jnp.arange(len(x1))[:, None] < jnp.arange(len(x2))[None, :]
    near = (near & (above | ~same)).ravel()
    return jnp.where(jnp.any(near), jnp.argmax(near), -1)
