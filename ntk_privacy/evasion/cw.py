"""The attack of Carlini and Wagner in l_2: a short form, torchattacks', the original.

Source: Carlini & Wagner, IEEE S&P 2017 (arXiv:1608.04644). The short form has no search
over the constant. That of torchattacks takes the greatest other logit to be at least 0,
so that its result depends on what is added to all logits, and where all are negative it
does nothing; it is what GUARD (arXiv:2403.10045) reports, with a constant of 1e-4 that
leaves the loss next to no weight. It is here for comparisons alone.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks
from ntk_privacy.evasion import losses, settings
from ntk_privacy.evasion.task import (
    Found,
    LogitsFn,
    NotANumberError,
    Task,
    carry_out,
    confirmed,
    evaluate,
)
from ntk_privacy.evasion.threat_model import (
    Adversarial,
    ThreatModel,
    distance,
    per_sample,
    wide,
)

__all__ = ["METHODS", "attack"]

# tanh reaches the ends of the box only at infinity.
_EDGE = 1 - 1e-6
_UNBOUNDED = 1e10
_DEFAULTS = {"short": (1.0, 50), "original": (1e-3, 10000), "torchattacks": (1.0, 50)}


class _Best(NamedTuple):
    """The nearest misread images so far, and whether this constant found any.

    unread: whether any logit on the way was NaN.
    """

    images: Float[Array, "n h w c"]
    distance: Float[Array, " n"]
    hit: Bool[Array, " n"]
    unread: Bool[Array, " n"]


class _Descent(NamedTuple):
    w: Float[Array, "n h w c"]
    mean: Float[Array, "n h w c"]
    square: Float[Array, "n h w c"]
    best: _Best
    last_cost: Float[Array, ""]
    stop: Bool[Array, ""]
    i: Int[Array, ""]


def _excess(logits: Array, y: Array, kappa: Array, form: str) -> Array:
    """Returns max(z_y - greatest other logit, -kappa)."""
    if form == "torchattacks":
        # The true class stands among the others with a 0, as in torchattacks.
        own = jnp.arange(logits.shape[1], dtype=y.dtype)[None, :] == y[:, None]
        other = jnp.max(jnp.where(own, 0, logits), axis=1)
        ahead = jnp.sum(jnp.where(own, logits, 0), axis=1) - other
    else:
        ahead = losses.margin(logits, y)
    return jnp.maximum(ahead, -kappa.astype(ahead.dtype))


def _descend(
    task: Task,
    best: _Best,
    constant: Float[Array, " n"],
    rate: Float[Array, ""],
    kappa: Float[Array, ""],
    key: Array,
    *,
    form: str,
    num_steps: int,
) -> tuple[_Best, Int[Array, ""]]:
    """Minimises ||x' - x||^2 + c excess by Adam, c one per image."""
    low, width = task.limits.low, task.limits.high - task.limits.low
    every = max(num_steps // 10, 1)
    slack = 0.9999 if form == "original" else 1.0

    def image(w):
        inside = low + width * (jnp.tanh(w) + 1) / 2
        return jnp.clip(inside, low, task.limits.high)

    def body(state):
        images, pull = jax.vjp(image, state.w)

        def cost(logits, y, target):
            del target
            return _excess(logits, y, kappa, form)

        values, logits, gradient = evaluate(
            task.model, cost, images, task.y, task.y, jax.random.fold_in(key, state.i)
        )
        values = constant.astype(values.dtype) * values
        gradient = per_sample(constant) * gradient
        move = images - task.x
        squares = jnp.sum(move.astype(values.dtype) ** 2, axis=(1, 2, 3))
        (gradient,) = pull(gradient + 2 * move)
        # Adam, with the usual constants.
        mean = 0.9 * state.mean + 0.1 * gradient
        square = 0.999 * state.square + 0.001 * gradient**2
        count = (state.i + 1).astype(rate.dtype)
        unbiased = jnp.sqrt(square / (1 - 0.999**count)) + 1e-8
        update = mean / (1 - 0.9**count) / unbiased

        asked = jax.random.fold_in(jax.random.fold_in(key, state.i), 1)
        wrong = confirmed(task, images, logits, asked)
        if form == "original":
            # NaN counts as misread, see `losses.misread`.
            wrong &= ~(losses.margin(logits, task.y) > -kappa.astype(logits.dtype))
        far = distance(move, norm="l2")
        closer = wrong & (far < state.best.distance)
        found = _Best(
            jnp.where(per_sample(closer), images, state.best.images),
            jnp.where(closer, far, state.best.distance),
            state.best.hit | wrong,
            state.best.unread | jnp.any(jnp.isnan(logits), axis=1),
        )
        total = jnp.sum(jnp.where(task.active, squares + values, 0))
        check = state.i % every == 0
        return _Descent(
            state.w - rate * update,
            mean,
            square,
            found,
            jnp.where(check, total, state.last_cost),
            check & (total > slack * state.last_cost),
            state.i + 1,
        )

    scaled = 2 * (task.x - low) / width - 1
    w = jnp.arctanh(jnp.clip(scaled, -_EDGE, _EDGE))
    start = _Descent(
        w,
        jnp.zeros_like(w),
        jnp.zeros_like(w),
        best._replace(hit=jnp.zeros_like(best.hit)),
        jnp.asarray(jnp.inf, task.logits.dtype),
        jnp.asarray(False),
        jnp.asarray(0, jnp.int32),
    )
    end = jax.lax.while_loop(lambda s: (s.i < num_steps) & ~s.stop, body, start)
    return end.best, end.i


@functools.partial(jax.jit, static_argnames=("form", "num_steps", "num_constants"))
def _search(
    task: Task,
    constant: Float[Array, ""],
    rate: Float[Array, ""],
    kappa: Float[Array, ""],
    key: Array,
    *,
    form: str,
    num_steps: int,
    num_constants: int,
) -> tuple[Found, Bool[Array, ""], Int[Array, ""]]:
    """Bisects the constant of each image: down where it is misread, else up.

    Tells also whether any image was misread, within the bound or not, and for how many
    a logit on the way was NaN.
    """
    per_image = jnp.ones_like(task.x[:, 0, 0, 0])
    far = jnp.full(task.y.shape, jnp.inf, wide(task.x.dtype))
    nowhere = jnp.zeros(task.y.shape, bool)
    best = _Best(task.x, far, nowhere, nowhere)

    def attempt(carry, i):
        best, constant, lower, upper, steps = carry
        if num_constants >= 10:  # the last try is for sure large enough
            constant = jnp.where(i == num_constants - 1, upper, constant)
        best, taken = _descend(
            task,
            best,
            constant,
            rate,
            kappa,
            jax.random.fold_in(key, i),
            form=form,
            num_steps=num_steps,
        )
        upper = jnp.where(best.hit, jnp.minimum(upper, constant), upper)
        lower = jnp.where(best.hit, lower, jnp.maximum(lower, constant))
        bounded = upper < _UNBOUNDED / 10
        constant = jnp.where(
            bounded, (lower + upper) / 2, jnp.where(best.hit, constant, constant * 10)
        )
        return (best, constant, lower, upper, steps + taken), None

    carry = (
        best,
        constant * per_image,
        jnp.zeros_like(per_image),
        _UNBOUNDED * per_image,
        jnp.asarray(0, jnp.int32),
    )
    carry, _ = jax.lax.scan(attempt, carry, jnp.arange(num_constants, dtype=jnp.int32))
    best, steps = carry[0], carry[-1]
    eps = task.limits.eps.astype(best.distance.dtype)
    reached = jnp.isfinite(best.distance) & (best.distance <= eps)
    success = task.active & reached
    images = jnp.where(per_sample(success), best.images, task.x)
    found = Found(images, success, jnp.broadcast_to(steps, task.y.shape))
    moved = jnp.any(jnp.isfinite(best.distance) & task.active)
    return found, moved, jnp.sum(best.unread & task.active, dtype=jnp.int32)


def run(
    task: Task,
    *,
    key: Array,
    norm: str,
    constant: _checks.Number,
    rate: _checks.Number,
    kappa: _checks.Number,
    form: str,
    **options: Any,
) -> Found:
    """Calls `_search` with numbers in the dtype of the images.

    Raises:
      NotANumberError: NaN logits on the way, where the descent does not end.
    """
    del norm
    numbers = (jnp.asarray(v, task.x.dtype) for v in (constant, rate, kappa))
    found, moved, unread = _search(task, *numbers, key, form=form, **options)
    if int(unread):
        raise NotANumberError(int(unread), len(task.y))
    if form != "original" and not bool(moved) and bool(jnp.any(task.active)):
        warnings.warn(
            f"CW misread nothing at constant={constant}, at no distance: that says "
            "nothing of the model; give a greater constant, or form='original', which "
            "searches it.",
            stacklevel=4,
        )
    return found


def attack(
    logits_fn: LogitsFn,
    x: Float[Array, "n h w c"],
    y: Int[Array, " m"],
    *,
    key: Array,
    threat_model: ThreatModel | None = None,
    form: str = "short",
    constant: _checks.Number | None = None,
    kappa: _checks.Number = 0.0,
    num_steps: int | None = None,
    num_constants: int = 9,
    rate: _checks.Number = 0.01,
) -> Adversarial:
    """Looks for the nearest misread image by Adam in w, where x' = (tanh(w) + 1) / 2.

    The cost ||x' - x||^2 + c max(z_y - max_(j != y) z_j, -kappa) is looked at ten times
    in a run; once it did not fall the whole batch stops, as in the sources. Images
    already misread do not count in it. What was not found within eps stays x.

    Args:
      logits_fn: see `task.LogitsFn`.
      x: images in the box.
      y: labels.
      key: typed key, for a random model only.
      threat_model: of norm l_2; eps is infinite if None.
      form: "short" for one constant, "original" for a search over it, "torchattacks"
        for the short one with the greatest other logit taken to be at least 0. That
        depends on what is added to the logits; the others do not.
      constant: c, or where its search starts; 1 or 1e-3 if None. The short forms find
        little with a small one: GUARD's 1e-4 does nothing beyond the first step.
      kappa: how far ahead the wrong class should be.
      num_steps: steps of Adam, per constant; 50 or at most 10000 if None.
      num_constants: tries of the original form.
      rate: of Adam.

    Raises:
      ValueError: see `task.prepare`; another norm, a setting out of range, or NaN
        logits anywhere on the way.

    Warns, with `UserWarning`, if a short form misreads nothing at any distance.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evasion import ThreatModel, cw
      >>> def logits_fn(x):
      ...     bright = x.mean((1, 2, 3))
      ...     return jnp.stack([bright, 0.5 - bright, bright - 0.5], 1) * 9
      >>> x, y = jnp.full((2, 4, 4, 1), 0.2), jnp.ones(2, int)
      >>> budget = ThreatModel("l2", jnp.inf)
      >>> key = jax.random.key(0)
      >>> cw.attack(logits_fn, x, y, key=key, threat_model=budget).success.tolist()
      [True, True]
    """
    threat_model = threat_model or ThreatModel(norm="l2", eps=float("inf"))
    if threat_model.norm != "l2":
        raise ValueError(
            f"norm={threat_model.norm!r} is not minimised by this attack: use l2, or "
            "another attack."
        )
    _checks.one_of(tuple(_DEFAULTS), form=form)
    default_constant, default_steps = _DEFAULTS[form]
    constant = default_constant if constant is None else constant
    num_steps = default_steps if num_steps is None else num_steps
    _checks.at_least(1, num_steps=num_steps, num_constants=num_constants)
    _checks.at_least(0, kappa=kappa)
    _checks.positive(constant=constant, rate=rate)
    return carry_out(
        run,
        logits_fn,
        x,
        y,
        key=key,
        threat_model=threat_model,
        constant=constant,
        rate=rate,
        kappa=kappa,
        form=form,
        num_steps=num_steps,
        num_constants=num_constants if form == "original" else 1,
    )


def _guard(*args: Any, **options: Any) -> Adversarial:
    with warnings.catch_warnings():
        # Who names it is told once, not for each batch.
        warnings.filterwarnings("ignore", message="CW misread nothing")
        return attack(*args, form="torchattacks", constant=1e-4, **options)


METHODS = (
    settings.named(
        "cw",
        "l_2, 9 constants, 50 steps each; no bound unless norm is l2",
        attack,
        settings.Steps,
        numbers={"num_steps": 50},
        form="original",
    ),
    settings.named(
        "cw_binary",
        "l_2, 9 constants, up to 10000 steps each; no bound unless norm is l2",
        attack,
        settings.Steps,
        numbers={"num_steps": 10_000},
        form="original",
    ),
    settings.named(
        "cw_guard",
        "l_2, constant 1e-4 in torchattacks' form, 50 steps: next to nothing",
        _guard,
        settings.Steps,
        numbers={"num_steps": 50},
    ),
)
