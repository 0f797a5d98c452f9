r"""What the precision of a search leaves of its gradient, measured and told.

A search in float32 divides by eigenvalues as small as its ridge, and a kernel whose
angles near 0 are an arccos of a rounded number (neural-tangents; ours, traced, in
activations after a pooling) is off by up to $\sqrt\epsilon$ where images all but
coincide. Neither shows in a loss that falls.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _linalg, _programs
from ntk_privacy._types import KernelFn
from ntk_privacy.distillation import coincident_targets
from ntk_privacy.kernels import blockwise, host, regression

__all__ = ["check_start", "gradient_error", "warn_where_lost"]

# The share of a gradient that may be rounding before a person is told.
_TOLD = 0.1


def gradient_error(
    kernel_fn: KernelFn,
    images: Float[Array, "m ..."],
    labels: Float[Array, "m k"],
    *,
    diag_reg: float,
) -> float:
    r"""Returns how far the gradient of the images' energy is off in their own dtype.

    Of $\tfrac12 y^\top (K + \lambda \bar k I)^{-1} y$ in the images, as KIP and RKIP
    differentiate it; relative to the same in float64, in norm. NaN where either is, or
    where the kernel takes no float64.

    Args:
      kernel_fn: `(x1, x2) -> (m, m)`, differentiable.
      images: synthetic images.
      labels: theirs.
      diag_reg: ridge relative to the mean diagonal (dimensionless).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import rounding
      >>> from ntk_privacy.kernels import infinite
      >>> x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
      >>> y = jnp.array([[1.0], [-1.0], [1.0]])
      >>> ntk = infinite.mlp(depth=1)
      >>> bool(rounding.gradient_error(ntk, x, y, diag_reg=1e-5) < 0.1)
      True
    """
    gradient = functools.partial(_gradient, kernel_fn, diag_reg)
    exact = host.in_float64(gradient, images, labels)
    if exact is None:
        return float("nan")
    scale = np.linalg.norm(exact)
    off = np.linalg.norm(np.asarray(gradient(images, labels), np.float64) - exact)
    return float(off / scale) if scale else 0.0


@_programs.jit(num_static=2)
def _gradient(kernel_fn: KernelFn, diag_reg: float, x: Array, y: Array) -> Array:
    def energy(x: Array) -> Array:
        k = blockwise.self_kernel(kernel_fn, x)
        return 0.5 * jnp.sum(y * _linalg.solve_ridge(k, y, diag_reg=diag_reg))

    return jax.grad(energy)(x)


def check_start(
    kernel_fn: KernelFn,
    images: Float[Array, "m ..."],
    labels: Float[Array, "m k"],
    *,
    diag_reg: float,
) -> None:
    """Raises ValueError where a search cannot start, warns where rounding leads it.

    Args:
      kernel_fn: `(x1, x2) -> (m, m)`.
      images: synthetic images.
      labels: theirs.
      diag_reg: ridge relative to the mean diagonal (dimensionless).

    Raises:
      ValueError: the kernel of images is singular, or errs where images coincide by
        more than the ridge makes up for.
    """
    k_ss = blockwise.self_kernel(kernel_fn, images)
    error = 0.0
    if regression.may_blur(k_ss, diag_reg):
        error = coincident_targets.kernel_error(kernel_fn, images)
    name = "The kernel of the synthetic images"
    regression.check_solvable(name, k_ss, diag_reg, error=error)
    _warn(k_ss, kernel_fn, images, labels, diag_reg, "starts with")


def warn_where_lost(
    kernel_fn: KernelFn,
    images: Float[Array, "m ..."],
    labels: Float[Array, "m k"],
    *,
    diag_reg: float,
) -> None:
    """Warns where images have come so near to each other that rounding leads a search.

    Args:
      kernel_fn: `(x1, x2) -> (m, m)`.
      images: synthetic images, as a search leaves them.
      labels: theirs.
      diag_reg: ridge relative to the mean diagonal (dimensionless).
    """
    k_ss = blockwise.self_kernel(kernel_fn, images)
    _warn(k_ss, kernel_fn, images, labels, diag_reg, "ends with")


def _warn(k_ss, kernel_fn, images, labels, diag_reg, when) -> None:
    # Images far from each other are told by any kernel: no need to compile the measure.
    near = regression.coinciding(k_ss)
    if jnp.finfo(images.dtype).bits >= 64 or near is None:
        return
    off = gradient_error(kernel_fn, images, labels, diag_reg=diag_reg)
    if off <= _TOLD:
        return
    own = images.dtype.name
    told = f"in {own} is {100 * off:.0f}% off that in float64"
    if np.isnan(off):
        told = f"in {own} cannot be compared with one in float64"
    warnings.warn(
        f"The search {when} images {near[0]} and {near[1]} all but coinciding: its "
        f"gradient {told}. Move them apart, raise diag_reg={diag_reg}, or search in "
        "float64 (jax_enable_x64).",
        stacklevel=4,
    )
