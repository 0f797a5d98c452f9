"""What every attack starts from and ends with: checked input, and what was read."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import losses
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    Limits,
    ThreatModel,
    distance,
    per_sample,
)

__all__ = [
    "Found",
    "LogitsFn",
    "Task",
    "batch_size",
    "carry_out",
    "evaluate",
    "finish",
    "finite",
    "prepare",
    "refuse_nan",
    "takes_key",
]

LogitsFn = Callable[..., Any]
"""`images -> logits`, pure, or `(images, *, key) -> logits` for a random model.

A key with a default, or one of its own, makes a model that is not random.
Each image is read by itself: batches are put together anew as images are done.
It must be one object for all calls with the same shapes, else it is traced again. With
`jax.tree_util.Partial(apply_fn, params)` the parameters are arguments of the compiled
program: other parameters of the same shapes do not trace again.
"""


# On CPU a batch that fits the caches takes less time per image than a large one.
_BATCH = {"cpu": 32}
_MOST = 512


def batch_size(count: int) -> int:
    """Returns how many of so many images are best evaluated at once."""
    return min(_BATCH.get(jax.default_backend(), _MOST), count)


class Task(NamedTuple):
    """Checked input on the device.

    Attributes:
      model: `(images, key) -> logits` in the dtype of the images, a pytree.
      x, y: images and labels.
      logits: of the model on x.
      active: what shall be attacked: what is read correctly.
      limits: numbers of the threat model.
    """

    model: Any
    x: Float[Array, "n h w c"]
    y: Int[Array, " n"]
    logits: Float[Array, "n k"]
    active: Bool[Array, " n"]
    limits: Limits


class Found(NamedTuple):
    """What the compiled part of an attack returns: images to show, and their cost."""

    images: Float[Array, "n h w c"]
    success: Bool[Array, " n"]
    queries: Int[Array, " n"]


def takes_key(logits_fn: LogitsFn) -> bool:
    """Returns whether a model is random: whether it must be given a `key`.

    One with a key of its own, or that may do without, is as it is by default.
    """
    try:
        found = inspect.signature(logits_fn).parameters.get("key")
    except (TypeError, ValueError):
        return False
    return found is not None and found.default is inspect.Parameter.empty


def _plain(logits_fn: Any, x: Array, key: Array) -> Any:
    del key
    return logits_fn(x)


def _random(logits_fn: Any, x: Array, key: Array) -> Any:
    return logits_fn(x, key=key)


def _cast(model: Any, x: Array, key: Array) -> Array:
    return model(x, key).astype(x.dtype)


@jax.jit
def _read(model: Any, x: Array, key: Array) -> Any:
    return model(x, key)


def prepare(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
) -> Task:
    """Checks the input and reads the clean images.

    Args:
      logits_fn: see `LogitsFn`.
      x: images in the box of the threat model.
      y: their labels, 0 .. k - 1.
      key: typed key, for a random model.
      threat_model: what the attacker may do.

    Raises:
      ValueError: no images, images that are no numbers of floating point or outside the
        box, labels that are no classes, logits of the wrong shape, NaN logits.
      TypeError: within jit, vmap or grad.
    """
    given = jax.tree.leaves((x, y, key, logits_fn))
    # Within jit all that is made is traced, too.
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*given, jnp.zeros(()))):
        raise TypeError(
            "An attack is traced: attacks compile themselves and look at images; call "
            "them outside of jit, vmap and grad."
        )
    _checks.same_length(x=x, y=y)
    # NumPy's float64 is float32 here unless JAX has 64 bits.
    x, labels = jnp.asarray(x), np.asarray(y)
    if not x.size or x.ndim != 4:
        raise ValueError(
            f"x has shape {x.shape}: give at least one image, as (n, height, width, "
            "channels)."
        )
    _checks.floating(x=x)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"y is {labels.dtype} of shape {labels.shape}: give one class per image, "
            f"integers of shape ({len(x)},)."
        )
    limits = threat_model.limits(x.dtype)
    least, most = jnp.min(x), jnp.max(x)
    if not (limits.low <= least and most <= limits.high):
        raise ValueError(
            f"x spans [{float(least):.6g}, {float(most):.6g}], outside the box "
            f"[{threat_model.low}, {threat_model.high}]: scale the images to it, and "
            "normalise inside the model."
        )
    partial = jax.tree_util.Partial
    inner = logits_fn if isinstance(logits_fn, partial) else partial(logits_fn)
    raw = partial(_random if takes_key(logits_fn) else _plain, inner)
    logits = _read(raw, x, key)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(x) or shape[1] < 2:
        raise ValueError(
            f"logits_fn returned {shape or type(logits).__name__}: return an array "
            f"({len(x)}, classes) with at least two classes."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits_fn returned {logits.dtype}: return floating-point logits."
        )
    bad = int(jnp.sum(jnp.any(jnp.isnan(logits), axis=1)))
    if bad:
        raise ValueError(
            f"logits_fn returned NaN for {bad} of {len(x)} images: nothing can be said "
            "of its robustness; use parameters that are finite."
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            f"y spans [{labels.min()}, {labels.max()}] but the model has {shape[1]} "
            f"classes: labels must lie in [0, {shape[1] - 1}]."
        )
    logits, y = logits.astype(x.dtype), jnp.asarray(labels.astype(np.int32))
    return Task(partial(_cast, raw), x, y, logits, ~losses.misread(logits, y), limits)


@functools.partial(jax.jit, static_argnames="norm")
def finish(task: Task, found: Found, *, norm: str) -> Adversarial:
    """Returns the result: what was misread before is returned as it was.

    Args:
      task: of `prepare`.
      found: of the attack.
      norm: of the threat model.
    """
    images = jnp.where(per_sample(task.active), found.images, task.x)
    return Adversarial(
        images,
        jnp.where(task.active, found.success, losses.misread(task.logits, task.y)),
        jnp.where(task.active, found.queries, 0),
        distance(images - task.x, norm=norm),
    )


def carry_out(
    run: Callable[..., Found],
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    **options: Any,
) -> Adversarial:
    """Checks the input, attacks, and returns the result.

    Args:
      run: `(task, *, key, norm, **options) -> Found`.
      logits_fn: see `LogitsFn`.
      x: images.
      y: labels.
      key: typed key.
      threat_model: what the attacker may do.
      options: of `run`.

    Raises:
      ValueError: see `prepare` and `refuse_nan`.
    """
    task = prepare(logits_fn, x, y, key=key, threat_model=threat_model)
    found = run(task, key=key, norm=threat_model.norm, **options)
    refuse_nan(task, found.images, key)
    return finish(task, found, norm=threat_model.norm)


@jax.jit
def _unread(task: Task, images: Array, key: Array) -> Bool[Array, " n"]:
    last = jnp.where(per_sample(task.active), images, task.x)
    return jnp.any(jnp.isnan(task.model(last, key)), axis=1)


def refuse_nan(task: Task, images: Float[Array, "n h w c"], key: Array) -> None:
    """Refuses a model with NaN where an attack ended.

    Attacks take NaN logits for misread and end there, all but PGD and MIM, which go on
    to their last step. `evaluation.robust_accuracy` looks at every point.

    Args:
      task: of `prepare`.
      images: of the attack.
      key: typed key.

    Raises:
      ValueError: NaN logits.
    """
    bad = int(jnp.sum(_unread(task, images, key)))
    if bad:
        raise ValueError(
            f"logits_fn returned NaN for {bad} of {len(images)} images under attack: "
            "nothing can be said of its robustness; repair the model."
        )


def finite(gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns a gradient of which sums, squares and quotients are finite.

    NaN in one place, or infinity over infinity, would move a pixel out of every bound.

    Args:
      gradient: one for each image.
    """
    most = float(jnp.finfo(gradient.dtype).max)
    # float16 has no room: its sums may be infinite.
    if most > 1e30:
        most = most**0.5 / gradient[0].size
    return jnp.clip(jnp.where(jnp.isnan(gradient), 0, gradient), -most, most)


