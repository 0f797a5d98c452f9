"""Dense symmetric solves with one meaning of `diag_reg`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def add_ridge(k: Float[Array, "n n"], diag_reg: float) -> Float[Array, "n n"]:
    """Returns k + diag_reg * mean(diag(k)) * I: the ridge is dimensionless."""
    n = k.shape[0]
    return k + (diag_reg * jnp.trace(k) / n) * jnp.eye(n, dtype=k.dtype)


def solve_ridge(
    k: Float[Array, "n n"], y: Float[Array, "n c"], *, diag_reg: float = 0.0
) -> Float[Array, "n c"]:
    """Solves (k + diag_reg mean(diag(k)) I) a = y for symmetric positive k.

    By Cholesky. A singular k gives NaN: raise `diag_reg` or remove duplicates.
    """
    with jax.default_matmul_precision("highest"):
        return jax.scipy.linalg.solve(add_ridge(k, diag_reg), y, assume_a="pos")


def matmul(a: Float[Array, "... n k"], b: Float[Array, "... k m"]) -> Array:
    """Returns a @ b at full precision; accelerators default to less."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
