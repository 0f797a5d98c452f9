"""The network that adapters are attacked on: a frozen MLP, its first layer adapted.

Source: Hu et al., ICLR 2022 (arXiv:2106.09685): the kernel W stays, and learns a
product A B of rank r; A is random and B zero at the start. The layer's bias is trained
too, as PEFT's bias="lora_only" does it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, resume
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.models.mlp import MLP, Parametrization
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import recipe as recipes
from ntk_privacy.training.recipe import Loss
from ntk_privacy.training.victim import Victim

__all__ = ["train"]


def train(
    x_train: Float[Array | np.ndarray, "n h w d"],
    y_train: Float[Array | np.ndarray, "n c"],
    *,
    key: Array,
    width: int = 4096,
    depth: int = 2,
    parametrization: Parametrization = "standard",
    rank: int = 16,
    num_steps: int = 500,
    learning_rate: float = 0.01,
    loss: Loss = "mse",
    dtype: Any = None,
    stage: Stage = straight,
) -> Victim:
    """Adapts an MLP of random weights, which anybody has, to private images.

    Args:
      x_train: images: what is private.
      y_train: targets, one column per output.
      key: typed key of the public weights; A is drawn from the same.
      width: units of every hidden layer.
      depth: hidden layers.
      parametrization: of the network.
      rank: r of the adapter; A has variance 1 / pixels.
      num_steps: of gradient descent on all images at once.
      learning_rate: of A, B and the layer's bias.
      loss: mean over the images, see `training.recipe`.
      dtype: of everything; None is that of the images.
      stage: keeps the factors, as "train".

    Raises:
      ValueError: lengths differ, a number is out of range, images or targets hold a
        NaN, or the loss becomes one.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = ntk_privacy.training.adapter_victim.train(
      ...     digits.x_train, digits.y_train, width=64, rank=8, key=key
      ... )
      >>> victim.adapter.shape, victim.adapter.rank, victim.steps
      ((64, 64), 8, 500)
    """
    _checks.typed_key(key=key)
    _checks.same_length(x_train=x_train, y_train=y_train)
    counts = {"num_images": len(x_train), "width": width, "depth": depth}
    _checks.at_least(1, **counts, num_steps=num_steps, rank=rank)
    _checks.positive(learning_rate=learning_rate)
    _checks.finite_data(x_train=x_train, y_train=y_train)
    x, y = jnp.asarray(x_train, dtype), jnp.asarray(y_train, dtype)
    recipes.takes(loss, y.shape[1])
    model = MLP((width,) * depth, y.shape[1], parametrization=parametrization)
    _, *shape = x.shape
    public = model.init_params(key, shape, x.dtype)
    pixels = int(np.prod(shape))
    a_0 = jax.random.normal(jax.random.fold_in(key, 2), (pixels, rank), x.dtype)
    a_0 = a_0 / jnp.sqrt(jnp.asarray(pixels, x.dtype))

    def make():
        a, b, bias, value = _descended(
            model, loss, num_steps, public, a_0, x, y, learning_rate
        )
        return {"a": a, "b": b, "bias": bias, "loss": value}

    made = resume.once(stage, "train", lambda: jax.tree.map(np.asarray, make()))
    value = float(made["loss"])
    if not np.isfinite(value):
        raise ValueError(
            f"learning_rate={learning_rate} makes the loss {value}: lower it."
        )
    adapter = Adapter(
        a_t=made["a"], b_t=made["b"], a_0=np.asarray(a_0), bias_t=made["bias"]
    )
    factors = (adapter.a_t, adapter.b_t, adapter.bias_t)
    return Victim(
        model=model,
        params_0=public,
        params_t=_merged(public, *map(jnp.asarray, factors)),
        image_shape=(shape[0], shape[1], shape[2]),
        dynamics="standard",
        duals=None,
        loss=value,
        steps=num_steps,
        objective=loss,
        adapter=adapter,
    )


def _merged(public, a, b, bias):
    first = public["Dense_0"]
    kernel = first["kernel"] + jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return {**public, "Dense_0": {**first, "kernel": kernel, "bias": bias}}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _descended(model, loss, num_steps, public, a_0, x, y, rate):
    """Gradient descent on the factors and the bias."""

    def value(factors):
        return recipes.mean_loss(model, _merged(public, *factors), x, y, loss=loss)

    def step(factors, _):
        slopes = jax.grad(value)(factors)
        rates = jnp.asarray(rate, x.dtype)
        return jax.tree.map(lambda a, b: a - rates * b, factors, slopes), None

    first = public["Dense_0"]
    b_0 = jnp.zeros((a_0.shape[1], first["kernel"].shape[1]), x.dtype)
    start = (a_0, b_0, first["bias"])
    factors, _ = jax.lax.scan(step, start, None, length=num_steps)
    return *factors, value(factors)
