"""How far the tangent kernel moved during training."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _linalg

__all__ = ["kernel_distance"]


def kernel_distance(
    k_0: Float[Array, "_ _"], k_t: Float[Array, "_ _"]
) -> Float[Array, ""]:
    r"""Returns $1 - \mathrm{Tr}(K_0^T K_t) / (\|K_0\|_F \|K_t\|_F)$: 0 if parallel.

    Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 5.

    Args:
      k_0: kernel on the training images at initialisation, traced over outputs.
      k_t: the same after training.

    Raises:
      ValueError: the shapes differ, an entry is NaN or infinite, or a kernel is zero
        and has no direction. Under jit the last two give NaN.
    """
    if k_0.shape != k_t.shape:
        raise ValueError(
            f"k_0 has shape {k_0.shape} but k_t {k_t.shape}: give the kernels of the "
            "same images before and after training."
        )
    units = []
    for name, k in (("k_0", k_0), ("k_t", k_t)):
        # Scaled first: entries grow with the width, their squares leave float32.
        size = _linalg.norm(k)
        if not isinstance(k, jax.core.Tracer):
            _check(name, k)
        units.append(k / size)
    # ||u - v||^2 / 2 for unit u, v: exact where 1 - u.v would round to zero.
    return 0.5 * jnp.sum((units[0] - units[1]) ** 2)


def _check(name: str, k: Float[Array, "_ _"]) -> None:
    entries = np.asarray(k)
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
