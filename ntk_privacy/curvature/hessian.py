"""The greatest eigenvalue of the loss's Hessian in each image, by Lanczos.

It bounds how much a small perturbation can add to a loss beyond first order: what
curvature regularisation should lower. Source: GUARD (arXiv:2403.10045), equation 6 and
figure 2; Lanczos by matfree.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from matfree import decomp

from ntk_privacy import _checks
from ntk_privacy.curvature.regularizer import LossFn

__all__ = ["top_eigenvalues"]


@functools.partial(jax.jit, static_argnames=("loss_fn", "num_matvecs", "batch_size"))
def _top_eigenvalues(loss_fn, params, x, rest, key_data, num_matvecs, batch_size):
    def matvec(v, image, row, params):
        def gradient(flat):
            def loss(flat):
                own = tuple(part[None] for part in row)
                return loss_fn(params, flat.reshape(1, *image.shape), *own)[0]

            return jax.grad(loss)(flat)

        return jax.jvp(gradient, (image.reshape(-1),), (v,))[1]

    lanczos = decomp.tridiag_sym(num_matvecs, custom_vjp=False)

    def one(pair):
        image, row, index = pair
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), index)
        start = jax.random.normal(key, (image.size,), image.dtype)
        # matfree leaves promotion and precision to JAX's default.
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.default_matmul_precision("highest"),
        ):
            small = lanczos(matvec, start, image, row, params).J_small
        # A Krylov space that ends early: what comes after is 0 / 0. One that does not
        # even begin is of a Hessian that is not finite.
        begins = jnp.isfinite(small[0, 0])
        small = jnp.where(jnp.isfinite(small), small, 0)
        return jnp.where(begins, jnp.max(jnp.linalg.eigvalsh(small)), jnp.nan)

    rows = jnp.arange(len(x), dtype=jnp.int32)
    return jax.lax.map(one, (x, rest, rows), batch_size=batch_size)


def top_eigenvalues(
    loss_fn: LossFn,
    params: Any,
    x: Float[Array, "n ..."],
    *rest: Array,
    key: Array,
    num_matvecs: int = 16,
    batch_size: int = 32,
) -> Float[Array, " n"]:
    """Returns the greatest eigenvalue of each image's Hessian, from below; NaN of NaN.

    A network of ReLUs has a Hessian of at most as many eigenvalues as classes: Lanczos
    finds it exactly once its steps are more.

    Args:
      loss_fn: `(params, images, *rest) -> losses`, one per image and of it alone; one
        object for all calls of the same shapes, else it is traced again.
      params: anything that the loss takes, such as a pair of parameters and statistics.
      x: images.
      *rest: of the loss, one row per image, such as labels.
      key: typed key, of the starting vectors.
      num_matvecs: steps of Lanczos, each a product with the Hessian.
      batch_size: images at a time.

    Raises:
      ValueError: lengths differ, or more steps than pixels.
    """
    for i, part in enumerate(rest):
        _checks.same_length(**{"x": x, f"rest_{i}": part})
    size = x[0].size
    _checks.at_least(1, batch_size=batch_size)
    _checks.in_range(1, size, num_matvecs=num_matvecs)
    return _top_eigenvalues(
        loss_fn,
        params,
        jnp.asarray(x),
        tuple(jnp.asarray(part) for part in rest),
        jax.random.key_data(key),
        num_matvecs,
        min(batch_size, len(x)),
    )
