"""Mini-batch training of classifiers with augmentation, several networks at once.

Source: the evaluation of DC, DSA and DM (Zhao & Bilen, released code): SGD with
momentum 0.9 and weight decay 5e-4, one tenth of the step and a fresh momentum after the
middle epoch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, _loop, _platform
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.models import fitting
from ntk_privacy.models.convnet import Classifier

__all__ = ["ClassifierState", "init", "predict", "staggered", "train"]


class ClassifierState(NamedTuple):
    """params, velocity: of k networks, stacked. steps: taken by each of them."""

    params: Params
    velocity: Params
    steps: Int[Array, ""]


class _Data(NamedTuple):
    x: Any
    labels: Any
    key_data: Any


@dataclasses.dataclass(frozen=True)
class _Step:
    model: Classifier
    operations: tuple[str, ...]
    batch_size: int
    steps_per_epoch: int
    learning_rate: float
    momentum: float
    weight_decay: float
    drop_after: int | None
    parallel: bool
    regularize: Callable[..., Any] | None

    def losses(self, params, images, labels):
        logits = self.model.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def loss(self, params, images, labels, weights):
        losses = (
            self.losses if self.regularize is None else self.regularize(self.losses)
        )
        each = losses(params, images, labels)
        return jnp.sum(weights * each) / jnp.sum(weights)

    def one(self, params, velocity, key_data, step, data: _Data):
        key = jax.random.wrap_key_data(key_data)
        key_order, key_augment = jax.random.split(key)
        n, epoch = len(data.x), step // self.steps_per_epoch
        order = jax.random.permutation(jax.random.fold_in(key_order, epoch), n)
        # The last batch of an epoch is smaller: its rest counts nothing.
        padding = self.batch_size * self.steps_per_epoch - n
        first = (step % self.steps_per_epoch) * self.batch_size
        chosen = jax.lax.dynamic_slice_in_dim(
            jnp.pad(order, (0, padding)), first, self.batch_size
        )
        places = first + jnp.arange(self.batch_size, dtype=first.dtype)
        images = augmentation.augment(
            jax.random.fold_in(key_augment, step),
            data.x[chosen],
            operations=self.operations,
        )
        loss, grads = jax.value_and_grad(self.loss)(
            params, images, data.labels[chosen], (places < n).astype(data.x.dtype)
        )
        rate, kept = jnp.asarray(self.learning_rate, data.x.dtype), self.momentum
        if self.drop_after is not None:
            late = epoch > self.drop_after
            fresh = step == (self.drop_after + 1) * self.steps_per_epoch
            rate = jnp.where(late, rate / 10, rate)
            kept = jnp.where(fresh, 0, kept).astype(data.x.dtype)
        velocity = jax.tree.map(
            lambda v, g, p: kept * v + g + self.weight_decay * p,
            velocity,
            grads,
            params,
        )
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
        return params, velocity, loss

    def __call__(self, state: ClassifierState, step, data: _Data):
        def one(parts):
            params, velocity, key_data = parts
            return self.one(params, velocity, key_data, step, data)

        parts = (state.params, state.velocity, data.key_data)
        # Batched networks become grouped convolutions, which CPUs are slow at.
        run = jax.vmap(one) if self.parallel else lambda p: jax.lax.map(one, p)
        params, velocity, losses = run(parts)
        state = ClassifierState(params, velocity, state.steps + 1)
        return state, {"loss": jnp.mean(losses)}


def init(
    x_train: Float[Array, "n h w d"], *, model: Classifier, keys: Array
) -> ClassifierState:
    """Returns the state before the first step of `train` with these arguments.

    Args:
      x_train: gives the shape of an image, and the dtype.
      model: of every network.
      keys: typed keys, (k,).
    """
    pairs = jax.vmap(jax.random.split)(keys)
    networks = [
        model.init_params(key, x_train.shape[1:], x_train.dtype) for key in pairs[:, 0]
    ]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    zero = jax.tree.map(jnp.zeros_like, params)
    return ClassifierState(params, zero, jnp.zeros((), jnp.int32))


def train(
    x_train: Float[Array, "n h w d"],
    labels: Int[Array, " n"],
    *,
    model: Classifier,
    keys: Array,
    num_epochs: int,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    drop_after: int | None = None,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    parallel: bool | None = None,
    regularize: Callable[..., Any] | None = None,
    state: ClassifierState | None = None,
    chunk: int = 100,
    callback: Callback | None = None,
) -> ClassifierState:
    """Trains networks on the cross-entropy, one per key.

    Args:
      x_train: normalised images.
      labels: the class of each, an integer from 0.
      model: of every network.
      keys: typed keys, (k,); each fixes a network's start, order and augmentation.
      num_epochs: passes over the images, in random order, the last batch smaller.
      learning_rate: of SGD, in parameter units.
      momentum: of SGD, in [0, 1).
      weight_decay: added to the gradient, times the parameters.
      batch_size: images of a step; all of them if there are fewer.
      drop_after: index of the epoch after which the step is a tenth and momentum
        starts anew; None never.
      operations: of `data.augmentation`, drawn per batch with parameters per image.
      parallel: all networks in one pass rather than one after the other; None does so
        on accelerators.
      regularize: `loss_fn -> loss_fn` of `(params, images, labels) -> losses`, one per
        image, such as `functools.partial(curvature.regularize, weight=100)`; one object
        for all calls, by which the compiled loop is looked up.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: images or labels are none, a label has no output, lengths differ or a
        number is out of range.
    """
    _checks.key_array(keys=keys)
    _class_checks.labelled(model, x_train, labels, names=("x_train", "labels"))
    _checks.at_least(1, batch_size=batch_size)
    _checks.at_least(0, num_epochs=num_epochs, weight_decay=weight_decay)
    _checks.positive(learning_rate=learning_rate)
    _checks.in_range(0, 1, momentum=momentum)
    x, n = jnp.asarray(x_train), len(x_train)
    batch_size = min(batch_size, n)
    if parallel is None:
        parallel = _platform.name() != "cpu"
    pairs = jax.vmap(jax.random.split)(keys)
    if state is None:
        state = init(x, model=model, keys=keys)
    steps_per_epoch = -(-n // batch_size)
    step = _Step(
        model,
        operations,
        batch_size,
        steps_per_epoch,
        learning_rate,
        momentum,
        weight_decay,
        drop_after,
        parallel,
        regularize,
    )
    data = _Data(x, jnp.asarray(labels, jnp.int32), _checks.key_data(keys=pairs[:, 1]))
    state, _ = _loop.run(
        step,
        state,
        data,
        num_steps=num_epochs * steps_per_epoch,
        first_step=int(state.steps),
        chunk=chunk,
        callback=callback,
    )
    return state


def staggered(
    x_train: Float[Array, "n h w d"],
    labels: Int[Array, " n"],
    *,
    model: Classifier,
    key: Array,
    num_networks: int = 16,
    **options: Any,
) -> list[Params]:
    """Returns clean networks, of which number i was trained for i epochs.

    Args:
      x_train: normalised images.
      labels: the class of each.
      model: of every network.
      key: typed key.
      num_networks: the first is not trained at all.
      **options: of `train`, such as batch_size and operations.

    Raises:
      ValueError: see `train`.
    """
    _checks.typed_key(key=key)
    _checks.at_least(1, num_networks=num_networks)
    steps_per_epoch = -(-len(x_train) // options.get("batch_size", 256))
    networks = []
    for i, one in enumerate(jax.random.split(key, num_networks)):
        # Chunks of one length: the program is compiled once for all.
        state = train(
            x_train,
            labels,
            model=model,
            keys=one[None],
            num_epochs=i,
            chunk=steps_per_epoch,
            **options,
        )
        networks.append(jax.tree.map(lambda leaf: leaf[0], state.params))
    return networks


def predict(
    params: Params,
    x: Float[Array, "n h w d"],
    *,
    model: Classifier,
    batch_size: int = 500,
) -> np.ndarray:
    """Returns the class that each of k networks takes each image for, (k, n).

    Args:
      params: of the networks, stacked on the first axis.
      x: normalised images, not augmented.
      model: of the networks.
      batch_size: images of a pass.

    Raises:
      ValueError: there are no images, they are bytes, NaN or infinite, or do not fit
        the networks.
    """
    _checks.at_least(1, batch_size=batch_size)
    _class_checks.images(x=x)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
    fitting.check_call(model.apply_fn, one, image_shape=x.shape[1:], dtype=x.dtype)
    chunks = [
        np.asarray(_predict(model, params, jnp.asarray(x[i : i + batch_size])))
        for i in range(0, len(x), batch_size)
    ]
    return np.concatenate(chunks, axis=1)


def _predict_untraced(model: Classifier, params: Params, x: Array) -> Array:
    def one(p):
        return jnp.argmax(model.apply_fn(p, x), axis=1).astype(jnp.int32)

    return jax.lax.map(one, params)


_predict = jax.jit(_predict_untraced, static_argnums=0)
