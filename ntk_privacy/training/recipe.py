"""Training as networks are trained in practice: any loss, minibatches, an optimizer.

Every step moves all weights, in float32 or float64 as they are; the pixels' span that
`training.subspace` works in is left by weight decay and by Adam.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _loop
from ntk_privacy._types import Callback, Params
from ntk_privacy.models.mlp import MLP

__all__ = [
    "LOSSES",
    "Loss",
    "Optimizer",
    "Recipe",
    "TrainState",
    "init",
    "losses",
    "mean_loss",
    "steps_per_epoch",
    "takes",
    "train",
]

Loss = Literal["mse", "logistic", "cross_entropy"]
Optimizer = Literal["gd", "sgd", "momentum", "adam"]

LOSSES: tuple[Loss, ...] = ("mse", "logistic", "cross_entropy")

_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
      loss: "mse", the mean of (f - y)^2 / 2; "logistic", of one output as a logit;
        "cross_entropy", of several.
      batch_size: images of a step, in an order drawn anew every epoch, the last batch
        of it smaller; None is all.
      optimizer: "gd" takes all images at once; "momentum" is 0.9.
      learning_rate: on the mean loss of a batch; None is 0.01, of Adam 0.001.
      weight_decay: L2: added to every gradient, biases' too, times the weights.
      num_epochs: passes over the images at most.

    Raises:
      ValueError: a value out of range, or batches of gradient descent.
    """

    loss: Loss = "mse"
    batch_size: int | None = None
    optimizer: Optimizer = "momentum"
    learning_rate: float | None = None
    weight_decay: float = 0.0
    num_epochs: int = 500

    def __post_init__(self):
        _checks.one_of(LOSSES, loss=self.loss)
        _checks.one_of(("gd", "sgd", "momentum", "adam"), optimizer=self.optimizer)
        _checks.at_least(1, num_epochs=self.num_epochs)
        _checks.at_least(0, weight_decay=self.weight_decay)
        if self.learning_rate is not None:
            _checks.positive(learning_rate=self.learning_rate)
        if self.batch_size is not None:
            _checks.at_least(1, batch_size=self.batch_size)
            if self.optimizer == "gd":
                raise ValueError(
                    f"batch_size={self.batch_size}: gradient descent (optimizer=gd) "
                    "takes all images at every step; use sgd, or leave batch_size out."
                )

    def transformation(self, *, eps_root: float = 0.0) -> optax.GradientTransformation:
        """Returns the optimizer, weight decay included.

        Args:
          eps_root: what Adam adds under its root, whose derivative is infinite at 0.
        """
        rate = self.learning_rate
        if self.optimizer == "adam":
            step = optax.adam(0.001 if rate is None else rate, eps_root=eps_root)
        else:
            kept = _MOMENTUM if self.optimizer == "momentum" else None
            step = optax.sgd(0.01 if rate is None else rate, momentum=kept)
        if not self.weight_decay:
            return step
        return optax.chain(optax.add_decayed_weights(self.weight_decay), step)


class TrainState(NamedTuple):
    """params, opt_state: of the optimizer. loss: of all images, when the last epoch
    ended. steps: taken.
    """  # noqa: D205

    params: Params
    opt_state: Any
    loss: Float[Array, ""]
    steps: Int[Array, ""]


class _Data(NamedTuple):
    x: Any
    y: Any
    key_data: Any
    stop_loss: Any


def takes(loss: Loss, num_outputs: int) -> None:
    """Raises ValueError unless a loss takes so many outputs.

    Args:
      loss: of `LOSSES`.
      num_outputs: of the network.

    Raises:
      ValueError: logistic takes one, cross_entropy two at least.
    """
    if loss == "logistic" and num_outputs != 1:
        raise ValueError(
            f"loss=logistic takes one output, the task has {num_outputs}: use a binary "
            "task, or cross_entropy."
        )
    if loss == "cross_entropy" and num_outputs < 2:
        raise ValueError(
            "loss=cross_entropy takes one output a class, the task has 1 in all: use "
            "task=all_classes, or logistic."
        )


def losses(
    loss: Loss, outputs: Float[Array, "n c"], y: Float[Array, "n c"]
) -> Float[Array, " n"]:
    """Returns the loss of every image.

    Args:
      loss: see `Recipe`.
      outputs: of the network.
      y: targets; classes are the greatest one, or its sign.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.training import recipe
      >>> out, y = jnp.asarray([[0.5]]), jnp.asarray([[1.0]])
      >>> float(recipe.losses("mse", out, y)[0])
      0.125
    """
    if loss == "mse":
        return 0.5 * jnp.mean((outputs - y) ** 2, axis=1)
    if loss == "logistic":
        return jax.nn.softplus(-jnp.where(y > 0, 1, -1) * outputs)[:, 0]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.argmax(y, 1))


