"""Training of one network with running statistics, on any loss: SRe2L's first stage.

Source: Yin, Xing & Shen, NeurIPS 2023 (SRe2L, arXiv:2306.13092); settings for CIFAR as
in GUARD (arXiv:2403.10045), released code: SGD of step 0.1 that falls to zero along a
cosine, momentum 0.9, weight decay 5e-4, batches of 128, shifts by 4 pixels and flips.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, _loop
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import crops
from ntk_privacy.models import fitting
from ntk_privacy.models.resnet import BatchNormNetwork, Stats

__all__ = [
    "BatchLoss",
    "Regularized",
    "SqueezeState",
    "cross_entropy",
    "init",
    "predict",
    "train",
]


class SqueezeState(NamedTuple):
    """params, stats: of the network. velocity: of SGD. steps: done so far."""

    params: Params
    stats: Stats
    velocity: Params
    steps: Int[Array, ""]


@runtime_checkable
class BatchLoss(Protocol):
    """What `train` lowers: hashable, and one object for all calls."""

    def __call__(
        self, model: Any, params: Params, stats: Stats, x: Any, labels: Any, key: Any
    ) -> tuple[Any, Stats]:
        """Returns the loss of a batch, and the running statistics after it."""
        ...


def cross_entropies(
    logits: Float[Array, "n k"], labels: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns the cross-entropy of each row."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def cross_entropy(
    model: Any,
    params: Params,
    stats: Stats,
    x: Float[Array, "n h w d"],
    labels: Int[Array, " n"],
    key: Array | None,
) -> tuple[Float[Array, ""], Stats]:
    """The plain loss: cross-entropy with the batch's statistics.

    Args:
      model: with `train_fn`.
      params: of the network.
      stats: running statistics of its normalisation.
      x: images, normalised.
      labels: their classes.
      key: not used.
    """
    del key
    logits, after = model.train_fn(params, stats, x)
    return jnp.mean(cross_entropies(logits, labels)), after


@dataclasses.dataclass(frozen=True)
class Regularized:
    """Cross-entropy in training mode, and a penalty on that of evaluation.

    As released: the penalty's passes use the running statistics, those of this batch
    already among them.

    Attributes:
      transform: `(loss_fn, penalty_loss_fn=) -> loss_fn`, such as
        `functools.partial(curvature.regularize, weight=100)`.
      share: of the batch that the penalty sees, its first images. Those are random,
        so less than 1 is a noisier estimate of the same penalty at less cost.

    Raises:
      ValueError: share is not in (0, 1].
    """

    transform: Callable[..., Any]
    share: _checks.Number = 1.0

    def __post_init__(self):
        _checks.positive(share=self.share)
        _checks.in_range(0, 1, share=self.share)

    def __call__(self, model, params, stats, x, labels, key):
        """See `BatchLoss`."""
        del key
        logits, after = model.train_fn(params, stats, x)
        losses = cross_entropies(logits, labels)
        seen = max(1, round(self.share * len(x)))

        def known(params, x, labels):
            del params, x, labels
            return losses[:seen]

        def evaluated(params, x, labels):
            return cross_entropies(model.eval_fn(params, after, x), labels)

        total = self.transform(known, penalty_loss_fn=evaluated)
        told = jnp.mean(total(params, x[:seen], labels[:seen]))
        # What the first images were told of the plain loss is that of all of them.
        return told - jnp.mean(losses[:seen]) + jnp.mean(losses), after


class _Data(NamedTuple):
    x: Any
    labels: Any
    key_data: Any


@dataclasses.dataclass(frozen=True)
class _Step:
    model: Any
    loss: Any
    batch_size: int
    steps_per_epoch: int
    num_epochs: int
    learning_rate: _checks.Number
    warmup_epochs: int
    momentum: _checks.Number
    weight_decay: _checks.Number
    padding: int
    flip: bool

    def rate(self, step, dtype):
        epoch = (step // self.steps_per_epoch).astype(dtype)
        late = (epoch - self.warmup_epochs) / max(
            1, self.num_epochs - self.warmup_epochs
        )
        cosine = (1 + jnp.cos(jnp.pi * late)) / 2
        warm = 0.01 + 0.99 * epoch / max(1, self.warmup_epochs)
        rate = self.learning_rate * jnp.where(epoch < self.warmup_epochs, warm, cosine)
        return rate.astype(dtype)

    def __call__(self, state: SqueezeState, step, data: _Data):
        key_order, key_draws = jax.random.split(jax.random.wrap_key_data(data.key_data))
        epoch, place = step // self.steps_per_epoch, step % self.steps_per_epoch
        order = jax.random.permutation(
            jax.random.fold_in(key_order, epoch), len(data.x)
        )
        chosen = jax.lax.dynamic_slice_in_dim(
            order, place * self.batch_size, self.batch_size
        )
        key_crop, key_loss = jax.random.split(jax.random.fold_in(key_draws, step))
        x = crops.pad_crop_flip(
            key_crop, data.x[chosen], padding=self.padding, flip=self.flip
        )

        def loss_fn(params):
            return self.loss(
                self.model, params, state.stats, x, data.labels[chosen], key_loss
            )

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        velocity = jax.tree.map(
            lambda v, g, p: self.momentum * v + g + self.weight_decay * p,
            state.velocity,
            grads,
            state.params,
        )
        rate = self.rate(step, loss.dtype)
        params = jax.tree.map(lambda p, v: p - rate * v, state.params, velocity)
        return SqueezeState(params, stats, velocity, state.steps + 1), {"loss": loss}


def check_model(model: Any) -> None:
    """Raises ValueError unless a network has batch normalisation that remembers."""
    if not isinstance(model, BatchNormNetwork):
        raise ValueError(  # noqa: TRY004
            f"{type(model).__name__} has no batch normalisation with running "
            "statistics, which images are recovered from: use models.ResNet18."
        )


def init(x_train: Float[Array, "n h w d"], *, model: Any, key: Array) -> SqueezeState:
    """Returns the state before the first step of `train` with these arguments.

    Args:
      x_train: gives the shape of an image, and the dtype.
      model: the network.
      key: typed key.

    Raises:
      ValueError: the network has no running statistics.
    """
    _checks.typed_key(key=key)
    check_model(model)
    key = jax.random.fold_in(key, 2**31 - 1)
    params = model.init_params(key, x_train.shape[1:], x_train.dtype)
    return SqueezeState(
        params,
        model.init_stats(x_train.dtype),
        jax.tree.map(jnp.zeros_like, params),
        jnp.zeros((), jnp.int32),
    )


def train(
    x_train: Float[Array, "n h w d"],
    labels: Int[Array, " n"],
    *,
    model: Any,
    key: Array,
    num_epochs: int = 200,
    loss: BatchLoss = cross_entropy,
    learning_rate: _checks.Number = 0.1,
    warmup_epochs: int = 0,
    momentum: _checks.Number = 0.9,
    weight_decay: _checks.Number = 5e-4,
    batch_size: int = 128,
    padding: int = 4,
    flip: bool = True,
    state: SqueezeState | None = None,
    chunk: int = 20,
    callback: Callback | None = None,
) -> SqueezeState:
    """Trains a network; an incomplete last batch of an epoch is left out.

    Args:
      x_train: normalised images.
      labels: the class of each, an integer from 0.
      model: with running statistics, such as `models.ResNet18()`.
      key: typed key; fixes the start and, with the step, all later draws.
      num_epochs: passes over the images, in random order.
      loss: of a batch: `cross_entropy`, `Regularized`, or of `training.adversarial`.
      learning_rate: of SGD at its greatest, in parameter units.
      warmup_epochs: of a step that grows linearly from a hundredth of its greatest.
      momentum: in [0, 1).
      weight_decay: added to the gradient, times the parameters, norms included.
      batch_size: images of a step; all of them if there are fewer.
      padding: pixels that a training image is shifted by at most.
      flip: whether half of the training images are mirrored.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: images or labels are none, a label has no output, lengths differ, a
        number is out of range, or the network has no running statistics.
    """
    _checks.typed_key(key=key)
    check_model(model)
    _class_checks.labelled(model, x_train, labels, names=("x_train", "labels"))
    _checks.at_least(1, batch_size=batch_size, num_epochs=num_epochs)
    _checks.at_least(
        0, weight_decay=weight_decay, padding=padding, warmup_epochs=warmup_epochs
    )
    _checks.positive(learning_rate=learning_rate)
    _checks.in_range(0, 1, momentum=momentum)
    x = jnp.asarray(x_train)
    batch_size = min(batch_size, len(x))
    steps_per_epoch = len(x) // batch_size
    step = _Step(
        model,
        loss,
        batch_size,
        steps_per_epoch,
        num_epochs,
        learning_rate,
        warmup_epochs,
        momentum,
        weight_decay,
        padding,
        flip,
    )
    state = init(x, model=model, key=key) if state is None else state
    data = _Data(x, jnp.asarray(labels, jnp.int32), _checks.key_data(key=key))
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


@functools.partial(jax.jit, static_argnums=0)
def _classes(model, params, stats, x):
    return jnp.argmax(model.eval_fn(params, stats, x), axis=1)


def predict(
    params: Params,
    stats: Stats,
    x: Float[Array, "n h w d"],
    *,
    model: Any,
    batch_size: int = 500,
) -> np.ndarray:
    """Returns the class that the network takes each image for.

    Args:
      params: of the network.
      stats: running statistics.
      x: normalised images.
      model: the network.
      batch_size: images of a pass.

    Raises:
      ValueError: there are no images, they are bytes, NaN or infinite, or do not fit
        the network.
    """
    _checks.at_least(1, batch_size=batch_size)
    _class_checks.images(x=x)
    fitting.check_call(
        model.eval_fn, params, stats, image_shape=x.shape[1:], dtype=x.dtype
    )
    parts = [
        np.asarray(_classes(model, params, stats, jnp.asarray(x[i : i + batch_size])))
        for i in range(0, len(x), batch_size)
    ]
    return np.concatenate(parts)
