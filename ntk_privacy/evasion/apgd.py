"""Auto-PGD: projected ascent with momentum that sets its own step length.

Source: Croce & Hein, ICML 2020 (AutoAttack, arXiv:2003.01690), algorithm 1, with the
details of the released code.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import losses, pgd
from ntk_privacy.evasion.task import (
    Found,
    LogitsFn,
    Task,
    evaluate,
    finish,
    prepare,
)
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    ThreatModel,
    distance,
    per_sample,
    project,
    region,
)

__all__ = ["attack", "ranked", "run", "targets", "windows"]

_CLASSES = {"ce": 2, "dlr": 3, "targeted-dlr": 4}
_MOMENTUM = 0.75


class State(NamedTuple):
    """Of the ascent, before `point` is evaluated for the i-th time."""

    point: Float[Array, "n h w c"]
    previous: Float[Array, "n h w c"]
    best: Float[Array, "n h w c"]
    best_gradient: Float[Array, "n h w c"]
    best_loss: Float[Array, " n"]
    last_loss: Float[Array, " n"]
    increases: Int[Array, " n"]
    step: Float[Array, " n"]
    reduced: Bool[Array, " n"]
    checked_loss: Float[Array, " n"]
    found: Found
    i: Int[Array, ""]


def windows(num_steps: int) -> np.ndarray:
    """Returns, per evaluation, the length of the window that it closes, or 0.

    There are num_steps + 1 evaluations; that of the start closes none. Windows shrink
    from 22 % of the steps by 3 % each, down to 6 %.
    """
    length = max(int(0.22 * num_steps), 1)
    shrink, least = max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1)
    closes = np.zeros(num_steps + 1, np.int32)
    end = length
    while end <= num_steps:
        closes[end] = length
        length = max(length - shrink, least)
        end += length
    return closes


def _start(key: Array, allowed, *, norm: str) -> Array:
    """Returns images on the sphere around x, cut to the box."""
    shape, dtype = allowed.centre.shape, allowed.centre.dtype
    if norm == "linf":
        noise = jax.random.uniform(key, shape, dtype, -1, 1)
        noise = noise / per_sample(distance(noise, norm=norm))
    else:
        noise = pgd.direction(jax.random.normal(key, shape, dtype), norm=norm)
    return project(allowed.centre + allowed.eps * noise, allowed, norm=norm)


def program(
    task: Task,
    target: Int[Array, " n"],
    closes: Int[Array, " m"],
    rho: Float[Array, ""],
    key: Array,
    *,
    norm: str,
    loss: str,
    eot: int,
    stop_early: bool,
) -> tuple[State, Callable[[State], State]]:
    """Returns the first state and the function to the next one.

    One evaluation is one call, that of the start included, so that the compiled program
    holds the model once.

    Args:
      task: of `prepare`; only what is active is attacked.
      target: classes, for the targeted loss.
      closes: of `windows`.
      rho: share of a window's steps that must increase the loss.
      key: typed key.
      norm: of the threat model.
      loss: name in `losses.LOSSES`.
      eot: draws of a random model per evaluation.
      stop_early: whether the first misread image is kept, rather than the last.
    """
    allowed = region(task.x, task.limits, norm=norm)
    start_key, keys = jax.random.split(key)

    def advance(state: State) -> State:
        values, logits, gradient = evaluate(
            task.model,
            losses.LOSSES[loss],
            state.point,
            task.y,
            target,
            jax.random.fold_in(keys, state.i),
            eot=eot,
        )
        images, success, queries = state.found
        open_ = task.active & ~success
        hit = losses.misread(logits, task.y) & (open_ if stop_early else task.active)
        spent = open_ if stop_early else task.active
        found = Found(
            jnp.where(per_sample(hit), state.point, images),
            success | hit,
            queries + eot * spent.astype(queries.dtype),
        )

        better = values > state.best_loss
        best_loss = jnp.where(better, values, state.best_loss)
        best = jnp.where(per_sample(better), state.point, state.best)
        best_gradient = jnp.where(per_sample(better), gradient, state.best_gradient)
        begins = state.i == 0
        rises = (values > state.last_loss) & ~begins
        increases = state.increases + rises.astype(state.increases.dtype)

        length = closes[state.i]
        closing = length > 0
        swings = increases.astype(rho.dtype) <= rho * length.astype(rho.dtype)
        stalls = ~state.reduced & (state.checked_loss >= best_loss)
        reduce = closing & (swings | stalls)
        step = jnp.where(reduce, state.step / 2, state.step)
        point = jnp.where(per_sample(reduce), best, state.point)
        gradient = jnp.where(per_sample(reduce), best_gradient, gradient)

        share = jnp.where(begins, 1, _MOMENTUM).astype(point.dtype)
        inertia = jnp.where(begins, 0, point - state.previous)
        ahead = point + per_sample(step) * pgd.direction(gradient, norm=norm)
        ahead = project(ahead, allowed, norm=norm)
        ahead = point + share * (ahead - point) + (1 - share) * inertia
        return State(
            point=project(ahead, allowed, norm=norm),
            previous=point,
            best=best,
            best_gradient=best_gradient,
            best_loss=best_loss,
            # The first step's loss is compared with 0, as in the released code.
            last_loss=jnp.where(begins, 0, values),
            increases=jnp.where(closing, 0, increases),
            step=step,
            reduced=jnp.where(closing, reduce, state.reduced),
            checked_loss=jnp.where(closing | begins, best_loss, state.checked_loss),
            found=found,
            i=state.i + 1,
        )

    point = _start(start_key, allowed, norm=norm)
    flat = jnp.zeros_like(point[:, 0, 0, 0])
    no = jnp.zeros(task.y.shape, bool)
    none = jnp.zeros(task.y.shape, jnp.int32)
    first = State(
        point=point,
        previous=point,
        best=point,
        best_gradient=jnp.zeros_like(point),
        best_loss=flat - jnp.inf,
        last_loss=flat,
        increases=none,
        step=flat + 2 * task.limits.eps,
        reduced=~no,
        checked_loss=flat - jnp.inf,
        found=Found(task.x, no, none),
        i=jnp.asarray(0, jnp.int32),
    )
    return first, advance


@functools.partial(jax.jit, static_argnames=("norm", "loss", "eot", "stop_early"))
def _ascend(
    task: Task,
    target: Int[Array, " n"],
    closes: Int[Array, " m"],
    rho: Float[Array, ""],
    key: Array,
    *,
    norm: str,
    loss: str,
    eot: int,
    stop_early: bool,
) -> Found:
    state, advance = program(
        task,
        target,
        closes,
        rho,
        key,
        norm=norm,
        loss=loss,
        eot=eot,
        stop_early=stop_early,
    )

    def more(state):
        left = task.active & ~state.found.success if stop_early else task.active
        return (state.i < len(closes)) & jnp.any(left)

    return jax.lax.while_loop(more, advance, state).found


def ranked(task: Task, rank: int) -> Int[Array, " n"]:
    """Returns the class of the rank-th greatest clean logit, 1 for the greatest."""
    order = jnp.argsort(-task.logits, axis=1)
    return order[:, rank - 1].astype(task.y.dtype)


def targets(task: Task, num_targets: int) -> list[Int[Array, " n"]]:
    """Returns the likeliest wrong classes, best first; warns if there are fewer."""
    wrong = task.logits.shape[1] - 1
    if num_targets > wrong:
        warnings.warn(
            f"num_targets={num_targets} but the model has {wrong} wrong classes: "
            f"{wrong} targets are used.",
            stacklevel=3,
        )
    return [ranked(task, rank) for rank in range(2, 2 + min(num_targets, wrong))]


def merge(task: Task, total: Found, found: Found) -> tuple[Task, Found]:
    """Returns what is left, and all that was found, after one more run."""
    hit = task.active & found.success
    images = jnp.where(per_sample(hit), found.images, total.images)
    spent = jnp.where(task.active, found.queries, 0)
    total = Found(images, total.success | hit, total.queries + spent)
    return task._replace(active=task.active & ~hit), total


def nothing(task: Task) -> Found:
    """Returns what is found before the first run."""
    zeros = jnp.zeros(task.y.shape, jnp.int32)
    return Found(task.x, jnp.zeros(task.y.shape, bool), zeros)


def run(
    task: Task,
    *,
    key: Array,
    norm: str,
    loss: str = "ce",
    num_steps: int = 100,
    rho: _checks.Number = 0.75,
    eot: int = 1,
    num_restarts: int = 1,
    num_targets: int = 9,
    stop_early: bool = True,
) -> Found:
    """Runs restarts, and targets if the loss has any, each on what is left."""
    closes = jnp.asarray(windows(num_steps))
    share = jnp.asarray(rho, task.x.dtype)
    aims = targets(task, num_targets) if loss == "targeted-dlr" else [task.y]
    total = nothing(task)
    runs = [target for target in aims for _ in range(num_restarts)]
    for target, one in zip(runs, jax.random.split(key, len(runs)), strict=True):
        found = _ascend(
            task,
            target,
            closes,
            share,
            one,
            norm=norm,
            loss=loss,
            eot=eot,
            stop_early=stop_early,
        )
        task, total = merge(task, total, found)
    return total


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    loss: str = "ce",
    num_steps: int = 100,
    rho: _checks.Number = 0.75,
    eot: int = 1,
    num_restarts: int = 1,
    num_targets: int = 9,
    stop_early: bool = True,
) -> Adversarial:
    """Ascends a loss from a random start; what is not found stays x.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key.
      threat_model: what the attacker may do.
      loss: "ce", "dlr" or "targeted-dlr", once for each of the likeliest wrong classes.
      num_steps: steps of each run.
      rho: share of a window's steps that must increase the loss, else the step is
        halved.
      eot: draws of a random model per gradient.
      num_restarts: runs, each on what is left.
      num_targets: wrong classes of the targeted loss; fewer if there are fewer.
      stop_early: whether an image is done once misread. Else it goes on and the last
        misread image is returned, as in the released code; what is broken is the same.

    Raises:
      ValueError: see `task.prepare`; a setting out of range, or too few classes for the
        loss.
    """
    _checks.one_of(tuple(_CLASSES), loss=loss)
    _checks.at_least(
        1,
        num_steps=num_steps,
        eot=eot,
        num_restarts=num_restarts,
        num_targets=num_targets,
    )
    _checks.in_range(0, 1, rho=rho)
    pgd.bounded(threat_model)
    task = prepare(logits_fn, x, y, key=key, threat_model=threat_model)
    classes = task.logits.shape[1]
    if classes < _CLASSES[loss]:
        raise ValueError(
            f"loss={loss!r} needs {_CLASSES[loss]} classes but the model has "
            f"{classes}: use ce."
        )
    found = run(
        task,
        key=key,
        norm=threat_model.norm,
        loss=loss,
        num_steps=num_steps,
        rho=rho,
        eot=eot,
        num_restarts=num_restarts,
        num_targets=num_targets,
        stop_early=stop_early,
    )
    return finish(task, found, norm=threat_model.norm)
