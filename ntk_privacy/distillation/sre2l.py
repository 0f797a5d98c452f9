"""SRe2L: squeeze data into a network, recover images from it, label them softly.

The stages are `squeeze` (any loss, so a regularised one too), `recover`, `relabel` and
`post_train`; each takes what the last returned, and goes on from its own state.

Source: Yin, Xing & Shen, NeurIPS 2023 (arXiv:2306.13092); with a robust network, GUARD
(arXiv:2403.10045). Settings and the order of layers are those of the released code.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _class_checks, _platform
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import crops
from ntk_privacy.distillation import search
from ntk_privacy.distillation.crop_share import MinShare, constant_crop
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.models import fitting
from ntk_privacy.models.resnet import Stats
from ntk_privacy.training.soft_labels import post_train, relabel
from ntk_privacy.training.squeeze import check_model, cross_entropies
from ntk_privacy.training.squeeze import train as squeeze

__all__ = [
    "MinShare",
    "RecoverState",
    "bn_loss",
    "constant_crop",
    "init",
    "loss",
    "post_train",
    "recover",
    "relabel",
    "squeeze",
]

_FIRST_WEIGHT = 10.0


class RecoverState(NamedTuple):
    """What a recovery resumes from.

    images, labels: sorted by class. opt_state: of Adam. steps: done so far. nonfinite:
    the loss or the images became NaN or infinite; the rest is the last good state.
    """

    images: Float[Array, "m h w d"]
    labels: Int[Array, " m"]
    opt_state: Any
    steps: Int[Array, ""]
    nonfinite: Bool[Array, ""]


def bn_loss(
    found: Stats, stats: Stats, *, first_weight: _checks.Number = _FIRST_WEIGHT
) -> Float[Array, ""]:
    r"""$\sum_l w_l (\|v_l - V_l\| + \|\mu_l - M_l\|)$, the first weight 10, others 1.

    Args:
      found: moments of what enters each norm, of `moments_fn`.
      stats: the network's running statistics.
      first_weight: of the stem's norm.
    """
    total = jnp.zeros((), found[0].mean.dtype)
    for layer, (batch, running) in enumerate(zip(found, stats, strict=True)):
        weight = first_weight if layer == 0 else 1.0
        total += weight * (
            _norm(batch.variance - running.variance) + _norm(batch.mean - running.mean)
        )
    return total


def _norm(v: Float[Array, " c"]) -> Float[Array, ""]:
    square = jnp.sum(jnp.square(v))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def loss(
    images: Float[Array, "n h w d"],
    labels: Int[Array, " n"],
    *,
    model: Any,
    params: Params,
    stats: Stats,
    bn_weight: _checks.Number,
) -> Float[Array, ""]:
    """Mean cross-entropy of hard labels, plus the weighted `bn_loss` of the batch.

    Args:
      images: normalised, one batch.
      labels: their classes.
      model: of the squeezed network.
      params: its parameters.
      stats: its running statistics.
      bn_weight: of `bn_loss`.
    """
    logits, found = model.moments_fn(params, stats, images)
    return jnp.mean(cross_entropies(logits, labels)) + bn_weight * bn_loss(found, stats)


@functools.lru_cache(maxsize=64)
def _adam(
    learning_rate: _checks.Number, num_steps: int
) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    return optax.adam(schedule, b1=0.5, b2=0.9, eps=1e-8)


class _Data(NamedTuple):
    params: Any
    stats: Any
    low: Any
    high: Any
    key_data: Any


@dataclasses.dataclass(frozen=True)
class _Step:
    model: Any
    num_classes: int
    num_steps: int
    learning_rate: _checks.Number
    bn_weight: _checks.Number
    jitter: int
    signed_jitter: bool
    min_share: MinShare | None
    parallel: bool
    flip: bool = True

    def viewed(self, key, images, step):
        """Crops, mirrors and rolls a batch, all images alike."""
        key_box, key_flip, key_roll = jax.random.split(key, 3)
        if self.min_share is not None:
            progress = step.astype(images.dtype) / self.num_steps
            box = crops.draw_boxes(
                key_box,
                1,
                size=images.shape[1:3],
                min_share=self.min_share(progress).astype(jnp.float32),
            )
            images = crops.resized_crop(images, box)
            if self.flip:
                flips = jax.random.bernoulli(key_flip, 0.5, (1,))
                images = crops.flipped(images, flips)
        if self.jitter:
            low = -self.jitter if self.signed_jitter else 0
            move = jax.random.randint(key_roll, (2,), low, self.jitter + 1)
            images = jnp.roll(images, move, (1, 2))
        return images

    def __call__(self, state: RecoverState, step, data: _Data):
        key = jax.random.fold_in(jax.random.wrap_key_data(data.key_data), step)
        c = self.num_classes
        rounds = state.images.reshape(c, -1, *state.images.shape[1:]).swapaxes(0, 1)
        labels = jnp.arange(c, dtype=jnp.int32)

        def of_round(pair):
            index, images = pair

            def loss_fn(images):
                return loss(
                    self.viewed(jax.random.fold_in(key, index), images, step),
                    labels,
                    model=self.model,
                    params=data.params,
                    stats=data.stats,
                    bn_weight=self.bn_weight,
                )

            return jax.value_and_grad(loss_fn)(images)

        pairs = (jnp.arange(len(rounds), dtype=jnp.int32), rounds)
        run = jax.vmap if self.parallel else lambda f: lambda p: jax.lax.map(f, p)
        losses, grads = run(of_round)(pairs)
        grads = grads.swapaxes(0, 1).reshape(state.images.shape)
        # optax raises decay rates to an integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = _adam(self.learning_rate, self.num_steps).update(
                grads, state.opt_state, state.images
            )
        images: Any = optax.apply_updates(state.images, updates)
        finite = jnp.isfinite(images).all()
        images = jnp.clip(images, data.low, data.high)
        value = jnp.mean(losses)
        new = state._replace(images=images, opt_state=opt_state)
        return search.guarded(state, new, value, finite), {"loss": value}


def init(
    *,
    key: Array,
    image_shape: tuple[int, ...],
    num_classes: int,
    images_per_class: int = 10,
    num_steps: int = 1000,
    learning_rate: _checks.Number = 0.25,
    dtype: Any = jnp.float32,
) -> RecoverState:
    """Returns N(0, 1) noise and the optimizer's start; the arguments are `recover`'s.

    Args:
      key: typed key.
      image_shape: (height, width, depth) in pixels.
      num_classes: classes.
      images_per_class: images of each.
      num_steps: steps in all.
      learning_rate: of Adam.
      dtype: of the images.

    Raises:
      ValueError: a number is out of range.
    """
    _checks.typed_key(key=key)
    _checks.at_least(
        1, num_classes=num_classes, images_per_class=images_per_class, steps=num_steps
    )
    _checks.positive(learning_rate=learning_rate)
    key = jax.random.fold_in(key, 2**31 - 1)  # no step has this number
    shape = (num_classes * images_per_class, *image_shape)
    images = jax.random.normal(key, shape, dtype)
    return RecoverState(
        images,
        jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), images_per_class),
        _adam(learning_rate, num_steps).init(images),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )


def recover(
    params: Params,
    stats: Stats,
    *,
    model: Any,
    key: Array,
    image_shape: tuple[int, ...],
    num_classes: int,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    images_per_class: int = 10,
    num_steps: int = 1000,
    learning_rate: _checks.Number = 0.25,
    bn_weight: _checks.Number = 0.01,
    jitter: int = 4,
    signed_jitter: bool = False,
    min_share: MinShare | None = None,
    flip: bool = True,
    parallel: bool | None = None,
    state: RecoverState | None = None,
    chunk: int = 50,
    callback: Callback | None = None,
) -> Distilled:
    """Moves noise until the network reads it as its classes, layer by layer as data.

    One image of each class makes a batch, whose moments are matched: images of one
    class know nothing of each other. The defaults are SRe2L's for CIFAR. Above 100
    classes the released code takes 100 at a time; here a batch is all of them. Its
    total variation and norm of images are left out: every released run weights them 0.

    Args:
      params: of the squeezed network.
      stats: its running statistics; it is in evaluation mode throughout.
      model: the network.
      key: typed key; fixes the noise and, with the step, all later draws.
      image_shape: (height, width, depth) in pixels.
      num_classes: classes.
      mean: intensity of each channel, which normalised the data.
      deviation: likewise; with the mean it bounds the images to intensities in [0, 1].
      images_per_class: images of each class.
      num_steps: steps in all, counting those in `state`.
      learning_rate: of Adam (0.5, 0.9) at its greatest; it falls along a cosine.
      bn_weight: of `bn_loss` against the cross-entropy.
      jitter: pixels that a batch is rolled by at most, in both directions.
      signed_jitter: whether up and left too.
      min_share: least area of crops, `constant_crop(0.08)` or of `cda`; None is no
        crop and no mirroring, as for CIFAR.
      flip: whether half of the crops are mirrored.
      parallel: all batches in one pass; None does so on accelerators.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk.

    Returns:
      Normalised images, their classes, and the loss before each step.

    Raises:
      ValueError: the network has no running statistics or fewer outputs than classes,
        the parameters are not finite, of another network or of other images, a number
        is out of range, or `state` has other shapes.
    """
    _checks.typed_key(key=key)
    check_model(model)
    _checks.at_least(0, bn_weight=bn_weight, jitter=jitter)
    if not len(mean) == len(deviation) == image_shape[-1]:
        raise ValueError(
            f"mean has {len(mean)} and deviation {len(deviation)} entries for images "
            f"of {image_shape[-1]} channels: give one of each per channel."
        )
    for centre, value in zip(mean, deviation, strict=True):
        _checks.in_range(0, 1, mean=centre)
        _checks.positive(deviation=value)
    outputs = _class_checks.num_outputs(model, image_shape)
    if num_classes > outputs:
        raise ValueError(
            f"num_classes={num_classes} but the network has {outputs} outputs: images "
            f"are recovered of at most {outputs} classes."
        )
    _checks.full_precision(params=params, stats=stats)
    fitting.check_call(model.eval_fn, params, stats, image_shape=image_shape)
    _checks.finite(params=params, stats=stats)
    dtype = stats[0].mean.dtype
    start = init(
        key=key,
        image_shape=image_shape,
        num_classes=num_classes,
        images_per_class=images_per_class,
        num_steps=num_steps,
        learning_rate=learning_rate,
        dtype=dtype,
    )
    m, s = (jnp.asarray(v, dtype) for v in (mean, deviation))
    at = (None, None, None)
    data = _Data(
        params, stats, (-m / s)[at], ((1 - m) / s)[at], _checks.key_data(key=key)
    )
    if parallel is None:
        parallel = _platform.name() != "cpu"
    step = _Step(
        model,
        num_classes,
        num_steps,
        learning_rate,
        bn_weight,
        jitter,
        signed_jitter,
        min_share,
        parallel,
        flip,
    )
    return search.descend(
        step,
        search.resume(state, start),
        data,
        num_steps=num_steps,
        chunk=chunk,
        callback=callback,
    )
