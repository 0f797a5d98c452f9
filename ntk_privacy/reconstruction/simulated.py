"""A training that can be differentiated; blocks of it are computed again."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ntk_privacy import _checks, _tree
from ntk_privacy._types import Params
from ntk_privacy.training import recipe

__all__ = ["Training", "misfit", "simulate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The training that is simulated: all images at every step.

    Attributes:
      optimizer: as it was, or nearly: the derivative of Adam's square root is infinite
        at weights that never move, which `eps_root=1e-14` cures.
      num_steps: that it took.
      loss: "mse", the mean of (f - y)^2 / 2; "logistic"; "cross_entropy".
      block: steps that are computed again at once on the way back; memory grows with
        them, and with num_steps over them.

    Raises:
      ValueError: a number out of range, or a loss that is unknown.

    Example:
      >>> import optax
      >>> from ntk_privacy.reconstruction import unrolled
      >>> training = unrolled.Training(optimizer=optax.sgd(0.1), num_steps=30)
      >>> training.loss, training.block
      ('mse', 25)
    """

    optimizer: optax.GradientTransformation
    num_steps: int
    loss: recipe.Loss = "mse"
    block: int = 25

    def __post_init__(self):
        _checks.at_least(1, num_steps=self.num_steps, block=self.block)
        _checks.one_of(recipe.LOSSES, loss=self.loss)


def simulate(
    apply_fn: Callable[..., Array],
    training: Training,
    params_0: Params,
    images: Float[Array, "m h w d"],
    labels: Float[Array, "m c"],
    *,
    weights: Float[Array, " m"] | None = None,
    sharpness: Float[Array, ""] | float | None = None,
) -> Params:
    """Returns the weights at which training on images ends; differentiable in all.

    Args:
      apply_fn: `(params, images)`, or `(params, images, sharpness)` if that is given.
      training: of the network.
      params_0: weights before it.
      images: all of every step.
      labels: theirs, one column per output; classes are the greatest one, or its sign.
      weights: of the images in the loss; None is 1 / m each.
      sharpness: of the softplus that stands for ReLU; None is the network as it is.

    Example:
      >>> import jax, optax
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import unrolled
      >>> net, key = MLP((8,)), jax.random.key(0)
      >>> x = jax.random.normal(key, (3, 2, 2, 1))
      >>> y = jax.numpy.asarray([[1.0], [-1.0], [1.0]])
      >>> training = unrolled.Training(optimizer=optax.sgd(0.1), num_steps=30)
      >>> params = net.init_params(key, (2, 2, 1))
      >>> end = unrolled.simulate(net.apply_fn, training, params, x, y)
      >>> bool(abs(net.apply_fn(end, x) - y).mean() < abs(y).mean())
      True
    """
    m, extra = len(images), () if sharpness is None else (sharpness,)
    if weights is None:
        weights = jnp.full(m, 1 / m, images.dtype)

    def mean(params):
        outputs = apply_fn(params, images, *extra)
        return jnp.sum(weights * recipe.losses(training.loss, outputs, labels))

    def step(carry, _):
        params, opt_state = carry
        grads = jax.grad(mean)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counters in
            updates, opt_state = training.optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def steps(length):
        @jax.checkpoint
        def some(carry, _):
            return jax.lax.scan(step, carry, None, length=length)[0], None

        return some

    whole, rest = divmod(training.num_steps, training.block)
    carry = params_0, training.optimizer.init(params_0)
    carry, _ = jax.lax.scan(steps(training.block), carry, None, length=whole)
    if rest:
        carry, _ = steps(rest)(carry, None)
    return carry[0]


def misfit(end: Params, params_0: Params, params_t: Params) -> Float[Array, ""]:
    """Returns the squared distance of an end from params_t, over that of params_0.

    Args:
      end: weights at which a training ended.
      params_0: weights before training.
      params_t: weights after the training that is looked for.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.reconstruction import unrolled
      >>> a, b, c = ({"w": jnp.full(3, x)} for x in (1.5, 0.0, 1.0))
      >>> float(unrolled.misfit(a, b, c))
      0.25
    """
    change = _tree.squared_norm(_tree.sub(params_t, params_0))
    return _tree.squared_norm(_tree.sub(end, params_t)) / change
