r"""Kernel ridge regression: duals and predictions.

$\alpha = (K + \lambda \bar k I)^{-1} y$ and $f(x) = K(x, X) \alpha$, where $\lambda$ is
`diag_reg` and $\bar k$ the mean diagonal of $K$: the ridge has no unit.

Kernels and solves are float64 on the host, and duals have the dtype of the targets. So
what is left of rounding is that of the duals: at most eps/2 of each, and
sqrt(sum_j (K_ij a_j)^2) eps/2 or so in a prediction. `duals` refuses what would be more
than a tenth of the targets.

The ridge relative to the mean diagonal is that of the released code of Loo et al., ICLR
2024 (arXiv:2302.01428).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import KernelFn
from ntk_privacy.kernels import blockwise, host

__all__ = [
    "check_data",
    "check_kernel_fn",
    "check_solvable",
    "coinciding",
    "duals",
    "error_at_copies",
    "larger_ridge",
    "may_blur",
    "predict",
]

# What an arccos of a correlation rounded to float32 may be off by: sqrt(eps).
_BLUNT = float(jnp.finfo(jnp.float32).eps) ** 0.5


def check_data(
    images: Mapping[str, Any], targets: Mapping[str, Any], *, diag_reg: float
) -> None:
    """Raises ValueError unless a regression can be made of images and targets.

    Floating-point numbers, all of them finite where they can be looked at; targets with
    a column per output; a ridge of at least 0.

    Args:
      images: by name.
      targets: by name, likewise traced or not.
      diag_reg: ridge relative to the mean diagonal.

    Raises:
      ValueError: one of these does not hold; it names the array.
    """
    for name, rows in targets.items():
        if jnp.ndim(rows) != 2:
            raise ValueError(
                f"{name} has shape {jnp.shape(rows)}: give one row per image and one "
                f"column per output, such as {name}[:, None]."
            )
    for name, rows in {**images, **targets}.items():
        # Integers would round what is returned in their own dtype.
        _checks.floating(**{name: jnp.asarray(rows)})
        if _checks.concrete(rows):
            _checks.finite_data(**{name: rows})
    if _checks.concrete(diag_reg):
        _checks.at_least(0, diag_reg=diag_reg)


def check_kernel_fn(kernel_fn: KernelFn, x: Float[Array, "n ..."]) -> None:
    """Raises ValueError unless `kernel_fn` maps n and 1 images to an (n, 1) array.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.

    Raises:
      ValueError: it returns something else.
    """
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
    k: Float[Array | np.ndarray, "n n"],
    diag_reg: float,
    *,
    ridge_helps: bool = True,
    dtype: jnp.dtype | None = None,
    error: float = 0.0,
) -> None:
    """Raises ValueError if k with its ridge is singular in its own precision.

    Args:
      name: of the kernel, for the message.
      k: concrete, without the ridge.
      diag_reg: ridge relative to the mean diagonal.
      ridge_helps: whether the message names a greater ridge as remedy.
      dtype: precision that the solution is held in, that of k when absent.
      error: `error_at_copies` of the kernel: images nearer to each other than it can
        tell need a ridge that is greater.

    Raises:
      ValueError: it is singular or not finite; it names two images that coincide, if
        any, and the remedy.
    """
    ridged = host.add_ridge(np.asarray(k), diag_reg).astype(np.asarray(k).dtype)
    if not np.isfinite(ridged).all():
        raise ValueError(f"{name} has NaN or infinite entries: look at its images.")
    own = float(jnp.finfo(ridged.dtype).eps)
    eps = max(own, float(jnp.finfo(dtype or ridged.dtype).eps))
    why = ""
    if diag_reg <= max(eps, 8 * error):
        # A kernel_fn with an arccos of a number near 1 is exact to sqrt(eps) only where
        # images coincide, enough to hide it from Cholesky.
        root = np.sqrt(np.diag(ridged))
        blunt = 8 * error if diag_reg > eps else 2 * np.sqrt(own)
        nearly = 1 - max(blunt, 8 * error, 16 * eps)
        near = np.triu(ridged > nearly * np.outer(root, root), 1)
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
            f"as {larger_ridge(max(diag_reg, error))}, or remove duplicate images."
        )


def error_at_copies(
    kernel_fn: KernelFn, x: Float[Array, "n ..."], k: Float[np.ndarray, "n n"]
) -> float:
    """Returns what a kernel makes of the difference between an image and its copy.

    Relative to the entry, the largest of 16 images: some eps where angles near 0 are
    taken with care, sqrt(eps) where they are an arccos of a number near 1.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.
      k: their kernel, by `host.kernel`.
    """
    few = np.linspace(0, len(x) - 1, min(16, len(x))).round().astype(int)
    own = np.diagonal(k)[few]
    images = jnp.asarray(x)[few]
    copied = np.diagonal(host.kernel(kernel_fn, images, jnp.array(images)))
    return float(np.max(np.abs(copied - own) / np.where(own > 0, own, 1)))


def larger_ridge(diag_reg: float) -> str:
    """Returns a ridge to name as remedy where `diag_reg` is too small.

    Args:
      diag_reg: ridge relative to the mean diagonal.
    """
    return "1e-5" if diag_reg < 1e-5 else f"{10 * diag_reg:.1g}"


def duals(
    kernel_fn: KernelFn,
    x: Float[Array, "n ..."],
    y: Float[Array, "n c"],
    *,
    diag_reg: float = 1e-5,
) -> Float[Array, "n c"]:
    """Returns the multipliers of kernel ridge regression, by Cholesky in float64.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x: images.
      y: targets.
      diag_reg: ridge relative to the mean diagonal.

    Raises:
      ValueError: lengths differ, targets that are no finite floating-point numbers, the
        kernel is singular or errs where images coincide by more than the ridge makes up
        for, the dtype of `y` is too coarse or too narrow for the duals, or traced.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.kernels import infinite, regression
      >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
      >>> ntk = infinite.mlp(depth=1)
      >>> regression.duals(ntk, x, jnp.array([[1.0], [-1.0]])).shape
      (2, 1)
    """
    if not _checks.concrete(x, y):
        raise ValueError(
            "duals looks at the kernel and solves on the host, so it cannot be traced: "
            "call it outside of jit, vmap and grad."
        )
    _checks.same_length(x=x, y=y)
    _checks.floating(y=jnp.asarray(y))
    _checks.finite_data(y=y)
    _checks.at_least(0, diag_reg=diag_reg)
    k = host.kernel(kernel_fn, x)
    dtype = jnp.result_type(y)
    error = 0.0
    if may_blur(k, diag_reg):
        error = error_at_copies(kernel_fn, x, k)
    check_solvable("The kernel", k, diag_reg, dtype=dtype, error=error)
    found = host.solve(k, y, diag_reg=diag_reg)
    _check_coarseness(k, found, y, dtype, diag_reg)
    if np.abs(found).max() > float(jnp.finfo(dtype).max):
        raise ValueError(
            f"Duals of {np.abs(found).max():.1e} leave {jnp.dtype(dtype).name}: scale "
            "the images up, or give the targets in float64."
        )
    return jnp.asarray(found.astype(dtype))


def may_blur(k: Float[Array | np.ndarray, "n n"], diag_reg: float) -> bool:
    """Whether two images are so near that an arccos in float32 may not tell them.

    Args:
      k: concrete, without the ridge.
      diag_reg: ridge relative to the mean diagonal; a great one makes up for that.
    """
    return diag_reg <= 8 * _BLUNT and coinciding(k) is not None


def coinciding(k: Float[Array | np.ndarray, "n n"]) -> tuple[int, int] | None:
    """Returns the first two images that an arccos in float32 may not tell, or None.

    Args:
      k: concrete, without the ridge.
    """
    k = np.asarray(k, np.float64)
    root = np.sqrt(np.diag(k))
    near = np.triu(k > (1 - 8 * _BLUNT) * np.outer(root, root), 1)
    if not near.any():
        return None
    i, j = np.argwhere(near)[0]
    return int(i), int(j)


def _check_coarseness(k, duals, y, dtype, diag_reg) -> None:
    """Raises ValueError where duals in `dtype` would predict something else."""
    eps = float(jnp.finfo(dtype).eps)
    # Roundings of n duals are independent of each other, eps / 4 of each on average.
    rounding = eps / 4 * np.sqrt(np.max((k * k) @ (duals * duals)))
    largest = np.abs(np.asarray(y).astype(np.float64)).max()
    if rounding > 0.1 * largest:
        raise ValueError(
            f"Duals of {np.abs(duals).max():.1e} in {jnp.dtype(dtype).name} leave "
            f"predictions uncertain by {rounding:.1e}, with targets of {largest:.1e}, "
            f"at diag_reg={diag_reg}: raise diag_reg, such as "
            f"{larger_ridge(diag_reg)}, or give the targets in float64."
        )


def predict(
    kernel_fn: KernelFn,
    x_train: Float[Array, "n ..."],
    duals: Float[Array, "n c"],
    x: Float[Array, "p ..."],
    *,
    block_size: int = 1000,
) -> Float[Array, "p c"]:
    """Returns K(x, x_train) duals, at most `block_size` squared entries at a time.

    In float64 but for the result, unless traced.

    Args:
      kernel_fn: `(x1, x2) -> (n1, n2)`.
      x_train: images that the duals belong to.
      duals: of `duals`.
      x: images to predict.
      block_size: images on either side of a block.

    Raises:
      ValueError: x_train and duals differ in length, duals without a column per output,
        or block_size below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.kernels import infinite, regression
      >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
      >>> ntk, y = infinite.mlp(depth=1), jnp.array([[1.0], [-1.0]])
      >>> alpha = regression.duals(ntk, x, y)
      >>> bool(abs(regression.predict(ntk, x, alpha, x) - y).max() < 1e-2)
      True
    """
    _checks.same_length(x_train=x_train, duals=duals)
    _checks.at_least(1, block_size=block_size)
    if jnp.ndim(duals) != 2:
        raise ValueError(
            f"duals has shape {jnp.shape(duals)}: give one row per training image and "
            "one column per output."
        )
    if not _checks.concrete(x_train, duals, x):
        return blockwise.product(kernel_fn, x, x_train, duals, block_size=block_size)
    out = np.zeros((len(x), duals.shape[1]))
    wide = np.asarray(duals).astype(np.float64)
    for i in range(0, len(x), block_size):
        for j in range(0, len(x_train), block_size):
            rows, columns = slice(i, i + block_size), slice(j, j + block_size)
            k = host.kernel(kernel_fn, x[rows], x_train[columns])
            out[rows] += k @ wide[columns]
    return jnp.asarray(out.astype(duals.dtype))
