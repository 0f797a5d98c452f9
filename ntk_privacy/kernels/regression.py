r"""Kernel ridge regression: duals and predictions.

$\alpha = (K + \lambda \bar k I)^{-1} y$ and $f(x) = K(x, X) \alpha$, where $\lambda$ is
`diag_reg` and $\bar k$ the mean diagonal of $K$: the ridge has no unit.
"""

import jax
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import blockwise

__all__ = ["check_kernel_fn", "check_solvable", "duals", "larger_ridge", "predict"]


def check_kernel_fn(kernel_fn: KernelFn, x: Float[Array, "n ..."]) -> None:
    """Raises ValueError unless `kernel_fn` maps n and 1 images to an (n, 1) array."""
    out = jax.eval_shape(kernel_fn, x, x[:1])
    shape = getattr(out, "shape", None)
    if shape != (len(x), 1) or not isinstance(out, jax.ShapeDtypeStruct):
        told = type(out).__name__ if shape is None else f"shape {shape}"
        raise ValueError(
            f"kernel_fn returns {told} for {len(x)} and 1 images, not {(len(x), 1)}: "
            "take the trace over outputs, and wrap a kernel_fn of neural-tangents in "
            "kernels.neural_tangents.as_kernel_fn."
        )


def check_solvable(
    name: str,
    k: Float[Array, "n n"],
    diag_reg: float,
    *,
    ridge_helps: bool = True,
) -> None:
    """Raises ValueError if k with its ridge is singular in its own precision.

    Args:
      name: of the kernel, for the message.
      k: concrete, without the ridge.
      diag_reg: ridge relative to the mean diagonal.
      ridge_helps: whether the message names a greater ridge as remedy.
    """
    ridged = np.asarray(_linalg.add_ridge(k, diag_reg))
    if not np.isfinite(ridged).all():
        raise ValueError(f"{name} has NaN or infinite entries: look at its images.")
    eps = np.finfo(ridged.dtype).eps
    why = ""
    if diag_reg <= eps:
        # Kernels with an arccos are exact to sqrt(eps) only where images coincide,
        # enough to hide it from Cholesky.
        root = np.sqrt(np.diag(ridged))
        near = np.triu(ridged > (1 - 2 * np.sqrt(eps)) * np.outer(root, root), 1)
        if near.any():
            i, j = np.argwhere(near)[0]
            why = f" (images {i} and {j} coincide)"
    try:
        pivots = np.diag(np.linalg.cholesky(ridged)) ** 2
    except np.linalg.LinAlgError:
        pivots = np.zeros(1)
    # Cholesky of a singular matrix may pass on rounding alone.
    if why or pivots.min() <= 16 * eps * np.diag(ridged).max():
        if not ridge_helps:
            raise ValueError(
                f"{name} is singular{why}: remove duplicate images; no diag_reg makes "
                "up for them here."
            )
        raise ValueError(
            f"{name} is singular with diag_reg={diag_reg}{why}: raise diag_reg, such "
            f"as {larger_ridge(diag_reg)}, or remove duplicate images."
        )


def larger_ridge(diag_reg: float) -> str:
    """Returns a ridge to name as remedy where `diag_reg` is too small."""
    return "1e-5" if diag_reg < 1e-5 else f"{10 * diag_reg:.1g}"


def duals(
    kernel_fn: KernelFn,
    x: Float[Array, "n ..."],
    y: Float[Array, "n c"],
    *,
    diag_reg: float = 1e-5,
) -> Float[Array, "n c"]:
    """Returns the multipliers of kernel ridge regression, by Cholesky.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.
      y: targets.
      diag_reg: ridge relative to the mean diagonal.

    Raises:
      ValueError: lengths differ, or the kernel is singular.
    """
    _checks.same_length(x=x, y=y)
    _checks.at_least(0, diag_reg=diag_reg)
    k = blockwise.self_kernel(kernel_fn, x)
    check_solvable("The kernel", k, diag_reg)
    return _linalg.solve_ridge(k, y, diag_reg=diag_reg)


def predict(
    kernel_fn: KernelFn,
    x_train: Float[Array, "n ..."],
    duals: Float[Array, "n c"],
    x: Float[Array, "p ..."],
    *,
    block_size: int = 1000,
) -> Float[Array, "p c"]:
    """Returns K(x, x_train) duals, at most `block_size` squared entries at a time.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x_train: images that the duals belong to.
      duals: of `duals`.
      x: images to predict.
      block_size: images on either side of a block.
    """
    _checks.same_length(x_train=x_train, duals=duals)
    return blockwise.product(kernel_fn, x, x_train, duals, block_size=block_size)
