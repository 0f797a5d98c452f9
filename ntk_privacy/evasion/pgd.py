"""Projected gradient descent, and the step that momentum (MIM) shares.

Source: Madry et al., ICLR 2018 (arXiv:1706.06083). Defaults: the evaluation of GUARD
(arXiv:2403.10045): 100 steps of a quarter of eps from a random start.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import losses, settings
from ntk_privacy.evasion.task import (
    Found,
    LogitsFn,
    Task,
    carry_out,
    confirmed,
    evaluate,
)
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    Region,
    ThreatModel,
    distance,
    per_sample,
    project,
    region,
)

__all__ = [
    "METHODS",
    "attack",
    "direction",
    "iterate",
    "moves",
    "random_start",
    "unit_noise",
]


def direction(gradient: Float[Array, "n h w c"], *, norm: str) -> Array:
    """Returns the steepest direction of norm 1: the sign, or the unit vector.

    Args:
      gradient: of the loss, in each image.
      norm: "linf" or "l2".
    """
    if norm == "linf":
        return jnp.sign(gradient)
    # Scaled first: the square of a small gradient underflows.
    dtype = gradient.dtype
    most = distance(gradient, norm="linf").astype(dtype)
    scaled = gradient / per_sample(jnp.where(most > 0, most, 1))
    size = distance(scaled, norm="l2").astype(dtype)
    return scaled / per_sample(jnp.where(size > 0, size, 1))


def unit_noise(keys: Array, x: Float[Array, "n h w c"], *, norm: str) -> Array:
    """Returns noise of norm 1 in the shape of x, a key for each image.

    Args:
      keys: typed keys, one per image.
      x: images, for shape and dtype alone.
      norm: "linf" or "l2".
    """
    shape, dtype = x.shape[1:], x.dtype
    if norm == "linf":
        noise = jax.vmap(lambda k: jax.random.uniform(k, shape, dtype, -1, 1))(keys)
        return noise / per_sample(distance(noise, norm=norm).astype(dtype))
    noise = jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)
    return direction(noise, norm=norm)


def random_start(key: Array, allowed: Region, *, norm: str) -> Array:
    """Returns allowed images: uniform within the ball, cut to the box.

    Args:
      key: typed key.
      allowed: of `threat_model.region`.
      norm: "linf" or "l2".
    """
    x = allowed.centre
    if norm == "linf":
        noise = jax.random.uniform(key, x.shape, x.dtype, -1, 1)
        return project(x + allowed.eps * noise, allowed, norm=norm)
    one, two = jax.random.split(key)
    noise = direction(jax.random.normal(one, x.shape, x.dtype), norm=norm)
    radius = jax.random.uniform(two, (len(x),), x.dtype) ** (1 / x[0].size)
    return project(x + allowed.eps * per_sample(radius) * noise, allowed, norm=norm)


@functools.partial(
    jax.jit, static_argnames=("norm", "num_steps", "start", "over", "remember")
)
def iterate(
    task: Task,
    step: Float[Array, ""],
    decay: Float[Array, ""],
    key: Array,
    *,
    norm: str,
    num_steps: int,
    start: bool,
    remember: bool,
    over: str = "sample",
) -> Found:
    """Returns the last iterate of ascent on the cross-entropy.

    Where the logits became NaN on the way, that point, so that `task.finish` tells.

    Args:
      task: of `prepare`.
      step: length of a step.
      decay: of the sum of gradients, if remembered.
      key: typed key.
      norm: of the threat model.
      num_steps: steps.
      start: whether at random, else at x.
      remember: whether to follow the sum of normalised gradients.
      over: what a gradient is divided by: the l_1 norm of each image's, "sample", or
        of the whole batch's, "batch".
    """
    allowed = region(task.x, task.limits, norm=norm)
    first, last, keys = jax.random.split(key, 3)
    images = random_start(first, allowed, norm=norm) if start else task.x

    def advance(carry, i):
        images, momentum, lost, where = carry
        _, logits, gradient = evaluate(
            task.model,
            losses.ascent_of_cross_entropy,
            images,
            task.y,
            task.y,
            jax.random.fold_in(keys, i),
        )
        unread = jnp.any(jnp.isnan(logits), axis=1) & ~lost
        where = jnp.where(per_sample(unread), images, where)
        lost = lost | unread
        if remember:
            if over == "batch":
                # What one image's gradient is beside another's counts here.
                weight = losses.LOG_WEIGHTS["ce"](logits, task.y)
                most = jnp.max(jnp.where(task.active, weight, -jnp.inf))
                weight = jnp.exp(jnp.minimum(weight - most, 0))
                gradient = gradient * per_sample(weight).astype(gradient.dtype)
            size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3))
            if over == "batch":
                size = jnp.full_like(size, jnp.sum(jnp.where(task.active, size, 0)))
            size = per_sample(jnp.where(size > 0, size, 1))
            momentum = decay * momentum + gradient / size
            gradient = momentum
        images = images + step * direction(gradient, norm=norm)
        return (project(images, allowed, norm=norm), momentum, lost, where), None

    steps = jnp.arange(num_steps, dtype=jnp.int32)
    none = jnp.zeros(len(images), bool)
    carry = (images, jnp.zeros_like(images), none, images)
    (images, _, lost, where), _ = jax.lax.scan(advance, carry, steps)
    images = jnp.where(per_sample(lost), where, images)
    one, two = jax.random.split(last)
    wrong = confirmed(task, images, task.model(images, one), two)
    return Found(images, wrong, jnp.full(task.y.shape, num_steps + 1, jnp.int32))


def run(task: Task, *, norm: str, step: Any, decay: Any, key: Array, **options: Any):
    """Calls `iterate` with numbers in the dtype of the images."""
    numbers = (jnp.asarray(v, task.x.dtype) for v in (step, decay))
    return iterate(task, *numbers, key, norm=norm, **options)


def bounded(threat_model: ThreatModel) -> None:
    """Raises ValueError if the ball is the whole space."""
    if threat_model.eps == float("inf"):
        raise ValueError(
            "eps=inf bounds nothing: give a finite eps, or use fab or cw, which look "
            "for the nearest adversarial image."
        )


def moves(step: _checks.Number, threat_model: ThreatModel) -> None:
    """Raises ValueError if steps of length zero leave images where they started.

    Args:
      step: length of one, in units of the pixels.
      threat_model: what the attacker may do.

    Raises:
      ValueError: the step is 0 and the bound is not.
    """
    if step == 0 and threat_model.eps > 0:
        raise ValueError(
            f"step=0 moves no image within eps={threat_model.eps}: give a step above "
            "0, or None for that of the attack."
        )


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    num_steps: int = 100,
    step: _checks.Number | None = None,
    start_at_random: bool = True,
) -> Adversarial:
    """Ascends the cross-entropy by steps of fixed length; returns the last iterate.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key.
      threat_model: what the attacker may do.
      num_steps: steps.
      step: length of a step in the norm; a quarter of eps if None.
      start_at_random: whether in the ball, else at x.

    Raises:
      ValueError: see `task.prepare`; or a setting out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, pgd
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("linf", 0.1)
      >>> key = jax.random.key(0)
      >>> pgd.attack(logits_fn, x, y, key=key, threat_model=budget).success.tolist()
      [True, True]
    """
    _checks.at_least(1, num_steps=num_steps)
    bounded(threat_model)
    length = threat_model.eps / 4 if step is None else step
    _checks.at_least(0, step=length)
    moves(length, threat_model)
    return carry_out(
        run,
        logits_fn,
        x,
        y,
        key=key,
        threat_model=threat_model,
        step=length,
        decay=0,
        num_steps=num_steps,
        start=start_at_random,
        remember=False,
    )


METHODS = (
    settings.named(
        "pgd",
        "20 steps of eps / 4 from a random start",
        attack,
        settings.Steps,
        numbers={"num_steps": 20},
    ),
    settings.named(
        "pgd100",
        "100 steps of eps / 4 from a random start",
        attack,
        settings.Steps,
    ),
)
