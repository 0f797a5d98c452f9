"""How far the tangent kernel moved during training."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg

__all__ = ["kernel_distance"]


def kernel_distance(
    k_0: Float[Array | np.ndarray, "_ _"], k_t: Float[Array | np.ndarray, "_ _"]
) -> Float[Array, ""]:
    r"""Returns $1 - \mathrm{Tr}(K_0^T K_t) / (\|K_0\|_F \|K_t\|_F)$: 0 if parallel.

    Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 5.

    Args:
      k_0: kernel on the training images at initialisation, traced over outputs.
      k_t: the same after training.

    Raises:
      ValueError: the shapes differ or are not those of kernels, an entry is NaN or
        infinite, or a kernel is zero and has no direction. Under jit the last two give
        NaN.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.evaluation.kernel_distance import kernel_distance
      >>> float(kernel_distance(np.eye(2), 3 * np.eye(2)))  # scale does not count
      0.0
    """
    if np.shape(k_0) != np.shape(k_t):
        raise ValueError(
            f"k_0 has shape {np.shape(k_0)} but k_t {np.shape(k_t)}: give the kernels "
            "of the same images before and after training."
        )
    units = []
    for name, k in (("k_0", k_0), ("k_t", k_t)):
        k = _scaled(name, k) if _checks.concrete(k) else jnp.asarray(k)
        # Entries grow with the width, and their squares leave float32.
        units.append(k / _linalg.norm(k))
    # ||u - v||^2 / 2 for unit u, v: exact where 1 - u.v would round to zero.
    return 0.5 * jnp.sum((units[0] - units[1]) ** 2)


def _scaled(name: str, k: Any) -> Array:
    """Returns a kernel over its largest entry: XLA takes 1 / 1e38 for zero."""
    entries = np.asarray(k)
    floating = jnp.issubdtype(entries.dtype, jnp.floating)
    if entries.ndim != 2 or not entries.size or not floating:
        raise ValueError(
            f"{name} is {entries.dtype} of shape {entries.shape}: give a kernel of "
            "floating-point numbers traced over outputs, (n, n)."
        )
    bad = int(np.sum(~np.isfinite(entries)))
    if bad:
        raise ValueError(
            f"{name} has {bad} entries that are NaN or infinite: leave out the images "
            "they come from, or use float64."
        )
    if not entries.any():
        raise ValueError(
            f"{name} is zero everywhere, so that no distance to it is defined: the "
            "network gives these images no gradient (dead units, or weights of zero)."
        )
    return jnp.asarray(entries / np.abs(entries).max())
