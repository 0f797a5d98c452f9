"""What every attack starts from and ends with: checked input, and what was read."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _platform
from ntk_privacy.evasion import inputs, losses, reading
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    Limits,
    ThreatModel,
    distance,
    per_sample,
    wide,
)

__all__ = [
    "Found",
    "LogitsFn",
    "NotANumberError",
    "Task",
    "batch_size",
    "carry_out",
    "confirmed",
    "evaluate",
    "finish",
    "finite",
    "misread",
    "prepare",
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
# Of the logarithm of a weight.
_LEAST = -1e30
# Draws that confirm what one draw of a random model misreads, during an attack.
_CONFIRMING = 10


def batch_size(count: int) -> int:
    """Returns how many of so many images are best evaluated at once.

    Args:
      count: images in all.
    """
    return min(_BATCH.get(_platform.name(), _MOST), count)


class Task(NamedTuple):
    """Checked input on the device.

    Attributes:
      model: `(images, key) -> logits`, float32 at least, a pytree.
      x, y: images and labels.
      logits: of the model on x.
      active: what shall be attacked: what is read correctly.
      limits: numbers of the threat model.
      draws: keys by which a random model is judged in the end; None for others.
    """

    model: Any
    x: Float[Array, "n h w c"]
    y: Int[Array, " n"]
    logits: Float[Array, "n k"]
    active: Bool[Array, " n"]
    limits: Limits
    draws: Array | None = None


class NotANumberError(ValueError):
    """Logits are NaN where an attack ended, or came by on its way.

    Attributes:
      count: of images.
    """

    def __init__(self, count: int, of: int) -> None:
        super().__init__(
            f"logits_fn returned NaN for {count} of {of} images under attack: nothing "
            "can be said of its robustness; repair the model."
        )
        self.count = count


class Found(NamedTuple):
    """What the compiled part of an attack returns: images to show, and their cost."""

    images: Float[Array, "n h w c"]
    success: Bool[Array, " n"]
    queries: Int[Array, " n"]


def takes_key(logits_fn: LogitsFn) -> bool:
    """Returns whether a model is random: whether it must be given a `key`.

    One with a key of its own, or that may do without, is as it is by default.

    Args:
      logits_fn: the model.
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