def evaluate(
    model: Any,
    loss: Callable[..., Array],
    images: Float[Array, "n h w c"],
    y: Int[Array, " n"],
    target: Int[Array, " n"],
    key: Array,
    *,
    eot: int = 1,
) -> tuple[Float[Array, " n"], Float[Array, "n k"], Float[Array, "n h w c"]]:
    """Returns losses, logits and gradients, each image's of its own loss.

    Args:
      model: of a task.
      loss: of `losses.LOSSES`.
      images: where.
      y: labels.
      target: classes, for a targeted loss.
      key: typed key.
      eot: draws of a random model; gradients are their mean, losses and logits are of
        the last.
    """

    def total(images, y, target, key):
        logits = model(images, key)
        values = loss(logits, y, target)
        return jnp.sum(values), (values, logits)

    def block(images, y, target, key):
        (_, (values, logits)), gradient = jax.value_and_grad(total, has_aux=True)(
            images, y, target, key
        )
        return values, logits, finite(gradient)

    once = functools.partial(_in_blocks, block, (images, y, target))
    if eot == 1:
        return once(key)

    def add(carry, key):
        values, logits, gradient = once(key)
        return (values, logits, carry[2] + gradient / eot), None

    keys = jax.random.split(key, eot)
    shapes = jax.eval_shape(once, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, keys)[0]


def _in_blocks(f: Callable[..., Any], rows: Any, key: Array) -> Any:
    """Returns `f(*rows, key)`, on CPU a few rows at a time: they fit its caches."""
    n = len(rows[0])
    size = batch_size(n)
    if size == n:
        return f(*rows, key)
    count = -(-n // size)
    index = jnp.minimum(jnp.arange(count * size, dtype=jnp.int32), n - 1)
    blocks = [a[index].reshape(count, size, *a.shape[1:]) for a in rows]
    keys = jax.random.split(key, count)
    out = jax.lax.map(lambda block: f(*block[0], block[1]), (blocks, keys))
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:n], out)
