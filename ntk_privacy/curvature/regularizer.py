r"""Losses that are flat around the data: curvature regularisation as a transform.

A loss of one image each becomes a loss of one image each, so that it serves under jit,
grad and vmap, in any training loop and in gradient matching alike.

Source: GUARD (arXiv:2403.10045), equation 11, and its released code, whose three forms
differ. The perturbation $z$ is the only constant: gradients reach the parameters
through every other term.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg

__all__ = ["MODES", "LossFn", "penalty", "perturbation", "regularize"]

MODES = ("curvature", "curvature_norm", "loss_difference", "gradient")

LossFn = Callable[..., Any]
"""`(params, images, *rest) -> losses`: pure, one value per image and of it alone."""

_REMEDY = {
    "curvature": "weight=100 is the paper's",
    "curvature_norm": "weight=100 is the released code's, over its batch size of 128",
    "loss_difference": "weight=1e-4 is the released code's",
    "gradient": "weight=1e-4 is the released code's",
}


def per_image(loss_fn: LossFn, params: Any, x: Any, rest: tuple[Any, ...]) -> Array:
    losses = loss_fn(params, x, *rest)
    shape = getattr(losses, "shape", None)
    if shape != x.shape[:1]:
        told = "a scalar" if shape == () else f"shape {shape}"
        raise ValueError(
            f"loss_fn returned {told} for {len(x)} images: return one value per image, "
            f"shape {x.shape[:1]}, by leaving its mean or sum out."
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            f"loss_fn returned {losses.dtype}: return real floating-point losses."
        )
    return losses


def _gradient(
    loss_fn: LossFn, params: Any, x: Any, rest: tuple[Any, ...]
) -> tuple[Array, Array]:
    """Returns losses and the gradient of each with respect to its own image."""

    def total(x):
        losses = per_image(loss_fn, params, x, rest)
        return jnp.sum(losses), losses

    gradient, losses = jax.grad(total, has_aux=True)(x)
    return losses, gradient


def _squares(move: Float[Array, "n ..."]) -> Float[Array, " n"]:
    return jnp.sum(jnp.square(move), axis=tuple(range(1, move.ndim)))


def _norms(move: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """Norms whose gradient is zero, not NaN, where nothing moves."""
    return _linalg.norm(move, tuple(range(1, move.ndim))).reshape(-1)


def perturbation(
    gradient: Float[Array, "n ..."], *, step: _checks.Number, offset: _checks.Number = 0
) -> Float[Array, "n ..."]:
    r"""Returns $h\,(g + \epsilon) / (\|g\| + \epsilon)$ of each image, a constant.

    Args:
      gradient: g, of each image's own loss; where it and the offset are zero, so is
        the perturbation. Any size will do that the dtype holds as a normal number:
        down to 1e-38 in float32, below which a processor may read zero.
      step: its norm h, in units of the images.
      offset: epsilon. 0 is equation 11. The released code takes 1e-7 with gradients of
        the batch's mean loss, so 1e-7 times the batch size here.

    Raises:
      ValueError: the gradient holds no floating-point numbers.
    """
    _checks.floating(gradient=gradient)
    gradient = jax.lax.stop_gradient(gradient)
    axes = tuple(range(1, gradient.ndim))
    moved = gradient + jnp.asarray(offset, gradient.dtype)
    size = _linalg.norm(gradient, axes) + jnp.asarray(offset, gradient.dtype)
    # Divided first: a step times a small gradient could be too small a number.
    unit = moved / jnp.where(size == 0, 1, size)
    return jnp.asarray(step, gradient.dtype) * unit


def penalty(
    loss_fn: LossFn,
    *,
    step: _checks.Number = 3.0,
    mode: str = "curvature",
    offset: _checks.Number = 0,
) -> LossFn:
    r"""Returns what `regularize` adds to a loss, without its weight.

    With $z$ of `perturbation` and $d_i = \nabla_x \ell(x_i + z_i) - \nabla_x
    \ell(x_i)$, per image:

    * `curvature`: $\|d_i\|^2$ (equation 11);
    * `curvature_norm`: $\|d_i\|$, as released for CIFAR;
    * `loss_difference`: $|\bar\ell(x + z) - \bar\ell(x)|$ of the batch's mean losses,
      the same for each image, as released for larger images; no second derivative;
    * `gradient`: $\|\nabla_x \ell(x_i)\|$, without $z$. The released one has no effect
      on the parameters, since it stops the gradient.

    Args:
      loss_fn: `(params, images, *rest) -> losses`, one per image and of it alone; batch
        normalisation must use running statistics.
      step: norm of z, in units of the images; the paper's 3 is for normalised ones.
      mode: of `MODES`.
      offset: of `perturbation`.

    Raises:
      ValueError: the step is not positive, the mode is unknown or the offset negative;
        and, when called, the loss is not one value per image.
    """
    _checks.positive(step=step)
    _checks.at_least(0, offset=offset)
    _checks.one_of(MODES, mode=mode)

    def gradient_norm(params, x, *rest):
        return _norms(_gradient(loss_fn, params, x, rest)[1])

    def loss_difference(params, x, *rest):
        losses, gradient = _gradient(loss_fn, params, x, rest)
        z = perturbation(gradient, step=step, offset=offset)
        moved = per_image(loss_fn, params, x + z, rest)
        return jnp.broadcast_to(jnp.abs(jnp.mean(moved) - jnp.mean(losses)), (len(x),))

    def curvature(params, x, *rest):
        _, gradient = _gradient(loss_fn, params, x, rest)
        z = perturbation(gradient, step=step, offset=offset)
        move = _gradient(loss_fn, params, x + z, rest)[1] - gradient
        return (_squares if mode == "curvature" else _norms)(move)

    made = {"gradient": gradient_norm, "loss_difference": loss_difference}
    # Differences of gradients lose what coarse products leave.
    return _linalg.full_precision(made.get(mode, curvature))


def regularize(
    loss_fn: LossFn,
    *,
    step: _checks.Number = 3.0,
    weight: _checks.Number | None = None,
    mode: str = "curvature",
    offset: _checks.Number = 0,
    penalty_loss_fn: LossFn | None = None,
) -> LossFn:
    r"""Returns $\ell + \lambda\,$`penalty`: a loss of the same signature.

    Args:
      loss_fn: `(params, images, *rest) -> losses`, one per image and of it alone.
      step: of `penalty`.
      weight: lambda, which has no default: the modes differ in scale.
      mode: of `MODES`.
      offset: of `perturbation`.
      penalty_loss_fn: the loss whose curvature counts, if another one: with batch
        normalisation that of evaluation, while `loss_fn` is that of training.

    Raises:
      ValueError: the weight is missing or not positive; see `penalty` for the rest.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ntk_privacy import curvature, models
      >>> net = models.MLP(widths=(8,), num_outputs=2)
      >>> params = net.init_params(jax.random.key(0), (2, 2, 1))
      >>> x = jax.random.uniform(jax.random.key(1), (3, 2, 2, 1))
      >>> labels = jnp.array([0, 1, 1])
      >>> def loss(params, x, labels):
      ...     logits = net.apply_fn(params, x)
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      >>> flat = curvature.regularize(loss, weight=100)
      >>> flat(params, x, labels).shape
      (3,)
    """
    added = penalty(penalty_loss_fn or loss_fn, step=step, mode=mode, offset=offset)
    if weight is None:
        raise ValueError(
            f"weight is missing and has no default: say how much mode={mode!r} counts; "
            f"{_REMEDY[mode]}."
        )
    _checks.positive(weight=weight)

    def regularized(params, x, *rest):
        losses = per_image(loss_fn, params, x, rest)
        factor = jnp.asarray(weight, losses.dtype)
        return losses + factor * added(params, x, *rest)

    return regularized
