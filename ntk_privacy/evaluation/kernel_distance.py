"""How far the tangent kernel moved during training."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["kernel_distance"]


def kernel_distance(
    k_0: Float[Array, "n n"], k_t: Float[Array, "n n"]
) -> Float[Array, ""]:
    r"""Returns $1 - \mathrm{Tr}(K_0^T K_t) / (\|K_0\|_F \|K_t\|_F)$: 0 if parallel.

    Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 5.

    Args:
      k_0: kernel on the training images at initialisation, traced over outputs.
      k_t: the same after training.
    """
    # Scaled first: entries grow with the width, their squares leave float32.
    k_0 = k_0 / jnp.linalg.norm(k_0)
    k_t = k_t / jnp.linalg.norm(k_t)
    # ||u - v||^2 / 2 for unit u, v: exact where 1 - u.v would round to zero.
    return 0.5 * jnp.sum((k_0 - k_t) ** 2)
