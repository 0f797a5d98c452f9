"""Auto-PGD: projected ascent with momentum that sets its own step length.

Source: Croce & Hein, ICML 2020 (AutoAttack, arXiv:2003.01690), algorithm 1, with the
details of the released code.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import losses, pgd, pool, settings
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
    ThreatModel,
    per_sample,
    project,
    region,
    wide,
)

__all__ = ["METHODS", "attack", "run", "targets", "walk", "windows"]

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
    i: Int[Array, " n"]


def windows(num_steps: int) -> np.ndarray:
    """Returns, per evaluation, the length of the window that it closes, or 0.

    There are num_steps + 1 evaluations; that of the start closes none. Windows shrink
    from 22 % of the steps by 3 % each, down to 6 %.

    Args:
      num_steps: of the attack.
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


def walk(
    closes: Int[Array, " m"],
    rho: Float[Array, ""],
    key: Array,
    *,
    norm: str,
    loss: str,
    eot: int,
    stop_early: bool,
) -> pool.Walk:
    """Returns the ascent of images that each count their own evaluations.

    One evaluation is one call, that of the start included, so that the compiled program
    holds the model once.

    Args:
      closes: of `windows`.
      rho: share of a window's steps that must increase the loss.
      key: typed key, for the starts.
      norm: of the threat model.
      loss: name in `losses.LOSSES`.
      eot: draws of a random model per evaluation.
      stop_early: whether the first misread image is kept, rather than the last.
    """

    def begin(spot: pool.Spot, score: Array) -> State:
        allowed = region(spot.task.x, spot.task.limits, norm=norm)
        noise = pgd.unit_noise(pool.keys(key, spot), spot.task.x, norm=norm)
        point = project(spot.task.x + allowed.eps * noise, allowed, norm=norm)
        flat = jnp.zeros(score.shape, spot.task.logits.dtype)
        no = jnp.zeros(score.shape, bool)
        none = jnp.zeros(score.shape, jnp.int32)
        return State(
            point=point,
            previous=point,
            best=point,
            best_gradient=jnp.zeros_like(point),
            best_loss=flat - jnp.inf,
            last_loss=flat,
            increases=none,
            step=jnp.full(score.shape, 2 * spot.task.limits.eps, point.dtype),
            reduced=~no,
            checked_loss=flat - jnp.inf,
            found=Found(spot.task.x, no, none),
            i=none,
        )

    def advance(spot: pool.Spot, state: State, key: Array) -> State:
        task = spot.task
        allowed = region(task.x, task.limits, norm=norm)
        values, logits, gradient = evaluate(
            task.model,
            losses.LOSSES[loss],
            state.point,
            task.y,
            spot.target,
            key,
            eot=eot,
            log_weight=losses.LOG_WEIGHTS.get(loss),
        )
        images, success, queries = state.found
        spent = task.active & ~success if stop_early else task.active
        asked = jax.random.fold_in(key, 1)
        hit = confirmed(task, state.point, logits, asked) & spent
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

        length = closes[jnp.minimum(state.i, len(closes) - 1)]
        closing = length > 0
        swings = increases.astype(rho.dtype) <= rho * length.astype(rho.dtype)
        stalls = ~state.reduced & (state.checked_loss >= best_loss)
        reduce = closing & (swings | stalls)
        step = jnp.where(reduce, state.step / 2, state.step)
        point = jnp.where(per_sample(reduce), best, state.point)
        gradient = jnp.where(per_sample(reduce), best_gradient, gradient)

        share = per_sample(jnp.where(begins, 1, _MOMENTUM).astype(point.dtype))
        inertia = jnp.where(per_sample(begins), 0, point - state.previous)
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

    def outcome(spot: pool.Spot, state: State) -> pool.Outcome:
        del spot
        images, success, queries = state.found
        score = jnp.where(success, 0, jnp.inf).astype(wide(images.dtype))
        over = state.i >= len(closes)
        done = over | success if stop_early else over
        return pool.Outcome(images, score, queries, done, success)

    return pool.Walk(begin, advance, outcome)


@functools.partial(
    jax.jit, static_argnames=("norm", "loss", "eot", "stop_early", "num_places")
)
def _ascend(
    task: Task,
    aims: Int[Array, "r n"],
    closes: Int[Array, " m"],
    rho: Float[Array, ""],
    key: Array,
    carry: pool.Carry | None,
    *,
    num_places: int,
    **options: Any,
) -> pool.Carry:
    start, model = jax.random.split(key)
    ascent = walk(closes, rho, start, **options)
    return pool.run(task, aims, ascent, model, carry, num_places=num_places)


def targets(task: Task, num_targets: int) -> Int[Array, "t n"]:
    """Returns the likeliest wrong classes, best first; warns if there are fewer.

    Args:
      task: of `task.prepare`.
      num_targets: classes, at most.
    """
    wrong = task.logits.shape[1] - 1
    if num_targets > wrong:
        warnings.warn(
            f"num_targets={num_targets} but the model has {wrong} wrong classes: "
            f"{wrong} targets are used.",
            stacklevel=3,
        )
    order = jnp.argsort(-task.logits, axis=1).astype(task.y.dtype)
    return order[:, 1 : 1 + num_targets].T


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
    num_active: int | None = None,
) -> Found:
    """Runs restarts, and targets if the loss has any, each on what is left.

    Args: task of `task.prepare`, norm of the threat model, num_active the images at
      hand at once; the others are those of `attack`.

    Raises:
      ValueError: the loss needs more classes than the model has.
    """
    classes = task.logits.shape[1]
    if classes < _CLASSES[loss]:
        raise ValueError(
            f"loss={loss!r} needs {_CLASSES[loss]} classes but the model has "
            f"{classes}: use ce."
        )
    aims = targets(task, num_targets) if loss == "targeted-dlr" else task.y[None]
    aims = jnp.repeat(aims, num_restarts, axis=0)
    best = pool.drive(
        _ascend,
        pool.places(task, len(aims), num_active),
        task,
        aims,
        jnp.asarray(windows(num_steps)),
        jnp.asarray(rho, task.x.dtype),
        key,
        norm=norm,
        loss=loss,
        eot=eot,
        stop_early=stop_early,
    )
    return pool.found(task, best, jnp.isfinite(best.score))


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

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, apgd
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("linf", 0.1)
      >>> key = jax.random.key(0)
      >>> apgd.attack(logits_fn, x, y, key=key, threat_model=budget).success.tolist()
      [True, True]
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
    return carry_out(
        run,
        logits_fn,
        x,
        y,
        key=key,
        threat_model=threat_model,
        loss=loss,
        num_steps=num_steps,
        rho=rho,
        eot=eot,
        num_restarts=num_restarts,
        num_targets=num_targets,
        stop_early=stop_early,
    )


METHODS = (
    settings.named(
        "apgd_ce",
        "100 steps on the cross-entropy",
        attack,
        settings.Steps,
        loss="ce",
    ),
    settings.named(
        "apgd_dlr",
        "100 steps on the difference of logits ratio; needs 3 classes",
        attack,
        settings.Steps,
        fewest=_CLASSES["dlr"],
        loss="dlr",
    ),
    settings.named(
        "apgd_t",
        "100 steps towards each of 9 classes; needs 4 classes",
        attack,
        settings.Targets,
        fewest=_CLASSES["targeted-dlr"],
        loss="targeted-dlr",
    ),
)
