"""Soft labels of every augmented view, and training that replays those views.

A teacher reads each batch once, cropped, mirrored and mixed; the draws and its logits
are kept, and the student sees the same batches (FKD).

Source: Shen & Xing, ECCV 2022 (arXiv:2112.01528), as SRe2L (arXiv:2306.13092) uses it
for ImageNet. Its scripts for CIFAR label anew at every step, images shifted by up to 4
pixels and mixed (mixup); here all sets have stored labels of crops.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _class_checks, _loop
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import crops
from ntk_privacy.models import fitting
from ntk_privacy.models.resnet import Stats
from ntk_privacy.training.squeeze import check_model

__all__ = [
    "SoftLabels",
    "StudentState",
    "divergence",
    "init_labels",
    "init_student",
    "post_train",
    "relabel",
    "view",
]


class SoftLabels(NamedTuple):
    """Draws and logits of all batches, in the order of training: s batches of b images.

    order: the images of each batch. boxes: crops. flips: mirrored or not. partner,
    window: CutMix. logits: the teacher's, half precision. steps: batches that have
    their logits.
    """

    order: Int[Array, "s b"]
    boxes: Int[Array, "s b 4"]
    flips: Bool[Array, "s b"]
    partner: Int[Array, "s b"]
    window: Int[Array, "s 4"]
    logits: Float[Array, "s b k"]
    steps: Int[Array, ""]


class StudentState(NamedTuple):
    """params, stats: of the student. opt_state: of AdamW. steps: done so far."""

    params: Params
    stats: Stats
    opt_state: Any
    steps: Int[Array, ""]


def view(
    images: Float[Array, "m h w d"],
    order: Int[Array, " b"],
    boxes: Int[Array, "b 4"],
    flips: Bool[Array, " b"],
    partner: Int[Array, " b"],
    window: Int[Array, "4"],
) -> Float[Array, "b h w d"]:
    """Returns a batch as teacher and student see it: cropped, mirrored, then mixed.

    Args:
      images: the synthetic set.
      order: the images of the batch.
      boxes: see `SoftLabels`, as the rest.
      flips: mirrored or not.
      partner: of CutMix.
      window: of CutMix.
    """
    x = crops.flipped(crops.resized_crop(images[order], boxes), flips)
    return crops.mixed(x, crops.Mix(partner, window))


def divergence(
    teacher: Float[Array, "n k"],
    student: Float[Array, "n k"],
    *,
    temperature: _checks.Number,
) -> Float[Array, " n"]:
    """Returns KL(teacher || student) of each row, softened; not times its square.

    Args:
      teacher: logits, a constant for the gradient.
      student: logits.
      temperature: that both are divided by.
    """
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    told = jax.nn.log_softmax(student / temperature)
    return jnp.sum(jnp.exp(wanted) * (wanted - told), axis=1)


def _draw(key, num, size, min_share, flip, cutmix):
    """One batch's draws."""
    key_box, key_flip, key_mix = jax.random.split(key, 3)
    boxes = crops.draw_boxes(key_box, num, size=size, min_share=min_share)
    flips = jax.random.bernoulli(key_flip, 0.5, (num,)) & flip
    mix = crops.draw_mix(key_mix, num, size=size)
    window = mix.window if cutmix else jnp.zeros_like(mix.window)
    return boxes, flips, mix.partner, window