# Logits cut down to half precision would tie, and be read otherwise.
def _wide(model: Any, x: Array, key: Array) -> Array:
    logits = model(x, key)
    return logits.astype(wide(x.dtype, logits.dtype))


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
        box, labels that are no classes, logits of the wrong shape, NaN logits, or
        outputs that depend on the rest of the batch.
      TypeError: within jit, vmap or grad.
    """
    given = jax.tree.leaves((x, y, key, logits_fn))
    if not _checks.concrete(*given):
        raise TypeError(
            "An attack is traced: attacks compile themselves and look at images; call "
            "them outside of jit, vmap and grad."
        )
    _checks.typed_key(key=key)
    # NumPy's float64 is float32 here unless JAX has 64 bits.
    x = jnp.asarray(x)
    labels = inputs.check(x, y, threat_model)
    limits = threat_model.limits(x.dtype)
    partial = jax.tree_util.Partial
    inner = logits_fn if isinstance(logits_fn, partial) else partial(logits_fn)
    random = takes_key(logits_fn)
    raw = partial(_random if random else _plain, inner)
    with inputs.asking(x.shape):
        logits = reading.read(raw, x, key)
    classes = inputs.check_logits(logits, len(x))
    bad = int(jnp.sum(jnp.any(jnp.isnan(logits), axis=1)))
    if bad:
        raise ValueError(
            f"logits_fn returned NaN for {bad} of {len(x)} images: nothing can be said "
            "of its robustness; use parameters that are finite."
        )
    inputs.check_classes(labels, classes)
    # `evaluation.robust_accuracy` has compared them before.
    if not getattr(inner.func, "compared", False):
        reading.refuse_company(raw, x, logits, limits, key, random=random)
    y = jnp.asarray(labels.astype(np.int32))
    model = partial(_wide, raw)
    logits = logits.astype(wide(x.dtype, logits.dtype))
    keys = reading.draws(key) if random else None
    task = Task(model, x, y, logits, jnp.ones(len(x), bool), limits, keys)
    return task._replace(active=~(_judged(task, x) if random else misread(task)))


def misread(task: Task) -> Bool[Array, " n"]:
    """Returns which images are misread as they are, by one draw.

    Args:
      task: of `prepare`.
    """
    return losses.misread(task.logits, task.y)


@jax.jit
def _judged(task: Task, images: Array) -> Bool[Array, " n"]:
    assert task.draws is not None
    return reading.votes(task.model, images, task.y, task.draws)[1]


def confirmed(
    task: Task, images: Float[Array, "n h w c"], logits: Float[Array, "n k"], key: Array
) -> Bool[Array, " n"]:
    """Returns which images are misread; one unlucky draw of a random model is not it.

    Args:
      task: of `prepare`.
      images: that were read.
      logits: of them.
      key: typed key, for more draws.
    """
    wrong = losses.misread(logits, task.y)
    if task.draws is None:
        return wrong
    keys = jax.random.split(key, _CONFIRMING)

    def ask() -> Array:
        return wrong & reading.votes(task.model, images, task.y, keys)[1]

    return jax.lax.cond(jnp.any(wrong & task.active), ask, lambda: wrong)


@functools.partial(jax.jit, static_argnames="norm")
def _finish(
    task: Task, found: Found, key: Array, *, norm: str
) -> tuple[Adversarial, Int[Array, ""]]:
    images = jnp.where(per_sample(task.active), found.images, task.x)
    if task.draws is None:
        logits = task.model(images, key)
        wrong, bad = losses.misread(logits, task.y), jnp.any(jnp.isnan(logits), axis=1)
    else:
        count, wrong = reading.votes(task.model, images, task.y, task.draws)
        bad = jnp.any(jnp.isnan(task.model(images, key)), axis=1)
        del count
    success = found.success & wrong
    images = jnp.where(per_sample(found.success & ~success), task.x, images)
    out = Adversarial(
        images,
        jnp.where(task.active, success, True),
        jnp.where(task.active, found.queries, 0),
        distance(images - task.x, norm=norm),
    )
    return out, jnp.sum(bad)


def finish(task: Task, found: Found, key: Array, *, norm: str) -> Adversarial:
    """Returns the result: what was misread before is returned as it was.

    What an attack took for misread is read once more, as anyone would who is given the
    images; a random model by draws that the attack has not seen.

    Args:
      task: of `prepare`.
      found: of the attack.
      key: typed key, for a random model.
      norm: of the threat model.

    Raises:
      NotANumberError: a ValueError: NaN logits where the attack ended. Attacks take NaN
        for misread and end there, all but CW, which counts them on its way.
    """
    out, bad = _finish(task, found, key, norm=norm)
    if int(bad):
        raise NotANumberError(int(bad), len(task.y))
    return out


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
      ValueError: see `prepare` and `finish`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, losses, task
      >>> def brighten(given, *, key, norm):
      ...     images = given.x + given.limits.eps
      ...     success = losses.misread(given.model(images, key), given.y)
      ...     return task.Found(images, success, jnp.ones(1, jnp.int32))
      >>> def logits_fn(x):
      ...     light = x.mean(axis=(1, 2, 3))
      ...     return jnp.stack([0.5 - light, light - 0.5], axis=1)
      >>> x, y = jnp.full((1, 2, 2, 1), 0.45), jnp.zeros(1, int)
      >>> given = {"key": jax.random.key(0), "threat_model": ThreatModel(eps=0.1)}
      >>> task.carry_out(brighten, logits_fn, x, y, **given).success.tolist()
      [True]
    """
    task = prepare(logits_fn, x, y, key=key, threat_model=threat_model)
    found = run(task, key=key, norm=threat_model.norm, **options)
    return finish(task, found, key, norm=threat_model.norm)


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
    log_weight: Callable[..., Array] | None = None,
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
      log_weight: of `losses.LOG_WEIGHTS`: of a draw's gradient in that mean, which is
        then known but for a factor for each image.
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
        (_, _, mean), most = carry
        values, logits, gradient = once(key)
        weight = jnp.zeros_like(most)
        if log_weight is not None:
            weight = jnp.maximum(log_weight(logits, y), most.dtype.type(_LEAST))
        # As exp(most) each: the weights themselves may underflow.
        top = jnp.maximum(most, weight)
        kept, share = (
            per_sample(jnp.exp(w - top)).astype(gradient.dtype) for w in (most, weight)
        )
        return ((values, logits, mean * kept + gradient * share / eot), top), None

    keys = jax.random.split(key, eot)
    shapes = jax.eval_shape(once, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    first = jnp.full(zeros[0].shape, _LEAST, zeros[1].dtype)
    return jax.lax.scan(add, (zeros, first), keys)[0][0]


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
