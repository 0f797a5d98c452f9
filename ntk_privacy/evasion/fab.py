"""Fast adaptive boundary: the nearest misread image, by projections on hyperplanes.

Source: Croce & Hein, ICML 2020 (FAB, arXiv:1907.02044), algorithm 1; targets as in
AutoAttack (arXiv:2003.01690).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import apgd, pgd, pool, settings
from ntk_privacy.evasion.task import (
    Found,
    LogitsFn,
    Task,
    carry_out,
    confirmed,
    evaluate,
    finite,
)
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    Limits,
    ThreatModel,
    distance,
    per_sample,
    region,
)

__all__ = ["METHODS", "attack", "onto_plane", "run", "walk"]

_FLOOR = 1e-8
_LOST = -1.0  # nearer than anything: nothing takes its place
_MAX_ROUNDS = 50


def onto_plane(
    p: Float[Array, "n h w c"],
    w: Float[Array, "n h w c"],
    height: Float[Array, " n"],
    limits: Limits,
    *,
    norm: str,
) -> Float[Array, "n h w c"]:
    """Returns the least moves within the box that take p to the plane.

    The plane is {u: w . (u - p) + height = 0}. Pixel i moves by min(L g_i, c_i) against
    the slope, where c_i is its room in the box and g_i is 1 for l_inf and |w_i| for
    l_2; L is the least with sum |w_i| min(L g_i, c_i) >= |height|. That sum is concave
    in L, so that Newton's method from 0 rises to L and ends after a few rounds. Where
    the plane is out of reach, every pixel with a slope goes to its end of the box.

    Args:
      p: points in the box.
      w: normals of the planes.
      height: of the affine function at p.
      limits: of the threat model.
      norm: "linf" or "l2".
    """
    axes = (1, 2, 3)
    steepest = distance(w, norm="linf").astype(w.dtype)
    unit = jnp.where(steepest > 0, steepest, 1)
    down = jnp.where(height < 0, -1, 1).astype(w.dtype)
    w = w * per_sample(down / unit)
    wanted = jnp.abs(height) / unit
    slope = jnp.abs(w)
    room = jnp.where(w > 0, p - limits.low, limits.high - p)
    room = jnp.where(w == 0, 0, room)
    rate = jnp.ones_like(slope) if norm == "linf" else slope

    def newton(state):
        level, _, count = state
        full = per_sample(level) * rate >= room
        fixed = jnp.sum(jnp.where(full, slope * room, 0), axis=axes)
        free = jnp.sum(jnp.where(full, 0, slope * rate), axis=axes)
        reach = (wanted - fixed) / jnp.where(free > 0, free, 1)
        # Nothing is free and more is wanted: the plane is out of reach.
        most = jnp.finfo(level.dtype).max / 4
        new = jnp.where(free > 0, reach, jnp.where(fixed < wanted, most, level))
        new = jnp.maximum(new, level)
        grown = jnp.any(new > level * (1 + 8 * jnp.finfo(level.dtype).eps))
        return new, grown, count + 1

    level, _, _ = jax.lax.while_loop(
        lambda state: state[1] & (state[2] < _MAX_ROUNDS),
        newton,
        (jnp.zeros_like(wanted), jnp.asarray(True), jnp.asarray(0, jnp.int32)),
    )
    return -jnp.sign(w) * jnp.minimum(per_sample(level) * rate, room)


class State(NamedTuple):
    """Before the i-th step; nearest is _LOST where the logits were NaN, at best."""

    point: Float[Array, "n h w c"]
    best: Float[Array, "n h w c"]
    nearest: Float[Array, " n"]
    queries: Int[Array, " n"]
    i: Int[Array, " n"]


def _aimed(
    task: Task, point: Array, target: Array, key: Array
) -> tuple[Array, Array, Array]:
    """Returns z_t - z_y, its gradient, and the logits."""

    def ahead(logits, y, target):
        rows = jnp.arange(len(y), dtype=y.dtype)
        return logits[rows, target] - logits[rows, y]

    height, logits, w = evaluate(task.model, ahead, point, task.y, target, key)
    return height.astype(w.dtype), w, logits


def _nearest_plane(
    task: Task, point: Array, key: Array, *, norm: str
) -> tuple[Array, Array, Array]:
    """Returns the same for the class whose plane is nearest, box aside."""
    logits, pull = jax.vjp(lambda u: task.model(u, key), point)
    classes = jnp.arange(logits.shape[1], dtype=task.y.dtype)
    own = (classes[None, :] == task.y[:, None]).astype(logits.dtype)
    rows = jnp.arange(len(task.y), dtype=task.y.dtype)

    def closer(carry, j):
        ratio, height, w = carry
        aim = (classes == j).astype(logits.dtype)[None, :] - own
        (slope,) = pull(aim)
        slope = finite(slope)
        rise = logits[:, j] - logits[rows, task.y]
        dual = (
            jnp.sum(jnp.abs(slope), axis=(1, 2, 3))
            if norm == "linf"
            else distance(slope, norm="l2")
        )
        rise, dual = rise.astype(slope.dtype), dual.astype(slope.dtype)
        # No constant below: the scale of the logits does not count.
        far = jnp.abs(rise) / dual
        take = (far < ratio) & (task.y != j)
        chosen = (
            jnp.where(take, far, ratio),
            jnp.where(take, rise, height),
            jnp.where(per_sample(take), slope, w),
        )
        return chosen, None

    zero = jnp.zeros_like(point[:, 0, 0, 0])
    first = (zero + jnp.inf, zero - 1, jnp.zeros_like(point))
    (_, height, w), _ = jax.lax.scan(closer, first, classes)
    return height, w, logits


def _within(task: Task, images: Array, nearest: Array, *, norm: str) -> Array:
    """Returns whether the nearest misread images lie in the region, to the last bit.

    Those without logits do too: `task.finish` is to find them.
    """
    if norm == "l2":
        eps = task.limits.eps.astype(nearest.dtype)
        return jnp.isfinite(nearest) & (nearest <= eps)
    allowed = region(task.x, task.limits, norm=norm)
    inside = (images >= allowed.lower) & (images <= allowed.upper)
    inside = jnp.all(inside, axis=(1, 2, 3)) | (nearest == _LOST)
    return jnp.isfinite(nearest) & inside


def walk(
    constants: tuple[Array, Array, Array],
    key: Array,
    *,
    norm: str,
    num_steps: int,
    num_restarts: int,
    aim: bool,
    stop_early: bool,
) -> pool.Walk:
    """Returns the approach to the boundary, as what each image does for itself.

    Args:
      constants: alpha_max, eta and beta.
      key: typed key, for restarts.
      norm: of the threat model.
      num_steps: of each run.
      num_restarts: runs of each target; all but the first start at random.
      aim: whether at a target, else at the nearest class.
      stop_early: whether an image is done once it is found within eps.
    """
    alpha_max, eta, beta = constants

    def begin(spot: pool.Spot, score: Array) -> State:
        x, limits = spot.task.x, spot.task.limits
        point = x
        if num_restarts > 1:
            box = limits.high - limits.low
            most = jnp.where(jnp.isfinite(limits.eps), limits.eps, box)
            radius = jnp.minimum(score.astype(x.dtype), most) / 2
            radius = jnp.where(spot.run % num_restarts > 0, radius, 0)
            noise = pgd.unit_noise(pool.keys(key, spot), x, norm=norm)
            point = jnp.clip(x + per_sample(radius) * noise, limits.low, limits.high)
        none = jnp.zeros(score.shape, jnp.int32)
        return State(point, x, jnp.full_like(score, jnp.inf), none, none)

    def advance(spot: pool.Spot, state: State, key: Array) -> State:
        task = spot.task
        x, limits = task.x, task.limits
        one, two = jax.random.split(key)
        if aim:
            height, w, here = _aimed(task, state.point, spot.target, one)
        else:
            height, w, here = _nearest_plane(task, state.point, one, norm=norm)
        # The same plane seen from x.
        from_x = height + jnp.sum(w * (x - state.point), axis=(1, 2, 3))
        d1 = onto_plane(state.point, w, height, limits, norm=norm)
        d2 = onto_plane(x, w, from_x, limits, norm=norm)
        a1, a2 = (jnp.maximum(distance(d, norm=norm), _FLOOR) for d in (d1, d2))
        alpha = (a1 / (a1 + a2)).astype(alpha_max.dtype)
        alpha = per_sample(jnp.minimum(alpha, alpha_max))
        new = (1 - alpha) * (state.point + eta * d1) + alpha * (x + eta * d2)
        new = jnp.clip(new, limits.low, limits.high)

        two, three = jax.random.split(two)
        logits = task.model(new, two)
        wrong = confirmed(task, new, logits, three)
        far = distance(new - x, norm=norm)
        lost = jnp.any(jnp.isnan(here), axis=1)
        unread = lost | jnp.any(jnp.isnan(logits), axis=1)
        far = jnp.where(unread, _LOST, far)
        closer = task.active & (wrong | lost) & (far < state.nearest)
        found = jnp.where(per_sample(lost), state.point, new)
        back = jnp.clip(x + beta * (new - x), limits.low, limits.high)
        return State(
            jnp.where(per_sample(wrong), back, new),
            jnp.where(per_sample(closer), found, state.best),
            jnp.where(closer, far, state.nearest),
            state.queries + 2 * task.active.astype(state.queries.dtype),
            state.i + 1,
        )

    def outcome(spot: pool.Spot, state: State) -> pool.Outcome:
        near = _within(spot.task, state.best, state.nearest, norm=norm) & stop_early
        near = near | (state.nearest == _LOST)
        done = near | (state.i >= num_steps)
        return pool.Outcome(state.best, state.nearest, state.queries, done, near)

    return pool.Walk(begin, advance, outcome)


@functools.partial(
    jax.jit,
    static_argnames=(
        "norm",
        "num_steps",
        "num_restarts",
        "aim",
        "stop_early",
        "num_places",
    ),
)
def _approach(
    task: Task,
    aims: Int[Array, "r n"],
    constants: tuple[Array, Array, Array],
    key: Array,
    carry: pool.Carry | None,
    *,
    num_places: int,
    **options: Any,
) -> pool.Carry:
    start, model = jax.random.split(key)
    approach = walk(constants, start, **options)
    return pool.run(task, aims, approach, model, carry, num_places=num_places)


def run(
    task: Task,
    *,
    key: Array,
    norm: str,
    num_steps: int = 100,
    num_targets: int | None = 9,
    num_restarts: int = 1,
    alpha_max: _checks.Number = 0.1,
    eta: _checks.Number = 1.05,
    beta: _checks.Number = 0.9,
    stop_early: bool = False,
    num_active: int | None = None,
) -> Found:
    """Runs restarts of every target; the nearest of all is kept.

    Args: task of `task.prepare`, norm of the threat model, num_active the images at
      hand at once; the others are those of `attack`.
    """
    aims = task.y[None] if num_targets is None else apgd.targets(task, num_targets)
    aims = jnp.repeat(aims, num_restarts, axis=0)
    best = pool.drive(
        _approach,
        pool.places(task, len(aims), num_active),
        task,
        aims,
        tuple(jnp.asarray(v, task.x.dtype) for v in (alpha_max, eta, beta)),
        key,
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        aim=num_targets is not None,
        stop_early=stop_early,
    )
    success = _within(task, best.images, best.score, norm=norm)
    return pool.found(task, best, success)


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel,
    num_steps: int = 100,
    num_targets: int | None = 9,
    num_restarts: int = 1,
    alpha_max: _checks.Number = 0.1,
    eta: _checks.Number = 1.05,
    beta: _checks.Number = 0.9,
    stop_early: bool = False,
) -> Adversarial:
    """Looks for the nearest misread image; what is not found within eps stays x.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key, for restarts after the first and for random models.
      threat_model: what the attacker may do; eps may be infinite.
      num_steps: steps of each run.
      num_targets: the likeliest wrong classes, one run each, fewer if there are fewer;
        None for one run towards whatever class is nearest at each step.
      num_restarts: runs for each target; those after the first start at random.
      alpha_max: greatest weight of the projection of x in a step.
      eta: overshoot of projections.
      beta: how far a misread image stays from x when it is drawn back to it.
      stop_early: whether an image is done once it is found within eps. Else the nearest
        is sought to the end.

    Raises:
      ValueError: see `task.prepare`; or a setting out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, fab
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("linf", 0.1)
      >>> key = jax.random.key(0)
      >>> fab.attack(logits_fn, x, y, key=key, threat_model=budget).success.tolist()
      [True, True]
    """
    targets = 1 if num_targets is None else num_targets
    _checks.at_least(
        1,
        num_steps=num_steps,
        num_targets=targets,
        num_restarts=num_restarts,
        eta=eta,
    )
    _checks.in_range(0, 1, alpha_max=alpha_max, beta=beta)
    return carry_out(
        run,
        logits_fn,
        x,
        y,
        key=key,
        threat_model=threat_model,
        num_steps=num_steps,
        num_targets=num_targets,
        num_restarts=num_restarts,
        alpha_max=alpha_max,
        eta=eta,
        beta=beta,
        stop_early=stop_early,
    )


METHODS = (
    settings.named(
        "fab",
        "100 steps towards the nearest boundary",
        attack,
        settings.Steps,
        num_targets=None,
        stop_early=True,
    ),
    settings.named(
        "fab_t",
        "100 steps towards the boundary of each of 9 classes",
        attack,
        settings.Targets,
        stop_early=True,
    ),
)