def init_labels(
    images: Float[Array, "m h w d"],
    *,
    key: Array,
    num_outputs: int,
    num_epochs: int = 300,
    batch_size: int = 100,
    min_share: _checks.Number = 0.08,
    flip: bool = True,
    cutmix: bool = True,
) -> SoftLabels:
    """Returns all draws, without logits; the arguments are `relabel`'s.

    Args:
      images: the synthetic set.
      key: typed key.
      num_outputs: classes of the teacher.
      num_epochs: passes over the images.
      batch_size: images of a batch, all of them if there are fewer.
      min_share: least area of a crop.
      flip: whether half is mirrored.
      cutmix: whether batches are mixed.

    Raises:
      ValueError: a number is out of range.
    """
    _checks.at_least(1, num_epochs=num_epochs, batch_size=batch_size)
    _checks.positive(min_share=min_share)
    _checks.in_range(0, 1, min_share=min_share)
    m, size = len(images), images.shape[1:3]
    batch_size = min(batch_size, m)
    per_epoch = m // batch_size
    key_order, key_draw = jax.random.split(key)

    @jax.jit
    def draw():
        epochs = jnp.arange(num_epochs, dtype=jnp.int32)
        order = jax.lax.map(
            lambda e: jax.random.permutation(jax.random.fold_in(key_order, e), m),
            epochs,
        )
        order = order[:, : per_epoch * batch_size].reshape(-1, batch_size)
        steps = jnp.arange(num_epochs * per_epoch, dtype=jnp.int32)
        draws = jax.lax.map(
            lambda s: _draw(
                jax.random.fold_in(key_draw, s),
                batch_size,
                size,
                min_share,
                flip,
                cutmix,
            ),
            steps,
        )
        return order.astype(jnp.int32), *draws

    order, boxes, flips, partner, window = draw()
    logits = jnp.zeros((*order.shape, num_outputs), jnp.float16)
    steps = jnp.zeros((), jnp.int32)
    return SoftLabels(order, boxes, flips, partner, window, logits, steps)


@dataclasses.dataclass(frozen=True)
class _Read:
    model: Any

    def __call__(self, state: SoftLabels, step, data):
        images, params, stats = data
        x = view(images, *(leaf[step] for leaf in state[:5]))
        logits = self.model.eval_fn(params, stats, x).astype(state.logits.dtype)
        state = state._replace(
            logits=state.logits.at[step].set(logits), steps=state.steps + 1
        )
        return state, {"largest": jnp.max(jnp.abs(logits))}


def _check_outputs(model: Any, images: Any, wanted: int, name: str) -> None:
    outputs = _class_checks.num_outputs(model, images.shape[1:])
    if outputs != wanted:
        raise ValueError(
            f"{name}={wanted} but the network has {outputs} outputs: teacher, labels "
            "and student must have the same classes."
        )


def relabel(
    images: Float[Array, "m h w d"],
    params: Params,
    stats: Stats,
    *,
    model: Any,
    key: Array,
    num_outputs: int,
    num_epochs: int = 300,
    batch_size: int = 100,
    min_share: _checks.Number = 0.08,
    flip: bool = True,
    cutmix: bool = True,
    state: SoftLabels | None = None,
    chunk: int = 50,
    callback: Callback | None = None,
) -> SoftLabels:
    """Reads all batches of training with the teacher, in evaluation mode.

    The scripts released for CIFAR leave the teacher in training mode, where a batch's
    labels depend on its neighbours; ours never are.

    Args:
      images: the synthetic set, normalised.
      params: of the teacher.
      stats: its running statistics.
      model: the teacher.
      key: typed key; fixes all draws.
      num_outputs: its classes.
      num_epochs: passes over the images.
      batch_size: images of a batch, all of them if there are fewer; an incomplete last
        batch of an epoch is left out.
      min_share: least area of a crop.
      flip: whether half is mirrored.
      cutmix: whether batches are mixed.
      state: of an earlier call with the same arguments, to continue.
      chunk: batches between calls of `callback`.
      callback: `(batches, state, metrics)` after each chunk.

    Raises:
      ValueError: the teacher has no running statistics or another number of outputs,
        images are bytes or not finite, a number is out of range, or its logits are too
        large for half precision.
    """
    _checks.typed_key(key=key)
    check_model(model)
    _class_checks.images(images=images)
    _check_outputs(model, images, num_outputs, "num_outputs")
    fitting.check_call(
        model.eval_fn, params, stats, image_shape=images.shape[1:], dtype=images.dtype
    )
    if state is None:
        state = init_labels(
            images,
            key=key,
            num_outputs=num_outputs,
            num_epochs=num_epochs,
            batch_size=batch_size,
            min_share=min_share,
            flip=flip,
            cutmix=cutmix,
        )
    state, _ = _loop.run(
        _Read(model),
        state,
        (jnp.asarray(images), params, stats),
        num_steps=len(state.order),
        first_step=int(state.steps),
        chunk=chunk,
        callback=callback,
    )
    if not bool(jnp.isfinite(state.logits).all()):
        raise ValueError(
            "The teacher's logits are NaN or above 65504, the largest number of half "
            "precision: train it with a smaller step."
        )
    return state


