"""Dense symmetric solves with one meaning of `diag_reg`, and products in full."""

import functools
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Float

_P = ParamSpec("_P")
_R = TypeVar("_R")


def full_precision(fun: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns `fun`, whose products are in full where they do not say otherwise.

    Accelerators multiply in bfloat16 or TF32 by default: 1e-3 off. What it traces, the
    networks of users and their derivatives too, is traced so.
    """

    @functools.wraps(fun)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with jax.default_matmul_precision("highest"):
            return fun(*args, **kwargs)

    return call


def on_one_thread(fun: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns `fun`, for whose many small products and solves BLAS takes one thread.

    Several threads gain nothing on matrices of a few hundred rows, and where others
    keep the cores busy they wait for one another: ten times as long.
    """
    return threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")(fun)


def add_ridge(k: Float[Array, "n n"], diag_reg: float) -> Float[Array, "n n"]:
    """Returns k + diag_reg * mean(diag(k)) * I: the ridge is dimensionless."""
    return k + ridge(k, diag_reg) * jnp.eye(k.shape[0], dtype=k.dtype)


def ridge(k: Float[Array, "n n"], diag_reg: float) -> Float[Array, ""]:
    """Returns diag_reg * mean(diag(k))."""
    return diag_reg * jnp.trace(k) / k.shape[0]


def solve_ridge(
    k: Float[Array, "n n"], y: Float[Array, "n c"], *, diag_reg: float = 0.0
) -> Float[Array, "n c"]:
    """Solves (k + diag_reg mean(diag(k)) I) a = y for symmetric positive k.

    By Cholesky. A singular k gives NaN, one whose least pivot is within 16 eps of its
    largest entry included: raise `diag_reg` or remove duplicates.
    """
    with jax.default_matmul_precision("highest"):
        ridged = add_ridge(k, diag_reg)
        solution = jax.scipy.linalg.solve(ridged, y, assume_a="pos")
        # The factor that `solve` takes: compiled, one of the two is left.
        root, _ = jax.scipy.linalg.cho_factor(jax.lax.stop_gradient(ridged))
    pivots, entries = jnp.diagonal(root) ** 2, jnp.diagonal(ridged)
    singular = pivots.min() <= 16 * jnp.finfo(k.dtype).eps * entries.max()
    return jnp.where(jax.lax.stop_gradient(singular), jnp.nan, solution)


def matmul(a: Float[Array, "... n k"], b: Float[Array, "... k m"]) -> Array:
    """Returns a @ b at full precision; accelerators default to less."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def norm(
    a: Float[Array, "..."], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "..."]:
    """Returns the L2 norm over `axis`, or over all, kept as axes of length 1.

    Scaled before it is squared: right wherever the numbers themselves are normal ones,
    while squares leave float32 beyond 1e19 and below 1e-19. Its gradient is zero, not
    NaN, where all is zero.

    Args:
      a: numbers; those of half precision are summed in float32.
      axis: to sum over.
    """
    wide = a.astype(jnp.float32) if jnp.finfo(a.dtype).bits < 32 else a
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(wide), axis, keepdims=True))
    scale = jnp.where(scale == 0, 1, scale)
    # Of constants XLA would square numerator and scale first, and lose both.
    unit = jax.lax.optimization_barrier(wide / scale)
    squares = jnp.sum(jnp.square(unit), axis, keepdims=True)
    none = squares == 0  # NaN is some
    root = jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, squares)))
    return (scale * root).astype(a.dtype)


@jax.custom_jvp
def gram(a: Float[Array, "n k"]) -> Float[Array, "n n"]:
    """Returns a @ a.T; its gradient takes one product where that of `matmul` takes two.

    At full precision, as `matmul`.
    """
    return matmul(a, a.T)


@gram.defjvp
def _gram_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    half = matmul(da, a.T)
    return gram(a), half + half.T


class Range(NamedTuple):
    """basis: orthonormal columns. singular_values: along them, descending."""

    basis: np.ndarray
    singular_values: np.ndarray


def range_basis(
    matrix: Float[Array | np.ndarray, "d k"],
    *,
    tolerance: float,
    max_rank: int | None = None,
) -> Range | None:
    """Returns a basis of the column space of a matrix of low numerical rank.

    By a random sketch that doubles until it holds all but `tolerance` of the matrix
    (Halko, Martinsson & Tropp 2011, arXiv:0909.4061), on the host in float64. The
    sketch is the same at every call.

    Args:
      matrix: any matrix.
      tolerance: singular values below this times the largest are dropped.
      max_rank: give up beyond it; the smaller side when absent.

    Returns:
      None if the rank is above `max_rank`.
    """
    a = np.asarray(matrix, np.float64)
    limit: int = min(a.shape)
    max_rank = limit if max_rank is None else min(max_rank, limit)
    norm = np.linalg.norm(a)
    if norm == 0:
        return Range(np.zeros((a.shape[0], 0)), np.zeros(0))
    rng = np.random.default_rng(0)
    sketch = 32
    while True:
        sketch = min(sketch, limit)
        y = a @ rng.standard_normal((a.shape[1], sketch))
        # One power iteration sharpens a slowly falling spectrum.
        q, _ = np.linalg.qr(a @ (a.T @ np.linalg.qr(y)[0]))
        left, values, _ = np.linalg.svd(q.T @ a, full_matrices=False)
        rank = int(np.sum(values > tolerance * values[0]))
        if rank > max_rank:
            return None
        # A sketch with room to spare has seen the whole range.
        if rank <= sketch - 8 or sketch == limit:
            return Range((q @ left)[:, :rank], values[:rank])
        sketch *= 2
