r"""Distances between images that all but coincide, where products of them cancel.

Where two images have a correlation within rounding of 1, $1 - \rho$ is lost, and with
it the angle between them: to $\sqrt{\epsilon}$ and not $\epsilon$. The squared distance
$D$ of the two at one length, $\|x / \sqrt q - x' / \sqrt{q'}\|^2 / d$, keeps all digits
there if the difference is taken first, and $1 - \rho = D / 2$. Likewise the sum where
images are opposite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["any_close", "close", "squared_distances"]

# Close images of one row that are gathered, before all are compared with it.
_FEW = 8


def close(
    product: Float[Array, "..."], q1: Float[Array, "..."], q2: Float[Array, "..."]
) -> Bool[Array, "..."]:
    """Whether correlations are too near to 1 for what rounding leaves of 1 less it.

    That is 3 sqrt(eps), 1e-3 in float32: beyond it 1 - rho is right to 3e-4 at least.

    Args:
      product: covariances.
      q1: variances, broadcasting to product.
      q2: variances, broadcasting to product.
    """
    # A product of roots, not the root of a product, which might overflow.
    return product > _nearly(product.dtype) * jnp.sqrt(q1) * jnp.sqrt(q2)


def any_close(
    product: Float[Array, "..."],
    q1: Float[Array, "..."],
    q2: Float[Array, "..."],
    *,
    except_for: Bool[Array, "..."] | None,
) -> Bool[Array, ""]:
    """Whether any images are `close`, or opposite, in one cheap pass.

    Args:
      product: covariances.
      q1: variances, broadcasting to product.
      q2: variances, broadcasting to product.
      except_for: pairs that are one image, or one position of it.
    """
    inverse1, inverse2 = (1 / jnp.sqrt(jnp.where(q > 0, q, jnp.inf)) for q in (q1, q2))
    rho = jnp.abs(product) * inverse1 * inverse2
    if except_for is not None:
        rho = jnp.where(except_for, 0, rho)
    # The last axis at the end: a CPU takes many of it at once until then.
    return jnp.max(jnp.max(rho, axis=tuple(range(rho.ndim - 1)))) > _nearly(
        product.dtype
    )


def _nearly(dtype) -> float:
    return 1 - 3 * float(jnp.finfo(dtype).eps) ** 0.5


def squared_distances(
    x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"], wanted: Bool[Array, "n1 n2"]
) -> Float[Array, "n1 n2"]:
    """Returns the mean over pixels of (x1 - x2)^2 where `wanted`, anything elsewhere.

    Differences first, row by row of x1: only those that are wanted, if they are few.

    Args:
      x1: images, flattened.
      x2: images, flattened.
      wanted: entries that are asked for.
    """
    d = x1.shape[-1]

    @jax.checkpoint
    def row(own: tuple[Array, Array]) -> Array:
        x, wanted = own
        nothing = jnp.zeros(wanted.shape, x.dtype)

        def few():
            (index,) = jnp.nonzero(wanted, size=min(_FEW, len(wanted)), fill_value=0)
            return nothing.at[index].set(
                jnp.sum((x[None] - x2[index]) ** 2, axis=-1) / d
            )

        def many():
            return jnp.sum((x[None] - x2) ** 2, axis=-1) / d

        count = jnp.sum(wanted)
        which = (count > 0).astype(jnp.int32) + (count > _FEW).astype(jnp.int32)
        return jax.lax.switch(which, [lambda: nothing, few, many])

    return jax.lax.map(row, (x1, wanted))
