r"""The empirical NTK of any differentiable `apply_fn`.

$\Theta^{cc'}(x, x') = \langle \nabla_\theta f^c(x), \nabla_\theta f^{c'}(x')\rangle$.
Source: Jacot et al., NeurIPS 2018 (arXiv:1806.07572).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy._types import ApplyFn, Params

__all__ = ["jacobian", "ntk"]


def jacobian(
    apply_fn: ApplyFn, params: Params, x: Float[Array, "n ..."]
) -> Float[Array, "n c p"]:
    """Returns the gradients of every output, flattened over all parameters.

    Needs n * c * p numbers of memory: the slow, obvious path.
    """

    def one(image):
        return apply_fn(params, image[None])[0]

    def row(image):
        leaves = jax.tree.leaves(
            jax.jacrev(lambda p: apply_fn(p, image[None])[0])(params)
        )
        c = jax.eval_shape(one, image).shape[0]
        return jnp.concatenate([leaf.reshape(c, -1) for leaf in leaves], axis=1)

    return jax.lax.map(row, x)


def ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    trace_outputs: bool = True,
) -> Float[Array, "n1 n2"] | Float[Array, "n1 n2 c c"]:
    """Returns the empirical NTK by contracting two Jacobians.

    Args:
      apply_fn: `(params, images) -> (n, c)`.
      params: any pytree.
      x1: images.
      x2: images; x1 when absent.
      trace_outputs: mean over outputs of the diagonal blocks, (n1, n2), as
        neural-tangents defines it; else all blocks, (n1, n2, c, c).
    """
    j1 = jacobian(apply_fn, params, x1)
    j2 = j1 if x2 is None else jacobian(apply_fn, params, x2)
    highest = jax.lax.Precision.HIGHEST
    if trace_outputs:
        kernel = jnp.einsum("ncp,mcp->nm", j1, j2, precision=highest)
        return kernel / j1.shape[1]
    return jnp.einsum("ncp,mdp->nmcd", j1, j2, precision=highest)
