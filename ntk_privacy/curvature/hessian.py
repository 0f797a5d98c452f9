r"""The greatest eigenvalue of the loss's Hessian in each image, by restarted Lanczos.

It bounds how much a small perturbation can add to a loss beyond first order: what
curvature regularisation should lower. Source: GUARD (arXiv:2403.10045), equation 6 and
figure 2.

A network of ReLUs has a Hessian of a rank below its number of classes, so that most
Krylov spaces end early. What comes then is noise over noise in a plain Lanczos
recurrence. Here a space that ends is continued from a random vector orthogonal to it,
values are those of the projection onto an orthonormal basis (Rayleigh-Ritz), never of
the recurrence, and their residual is measured. Restarts keep the leading Ritz vectors
(Wu & Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000: thick restart).
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ntk_privacy import _checks, _linalg, _programs
from ntk_privacy._linalg import matmul
from ntk_privacy.curvature import regularizer
from ntk_privacy.curvature.regularizer import LossFn

__all__ = ["TopEigenvalues", "measure", "top_eigenvalues"]

_ROUNDING = 64  # machine epsilons of the Hessian's norm: below it all is noise
_SLACK = 0.1  # residuals are asked to be this much smaller than the error allowed
_FAINT = 1e-3  # share of a loss that another image may change: in truth, none
_KEPT = 8  # Ritz vectors that a restart keeps at least


class TopEigenvalues(NamedTuple):
    """values: of each image, NaN where the loss is, or the Hessian not finite, as where
    a label is no class. errors: residuals
    |H v - value v| of the unit vectors v they belong to; an eigenvalue lies within.
    converged: whether the residual is below the tolerance times the value, or below
    rounding.
    """  # noqa: D205

    values: Float[Array, " n"]
    errors: Float[Array, " n"]
    converged: Bool[Array, " n"]


class _Space(NamedTuple):
    """An orthonormal basis in rows, its products with H, and where to go on.

    alive: which rows are there. scale: the largest |H q| so far. matvecs: so far.
    """

    basis: Float[Array, "m d"]
    products: Float[Array, "m d"]
    alive: Bool[Array, " m"]
    ahead: Float[Array, " d"]
    scale: Float[Array, ""]
    matvecs: Array
    value: Float[Array, ""]
    error: Float[Array, ""]


def _outside(v: Array, basis: Array) -> Array:
    """Returns v less its projection onto the basis."""
    return v - matmul(matmul(v[None], basis.T), basis)[0]


def _orthonormal(v: Array, basis: Array) -> Array:
    """Returns the unit vector of what v has outside of the basis."""
    for _ in range(3):
        v = _outside(v, basis)
        size = _linalg.norm(v)
        v = v / jnp.where(size == 0, 1, size)
    return v


def _extended(matvec: Callable, key: Array, space: _Space, i: Array) -> _Space:
    """Puts the direction ahead into row i, and finds the next one."""
    product = matvec(space.ahead)
    basis = space.basis.at[i].set(space.ahead)
    scale = jnp.maximum(space.scale, _linalg.norm(product)[0])
    rest = _outside(product, basis)
    noise = float(jnp.finfo(rest.dtype).eps) * rest.size**0.5
    # The space ends here: any vector outside of it will do.
    ends = _linalg.norm(rest)[0] <= _ROUNDING * noise * scale
    key = jax.random.fold_in(key, space.matvecs)
    fresh = jax.random.normal(key, rest.shape, rest.dtype)
    return space._replace(
        basis=basis,
        products=space.products.at[i].set(product),
        alive=space.alive.at[i].set(True),
        ahead=_orthonormal(jnp.where(ends, fresh, rest), basis),
        scale=scale,
        matvecs=space.matvecs + 1,
    )


def _reduced(space: _Space, kept: int) -> _Space:
    """Rayleigh-Ritz: measures the top pair and keeps the leading vectors."""
    small = matmul(space.basis, space.products.T)
    small = (small + small.T) / 2
    # Rows that are not there are no eigenvalues of zero: they go to the very bottom.
    bottom = -4 * space.scale
    small = small + jnp.diag(jnp.where(space.alive, 0, bottom))
    small = jnp.where(jnp.isfinite(small), small, 0)
    values, vectors = jnp.linalg.eigh(small)
    basis = matmul(vectors[:, ::-1].T, space.basis)
    products = matmul(vectors[:, ::-1].T, space.products)
    value = values[-1]
    there = values[::-1] > bottom / 2
    keep = there & (jnp.arange(len(values)) < kept)
    return space._replace(
        basis=jnp.where(keep[:, None], basis, 0),
        products=jnp.where(keep[:, None], products, 0),
        alive=keep,
        value=jnp.where(jnp.isfinite(space.scale), value, jnp.nan),
        error=_linalg.norm(products[0] - value * basis[0])[0],
    )


def _is_close(space: Any, tolerance: float) -> Bool[Array, "..."]:
    """Returns whether the residual is small enough, or as small as rounding lets it."""
    floor = _ROUNDING * float(jnp.finfo(space.value.dtype).eps) * space.scale
    return space.error <= jnp.maximum(tolerance * jnp.abs(space.value), floor)


def _top(matvec, key, size, dtype, steps, kept, tolerance, max_matvecs) -> _Space:
    """Returns the last state of the iteration on one symmetric operator."""
    width = steps + kept
    key, key_start = jax.random.split(key)
    start = jax.random.normal(key_start, (size,), dtype)
    zero, rows = jnp.zeros((), dtype), jnp.zeros((width, size), dtype)
    space = _Space(
        basis=rows,
        products=rows,
        alive=jnp.zeros(width, bool),
        ahead=_orthonormal(start, rows),
        scale=zero,
        matvecs=jnp.zeros((), jnp.int32),
        value=zero,
        error=zero + jnp.inf,
    )

    def unfinished(space):
        wanted = ~_is_close(space, _SLACK * tolerance) & jnp.isfinite(space.scale)
        return wanted & (space.matvecs < (max_matvecs if kept else 1))

    def more(space):
        def step(i, space):
            return _extended(matvec, key, space, kept + i)

        return _reduced(jax.lax.fori_loop(0, steps, step, space), kept)

    return jax.lax.while_loop(unfinished, more, space)


@_programs.jit(num_static=2)
def _measure(loss_fn, settings, params, x, rest, key_data):
    steps, kept, tolerance, max_matvecs, batch_size = settings
    dtype = jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype

    def one(pair):
        image, row, index = pair

        def loss(image):
            own = tuple(part[None] for part in row)
            return loss_fn(params, image[None], *own)[0]

        gradient = jax.grad(loss)

        def matvec(v):
            v = v.reshape(image.shape).astype(image.dtype)
            moved = jax.jvp(gradient, (image,), (v,))[1]
            return moved.reshape(-1).astype(dtype)

        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), index)
        with jax.default_matmul_precision("highest"):
            space = _top(
                matvec, key, image.size, dtype, steps, kept, tolerance, max_matvecs
            )
            # A loss that is no number may leave zeros: of a label that is no class.
            value = jnp.where(jnp.isnan(loss(image)), jnp.nan, space.value)
        return value, space.error, _is_close(space, tolerance)

    rows = jnp.arange(len(x), dtype=jnp.int32)
    return jax.lax.map(one, (x, rest, rows), batch_size=batch_size)


@_programs.jit(num_static=1)
def _per_image(loss_fn, params, x, rest):
    return regularizer.per_image(loss_fn, params, x, rest)


def _alone(loss_fn: LossFn, params: Any, x: Array, rest: tuple[Array, ...]) -> None:
    """Raises ValueError if an image's loss depends on what else is in its batch.

    Two batches of one shape, whose first image alone is the same: rounding is too.
    """
    if len(x) < 2 or not _checks.concrete(*jax.tree.leaves((params, x, rest))):
        return
    few = tuple(part[:2] for part in rest)
    second = jnp.stack([x[1], -2 * x[1] - jnp.ones_like(x[1])])
    one, two = (
        np.asarray(_per_image(loss_fn, params, jnp.stack([x[0], other]), few)).astype(
            np.float64
        )
        for other in second
    )
    if abs(one[0] - two[0]) > _FAINT * abs(one[0]):
        raise ValueError(
            "loss_fn gives an image another loss when the other images of its batch "
            "change, as batch norm in training mode does: put the model into "
            "evaluation mode."
        )


def measure(
    loss_fn: LossFn,
    params: Any,
    x: Float[Array, "n ..."],
    *rest: Shaped[Array, "n ..."],
    key: Array,
    num_matvecs: int = 16,
    tolerance: _checks.Number = 1e-3,
    max_matvecs: int = 512,
    batch_size: int = 32,
) -> TopEigenvalues:
    """Returns the greatest eigenvalue of each image's Hessian, and how sure it is.

    The greatest of all, not of absolute value: zero or below where no direction curves
    upwards. Values come from below. A residual says that *an* eigenvalue is near; that
    it is the greatest is as good as certain from a random start, not proven.

    Args:
      loss_fn: `(params, images, *rest) -> losses`, one per image and of it alone; one
        object for all calls of the same shapes, else it is traced again.
      params: anything that the loss takes, such as a pair of parameters and statistics.
      x: images.
      *rest: of the loss, one row per image, such as labels.
      key: typed key, of the starting vectors.
      num_matvecs: products with the Hessian between two looks at the residual. No
        number is too small or too large: it goes on until the residual is small, and
        in few pixels until the whole space is spanned.
      tolerance: the error asked for, relative to the value.
      max_matvecs: products after which it gives up.
      batch_size: images at a time.

    Raises:
      ValueError: lengths differ, no images, images that are no floating-point numbers,
        a loss that is not one real number per image, and of it alone, or a number out
        of range.
    """
    _checks.typed_key(key=key)
    x = jnp.asarray(x)
    for i, part in enumerate(rest):
        _checks.same_length(**{"x": x, f"rest_{i}": part})
    _checks.floating(x=x)
    _checks.at_least(1, images=len(x), batch_size=batch_size, num_matvecs=num_matvecs)
    _checks.at_least(num_matvecs, max_matvecs=max_matvecs)
    _checks.positive(tolerance=tolerance)
    rest = tuple(jnp.asarray(part) for part in rest)
    first = (x[:1], tuple(part[:1] for part in rest))
    jax.eval_shape(functools.partial(regularizer.per_image, loss_fn, params), *first)
    _alone(loss_fn, params, x, rest)
    size = x[0].size
    kept = max(num_matvecs // 2, _KEPT)
    # As many steps as pixels span everything: nothing to restart.
    whole = num_matvecs + kept >= size
    steps, kept = (size, 0) if whole else (num_matvecs, kept)
    settings = (steps, kept, tolerance, max_matvecs, min(batch_size, len(x)))
    key_data = _checks.key_data(key=key)
    return TopEigenvalues(*_measure(loss_fn, settings, params, x, rest, key_data))


def top_eigenvalues(
    loss_fn: LossFn,
    params: Any,
    x: Float[Array, "n ..."],
    *rest: Shaped[Array, "n ..."],
    key: Array,
    num_matvecs: int = 16,
    tolerance: _checks.Number = 1e-3,
    max_matvecs: int = 512,
    batch_size: int = 32,
) -> Float[Array, " n"]:
    """Returns the values of `measure`, and warns if some did not converge.

    Args and Raises: see `measure`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import curvature
      >>> def loss(scale, x):  # its Hessian in an image is 2 scale
      ...     return scale * jnp.sum(x**2, axis=(1, 2, 3))
      >>> x = jnp.ones((2, 2, 2, 1))
      >>> found = curvature.top_eigenvalues(loss, 3.0, x, key=jax.random.key(0))
      >>> [round(float(value), 3) for value in found]
      [6.0, 6.0]
    """
    _checks.typed_key(key=key)
    found = measure(
        loss_fn,
        params,
        x,
        *rest,
        key=key,
        num_matvecs=num_matvecs,
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        batch_size=batch_size,
    )
    if not isinstance(found.converged, jax.core.Tracer):
        values, errors = np.asarray(found.values), np.asarray(found.errors)
        late = ~np.asarray(found.converged) & np.isfinite(values)
        if late.any():
            i = int(np.argmax(np.where(late, errors, 0)))
            warnings.warn(
                f"{late.sum()} of {len(late)} top eigenvalues did not converge in "
                f"{max_matvecs} products, image {i} the least: {values[i]:.3g} with "
                f"residual {errors[i]:.2g}; raise num_matvecs or max_matvecs.",
                stacklevel=2,
            )
    return found.values