def mean_loss(
    model: MLP,
    params: Params,
    x: Float[Array, "n ..."],
    y: Float[Array, "n c"],
    *,
    loss: Loss = "mse",
) -> Float[Array, ""]:
    """Returns the mean loss of images.

    Args:
      model: the network.
      params: its weights.
      x: images.
      y: targets, -1 or +1 of one output, else one-hot, centred or not.
      loss: see `Recipe`.
    """
    return jnp.mean(losses(loss, model.apply_fn(params, x), y))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step; equal steps hash alike, so the loop is traced once per shape."""

    model: MLP
    recipe: Recipe

    def batch(self, step, data: _Data):
        """Images of a step, their targets, and weights: 0 of what fills a batch."""
        n, size = len(data.x), self.recipe.batch_size
        if size is None or size >= n:
            return data.x, data.y, jnp.ones(n, data.x.dtype)
        per_epoch = -(-n // size)
        key = jax.random.wrap_key_data(data.key_data)
        order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), n)
        first = (step % per_epoch) * size
        padded = jnp.pad(order, (0, per_epoch * size - n))
        chosen = jax.lax.dynamic_slice_in_dim(padded, first, size)
        real = first + jnp.arange(size, dtype=first.dtype) < n
        return data.x[chosen], data.y[chosen], real.astype(data.x.dtype)

    def __call__(self, state: TrainState, step, data: _Data):
        loss, per_epoch = self.recipe.loss, steps_per_epoch(self.recipe, len(data.x))

        def advance(state: TrainState) -> TrainState:
            x, y, weights = self.batch(step, data)

            def mean(params):
                each = losses(loss, self.model.apply_fn(params, x), y)
                return jnp.sum(weights * each) / jnp.sum(weights)

            grads, optimizer = (
                jax.grad(mean)(state.params),
                self.recipe.transformation(),
            )
            with jax.numpy_dtype_promotion("standard"):  # optax mixes counters in
                updates, opt_state = optimizer.update(
                    grads, state.opt_state, state.params
                )
            params = optax.apply_updates(state.params, updates)
            now = jax.lax.cond(
                (step + 1) % per_epoch == 0,
                lambda: mean_loss(self.model, params, data.x, data.y, loss=loss),
                lambda: state.loss,
            )
            return TrainState(params, opt_state, now, state.steps + 1)

        running = (state.loss >= data.stop_loss) & jnp.isfinite(state.loss)
        state = jax.lax.cond(running, advance, lambda s: s, state)
        return state, {"loss": state.loss}


def steps_per_epoch(recipe: Recipe, n: int) -> int:
    """Returns the steps that an epoch of n images has.

    Args:
      recipe: with its batch size.
      n: images of the training set.
    """
    return -(-n // min(recipe.batch_size or n, n))


def init(
    model: MLP,
    params_0: Params,
    x_train: Float[Array, "n ..."],
    y_train: Float[Array, "n c"],
    recipe: Recipe,
) -> TrainState:
    """Returns the state before the first step.

    Args: those of `train`.
    """
    params = jax.tree.map(jnp.array, params_0)
    return TrainState(
        params=params,
        opt_state=recipe.transformation().init(params),
        loss=mean_loss(model, params, x_train, y_train, loss=recipe.loss),
        steps=jnp.zeros((), jnp.int32),
    )


def train(
    model: MLP,
    params_0: Params,
    x_train: Float[Array, "n ..."],
    y_train: Float[Array, "n c"],
    recipe: Recipe,
    *,
    key: Array,
    stop_loss: float = 0.0,
    max_steps: int = 1_000_000,
    chunk: int = 50,
    state: TrainState | None = None,
    callback: Callback | None = None,
) -> TrainState:
    """Trains a network; continued from a state, it ends with the same bits.

    Args:
      model: the network.
      params_0: its weights before training.
      x_train: images, in the weights' dtype.
      y_train: targets, one column per output.
      recipe: how.
      key: typed key of the order of images.
      stop_loss: mean loss of all images, when an epoch ends, at which training ends.
      max_steps: at most, besides the recipe's epochs.
      chunk: steps between calls of `callback`.
      state: of an earlier call with the same arguments, to continue.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: lengths or outputs do not fit, a number is out of range, or the loss
        is no longer finite.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.training import recipe
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=8, key=key)
      >>> model = MLP((16,))
      >>> how = recipe.Recipe(loss="logistic", batch_size=3, num_epochs=20)
      >>> params = model.init_params(key, (8, 8, 1))
      >>> x, y = map(jax.numpy.asarray, (digits.x_train, digits.y_train))
      >>> trained = recipe.train(model, params, x, y, how, key=key)
      >>> int(trained.steps)
      60
    """
    _checks.same_length(x_train=x_train, y_train=y_train)
    _checks.finite_data(x_train=x_train, y_train=y_train)
    _checks.at_least(0, stop_loss=stop_loss)
    _checks.at_least(1, max_steps=max_steps)
    x, y = jnp.asarray(x_train), jnp.asarray(y_train)
    takes(recipe.loss, y.shape[1])
    if state is None:
        state = init(model, params_0, x, y, recipe)

    def after_chunk(done, state, metrics):
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        loss = float(state.loss)
        return stop or loss < stop_loss or not np.isfinite(loss)

    data = _Data(x, y, jax.random.key_data(key), jnp.asarray(stop_loss, x.dtype))
    state, _ = _loop.run(
        _Step(model, recipe),
        state,
        data,
        num_steps=min(recipe.num_epochs * steps_per_epoch(recipe, len(x)), max_steps),
        first_step=int(state.steps),
        chunk=chunk,
        callback=after_chunk,
    )
    if not np.isfinite(float(state.loss)):
        raise ValueError(
            f"The training loss became {float(state.loss)} after {int(state.steps)} "
            "steps: lower the learning rate of the training."
        )
    return state
