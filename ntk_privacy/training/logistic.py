"""Logistic training of a homogeneous ReLU network, the max-margin attack's victim.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758): two hidden layers of width 1000,
biases in the first layer only, which keeps the network homogeneous; a very small first
layer at initialisation, which takes it away from the kernel regime; 10^6 epochs of
full-batch gradient descent at rate 0.01, in float64.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _loop, _tree
from ntk_privacy._types import Callback, Params
from ntk_privacy.models.mlp import MLP

__all__ = [
    "TrainState",
    "Trained",
    "init",
    "init_params",
    "network",
    "preprocess",
    "single_output",
    "train",
]


def network(width: int = 1000) -> MLP:
    """Returns the published victim, D-width-width-1, with first-layer biases only.

    Args:
      width: of both hidden layers.
    """
    return MLP((width, width), 1, use_bias=(True, False, False))


def init_params(
    model: MLP,
    key: Array,
    image_shape: tuple[int, int, int],
    *,
    init_scale: float = 1e-4,
    dtype=None,
) -> Params:
    """Draws the published initial parameters.

    Weights and biases of the first layer ~ init_scale N(0, 1); those of the others
    ~ U(-1, 1) / sqrt(fan_in).

    Args:
      model: from `network`, or any MLP.
      key: typed key.
      image_shape: (height, width, depth) in pixels.
      init_scale: standard deviation in the first layer.
      dtype: float32 unless given; the paper works in float64.

    Raises:
      ValueError: init_scale is not above 0.
    """
    _checks.typed_key(key=key)
    _checks.positive(init_scale=init_scale)
    shapes = jax.eval_shape(lambda k: model.init_params(k, image_shape, dtype), key)
    params = {}
    for i in range(len(model.widths) + 1):
        layer = shapes[f"Dense_{i}"]
        bound = layer["kernel"].shape[0] ** -0.5
        params[f"Dense_{i}"] = {}
        for j, name in enumerate(sorted(layer)):
            k = jax.random.fold_in(jax.random.fold_in(key, i), j)
            shape, kind = layer[name].shape, layer[name].dtype
            if i == 0:
                leaf = init_scale * jax.random.normal(k, shape, kind)
            else:
                leaf = jax.random.uniform(k, shape, kind, -bound, bound)
            params[f"Dense_{i}"][name] = leaf
    return params


def preprocess(
    images: Float[Array | np.ndarray, "n h w d"],
) -> tuple[Float[np.ndarray, "n h w d"], Float[np.ndarray, "h w d"]]:
    """Subtracts the mean image of the training images, pixel by pixel, as published.

    Args:
      images: training images; a mean per channel may be subtracted from them already.

    Returns:
      The centred images, and the mean image that was subtracted.

    Raises:
      ValueError: the images are no floating-point numbers.
    """
    images = np.asarray(images)
    _checks.floating(images=images)
    mean = images.mean(axis=0, dtype=np.float64).astype(images.dtype)
    return images - mean[None], mean


def single_output(model: MLP) -> None:
    """Raises ValueError unless the network has one output, as two classes need.

    Args:
      model: the MLP.

    Raises:
      ValueError: it has more.
    """
    if model.num_outputs != 1:
        raise ValueError(
            f"num_outputs={model.num_outputs}: the logistic loss and its max-margin "
            "attack take one output; use the KKT attack for more classes."
        )


class TrainState(NamedTuple):
    """params, the mean loss there, and the epochs behind them."""

    params: Params
    loss: Float[Array, ""]
    epochs: Array


class Trained(NamedTuple):
    """params: after training. loss: mean logistic loss there. epochs: taken.
    converged: the loss fell below `stop_loss`. state: to continue from.
    """  # noqa: D205

    params: Params
    loss: float
    epochs: int
    converged: bool
    state: TrainState


class _TrainData(NamedTuple):
    x: Array
    signs: Array
    learning_rate: Array
    stop_loss: Array


def _logistic(model: MLP, params: Params, x: Array, signs: Array) -> Array:
    """Mean binary cross-entropy of the outputs as logits."""
    return jnp.mean(jax.nn.softplus(-signs * model.apply_fn(params, x)[:, 0]))


@dataclasses.dataclass(frozen=True)
class _TrainStep:
    """One epoch; equal steps hash alike, so the loop is traced once per shape."""

    model: MLP

    def __call__(self, state: TrainState, epoch, data: _TrainData):
        del epoch

        def advance(state):
            grads = jax.grad(lambda p: _logistic(self.model, p, data.x, data.signs))(
                state.params
            )
            params = _tree.axpy(-data.learning_rate, grads, state.params)
            loss = _logistic(self.model, params, data.x, data.signs)
            return TrainState(params, loss, state.epochs + 1)

        running = (state.loss >= data.stop_loss) & jnp.isfinite(state.loss)
        state = jax.lax.cond(running, advance, lambda s: s, state)
        return state, {"loss": state.loss}


def _signs(labels, dtype) -> Array:
    """Labels 0/1 or -1/+1, a column or flat, as -1/+1."""
    flat = np.asarray(labels).reshape(-1)
    if flat.size != np.shape(labels)[0]:
        raise ValueError(
            f"y_train has shape {np.shape(labels)}: the attack is for two classes, so "
            "give one label per image, 0/1 or -1/+1."
        )
    if not (np.isin(flat, (0, 1)).all() or np.isin(flat, (-1, 1)).all()):
        found = ", ".join(f"{value:g}" for value in np.unique(flat)[:5])
        raise ValueError(f"y_train holds {found}: use labels 0/1 or -1/+1.")
    return jnp.asarray(np.where(flat > 0, 1, -1), dtype)


def init(model: MLP, params_0: Params, x_train, y_train) -> TrainState:
    """Returns the state before the first epoch.

    Args: those of `train`.
    """
    dtype = params_0["Dense_0"]["kernel"].dtype
    x, signs = jnp.asarray(x_train, dtype), _signs(y_train, dtype)
    params = jax.tree.map(jnp.array, params_0)
    loss = _logistic(model, params, x, signs)
    return TrainState(params, loss, jnp.zeros((), jnp.int32))


def train(
    model: MLP,
    params_0: Params,
    x_train: Float[Array | np.ndarray, "n ..."],
    y_train,
    *,
    learning_rate: float = 0.01,
    max_epochs: int = 1_000_000,
    stop_loss: float = 0.0,
    chunk: int = 1000,
    state: TrainState | None = None,
    callback: Callback | None = None,
) -> Trained:
    """Trains the victim: logistic loss, full-batch gradient descent, no momentum.

    Args:
      model: from `network`.
      params_0: from `init_params`; their dtype is that of training.
      x_train: images less their mean image, from `preprocess`.
      y_train: labels 0/1 or -1/+1, one per image.
      learning_rate: on the mean loss.
      max_epochs: in all, counting those already in `state`.
      stop_loss: mean loss below which training stops; 0 trains for all epochs.
      chunk: epochs between calls of `callback`.
      state: from an earlier call, to continue it.
      callback: `(epochs, state, metrics)` after each chunk.

    Raises:
      ValueError: labels that are not two classes, lengths that differ, a number out of
        range, or a loss that is no longer finite.
    """
    single_output(model)
    _checks.same_length(x_train=x_train, y_train=y_train)
    _checks.floating(x_train=x_train)
    _checks.finite_data(x_train=x_train)
    _checks.positive(learning_rate=learning_rate)
    _checks.at_least(0, stop_loss=stop_loss)
    dtype = params_0["Dense_0"]["kernel"].dtype
    x, signs = jnp.asarray(x_train, dtype), _signs(y_train, dtype)
    if state is None:
        state = init(model, params_0, x, y_train)

    def after_chunk(done, state, metrics):
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        loss = float(state.loss)
        return stop or loss < stop_loss or not np.isfinite(loss)

    data = _TrainData(
        x, signs, jnp.asarray(learning_rate, dtype), jnp.asarray(stop_loss, dtype)
    )
    state, _ = _loop.run(
        _TrainStep(model),
        state,
        data,
        num_steps=max_epochs,
        first_step=int(state.epochs),
        chunk=chunk,
        callback=after_chunk,
    )
    loss, epochs = float(state.loss), int(state.epochs)
    if not np.isfinite(loss):
        raise ValueError(
            f"The training loss became {loss} after {epochs} epochs: lower "
            "learning_rate."
        )
    return Trained(state.params, loss, epochs, loss < stop_loss, state)