@dataclasses.dataclass(frozen=True)
class _Step:
    model: Any
    per_epoch: int
    num_epochs: int
    learning_rate: _checks.Number
    weight_decay: _checks.Number
    temperature: _checks.Number

    def __call__(self, state: StudentState, step, data):
        images, labels = data
        x = view(images, *(leaf[step] for leaf in labels[:5]))
        teacher = labels.logits[step].astype(x.dtype)

        def loss_fn(params):
            logits, after = self.model.train_fn(params, state.stats, x)
            each = divergence(teacher, logits, temperature=self.temperature)
            return jnp.mean(each), after

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        # optax raises decay rates to an integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optax.scale_by_adam().update(grads, state.opt_state)
        part = (step // self.per_epoch).astype(x.dtype) / self.num_epochs
        rate = self.learning_rate * (1 + jnp.cos(jnp.pi * part)) / 2

        def moved(p, u):
            # Biases and norms do not decay.
            decay = self.weight_decay if p.ndim > 1 else 0.0
            return p - (rate * (u + decay * p)).astype(p.dtype)

        params = jax.tree.map(moved, state.params, updates)
        return StudentState(params, stats, opt_state, state.steps + 1), {"loss": loss}


def init_student(
    images: Float[Array, "m h w d"], *, model: Any, key: Array
) -> StudentState:
    """Returns the student before the first step of `post_train`.

    Args:
      images: the synthetic set.
      model: of the student.
      key: typed key.

    Raises:
      ValueError: the student has no running statistics.
    """
    _checks.typed_key(key=key)
    check_model(model)
    params = model.init_params(key, images.shape[1:], images.dtype)
    return StudentState(
        params,
        model.init_stats(images.dtype),
        optax.scale_by_adam().init(params),
        jnp.zeros((), jnp.int32),
    )


def post_train(
    images: Float[Array, "m h w d"],
    labels: SoftLabels,
    *,
    model: Any,
    key: Array,
    num_epochs: int,
    learning_rate: _checks.Number = 1e-3,
    weight_decay: _checks.Number = 0.01,
    temperature: _checks.Number = 20.0,
    state: StudentState | None = None,
    chunk: int = 50,
    callback: Callback | None = None,
) -> StudentState:
    """Trains a student on the stored batches and soft labels, with AdamW.

    The step falls along a cosine, epoch by epoch.

    Args:
      images: the synthetic set that was labelled.
      labels: of `relabel`.
      model: of the student, with running statistics.
      key: typed key; fixes the start.
      num_epochs: that `labels` has.
      learning_rate: at its greatest.
      weight_decay: not of biases and norms.
      temperature: of the labels, 20 for stored ones.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: the labels are not whole, not of so many epochs or of another number
        of classes than the student has outputs, or a number is out of range.
    """
    _checks.typed_key(key=key)
    _checks.at_least(1, num_epochs=num_epochs)
    _checks.at_least(0, weight_decay=weight_decay)
    _checks.positive(learning_rate=learning_rate, temperature=temperature)
    batches = len(labels.order)
    if int(labels.steps) < batches:
        raise ValueError(
            f"Only {int(labels.steps)} of {batches} batches have labels: let relabel "
            "go on from this state first."
        )
    per_epoch = len(images) // labels.order.shape[1]
    if batches != num_epochs * per_epoch:
        raise ValueError(
            f"labels has {batches} batches, which are not num_epochs={num_epochs} of "
            f"{len(images)} images: give the number and images that relabel was given."
        )
    _class_checks.images(images=images)
    _check_outputs(model, images, labels.logits.shape[-1], "labels of classes")
    x = jnp.asarray(images)
    step = _Step(
        model,
        per_epoch,
        num_epochs,
        learning_rate,
        weight_decay,
        temperature,
    )
    state = init_student(x, model=model, key=key) if state is None else state
    state, _ = _loop.run(
        step,
        state,
        (x, labels),
        num_steps=batches,
        first_step=int(state.steps),
        chunk=chunk,
        callback=callback,
    )
    return state
