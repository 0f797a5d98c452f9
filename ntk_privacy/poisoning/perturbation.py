"""Perturbations on the grid of pixel values, by signed Adam with restarts.

Intensities are held as multiples of 1/levels while they change, so that what comes out
is on the grid, within the bound and within [0, 1] to the last bit.

Source: algorithms 1 and 2 of the RDM-DC paper (sign of the update); Geiping et al.,
ICLR 2021 (Witches' Brew, arXiv:2009.02276), whose released `signAdam` takes the sign of
the gradient first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, _loop, sharding
from ntk_privacy._types import Callback

__all__ = ["CraftState", "Objective", "Poisoned", "craft", "init", "to_grid"]

Objective = Callable[[Array, Array, Any], Float[Array, ""]]
"""`(images, key, data) -> value` to lower, hashable.

Images have intensities in [0, 1]; the key fixes whatever is random, such as a network
and an augmentation; `data` is a pytree of arrays.
"""

_B1, _B2, _EPSILON = 0.9, 0.999, 1e-8


class CraftState(NamedTuple):
    """What crafting resumes from.

    shift: of each pixel, in units of 1/levels. first, second: Adam's moments. best: the
    shift of the best restart so far. scores: of every restart, infinite before its end.
    steps: done, over all restarts.
    """

    shift: Float[Array, "p ..."]
    first: Float[Array, "p ..."]
    second: Float[Array, "p ..."]
    best: Float[Array, "p ..."]
    scores: Float[Array, " r"]
    steps: Int[Array, ""]


class Poisoned(NamedTuple):
    """What stands in the rows that are poisoned.

    images: in [0, 1]; on the grid and within the bound, if the attack has one. losses:
    before each step of this call. scores: of each restart; the lowest is taken. state:
    to continue from; None where nothing was searched for.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy import poisoning
      >>> made = poisoning.Poisoned.at_once(np.zeros((1, 8, 8, 1), np.float32))
      >>> made.images.shape, made.losses.size, made.state
      ((1, 8, 8, 1), 0, None)
    """

    images: Float[Array | np.ndarray, "p h w d"]
    losses: Float[Array | np.ndarray, " steps"]
    scores: Float[Array | np.ndarray, " r"]
    state: CraftState | None

    @classmethod
    def at_once(cls, images: Float[Array | np.ndarray, "p h w d"]) -> "Poisoned":
        """Returns poison that no search was needed for."""
        none = np.zeros(0, np.float32)
        return cls(images, none, none, None)


def to_grid(images: Float[Array, "p ..."], levels: int = 255) -> Float[Array, "p ..."]:
    """Returns intensities as whole numbers from 0 to `levels`.

    Args:
      images: intensities, each a multiple of 1/levels in [0, 1].
      levels: steps from black to white.

    Raises:
      ValueError: an intensity is out of range or off the grid.
    """
    values = np.asarray(images, np.float64) * levels
    whole = np.rint(values)
    gap = float(np.abs(values - whole).max(initial=0))
    if not (gap < 1e-3 and 0 <= whole.min(initial=0) <= whole.max(initial=0) <= levels):
        raise ValueError(
            f"images lie in [{float(np.min(images)):.4g}, {float(np.max(images)):.4g}] "
            f"and up to {gap:.2g} steps off the grid of 1/{levels}: give intensities "
            f"as read from bytes, divided by {levels}, before any normalisation."
        )
    return jnp.asarray(whole, jnp.asarray(images).dtype)


def _in_steps(levels: int, **values: _checks.Number) -> list[int]:
    counts = []
    for name, value in values.items():
        _checks.number(**{name: value})
        if not 0 < value <= 1:
            told = f"such as {name}={value:g}/{levels}" if value > 1 else "above 0"
            raise ValueError(
                f"{name}={value} must lie in (0, 1], for intensities do: give a share "
                f"of them, {told}."
            )
        count = round(value * levels)
        if count < 1 or abs(value * levels - count) > 1e-6 * count:
            raise ValueError(
                f"{name}={value} is not a multiple of 1/{levels}: use a whole number "
                f"over {levels}, such as {max(count, 1)}/{levels}."
            )
        counts.append(count)
    return counts


class _Data(NamedTuple):
    clean: Any
    data: Any
    key_data: Any


@dataclasses.dataclass(frozen=True)
class _Step:
    """One update of one restart; equal steps share a compiled program."""

    objective: Objective
    bound: int
    step: int
    num_steps: int
    num_draws: int
    levels: int
    sign: str
    mesh: Mesh | None = None

    def project(self, shift, clean):
        shift = jnp.clip(shift, -self.bound, self.bound)
        return jnp.clip(clean + shift, 0, self.levels) - clean

    def images(self, shift, clean):
        return sharding.spread((clean + shift) / self.levels, self.mesh)

    def start(self, key, clean):
        shift = jax.random.uniform(key, clean.shape, clean.dtype, -1, 1) * self.bound
        return self.project(jnp.round(shift), clean)

    def score(self, shift, data, key):
        """Mean over draws that are the same for all restarts."""
        images = self.images(jnp.round(shift), data.clean)
        keys = jax.random.split(key, self.num_draws)
        return jnp.mean(
            jax.lax.map(lambda k: self.objective(images, k, data.data), keys)
        )

    def move(self, shift, first, second, grads, count):
        if self.sign == "before":
            grads = jnp.sign(grads)
            second = _B2 * second + (1 - _B2) * jnp.square(grads)
        first = _B1 * first + (1 - _B1) * grads
        if self.sign == "after":
            # The second moment is positive: it does not touch the sign.
            return shift - self.step * jnp.sign(first), first, second
        count = count.astype(shift.dtype)
        mean = first / (1 - _B1**count)
        scale = jnp.sqrt(second / (1 - _B2**count)) + _EPSILON
        return shift - self.step * mean / scale, first, second

    def __call__(self, state: CraftState, step, data: _Data):
        key = jax.random.wrap_key_data(data.key_data)
        key_start, key_step, key_score = jax.random.split(key, 3)
        restart, inner = step // self.num_steps, step % self.num_steps

        def begin(state):
            zero = jnp.zeros_like(state.shift)
            shift = self.start(jax.random.fold_in(key_start, restart), data.clean)
            return state._replace(shift=shift, first=zero, second=zero)

        state = jax.lax.cond(inner == 0, begin, lambda state: state, state)
        key = jax.random.fold_in(key_step, step)
        value, grads = jax.value_and_grad(
            lambda shift: self.objective(self.images(shift, data.clean), key, data.data)
        )(state.shift)
        shift, first, second = self.move(
            state.shift, state.first, state.second, grads, inner + 1
        )
        shift = self.project(shift, data.clean)

        def finish(state):
            score = self.score(shift, data, key_score)
            score = jnp.where(jnp.isnan(score), jnp.inf, score)
            better = (restart == 0) | (score < jnp.min(state.scores))
            return state._replace(
                best=jnp.where(better, shift, state.best),
                scores=state.scores.at[restart].set(score),
            )

        last = inner == self.num_steps - 1
        state = jax.lax.cond(last, finish, lambda state: state, state)
        state = state._replace(
            shift=shift, first=first, second=second, steps=state.steps + 1
        )
        return state, {"loss": value}


def init(images: Float[Array, "p h w d"], num_restarts: int) -> CraftState:
    """Returns the state before the first step.

    Args:
      images: give shape and dtype.
      num_restarts: as given to `craft`.
    """
    zero = jnp.zeros_like(images)
    infinite = jnp.full(num_restarts, jnp.inf, images.dtype)
    return CraftState(zero, zero, zero, zero, infinite, jnp.zeros((), jnp.int32))


def craft(
    images: Float[Array, "p h w d"],
    objective: Objective,
    data: Any = None,
    *,
    key: Array,
    bound: _checks.Number = 64 / 255,
    step: _checks.Number = 1 / 255,
    num_steps: int = 250,
    num_restarts: int = 8,
    num_draws: int = 16,
    sign: str = "after",
    levels: int = 255,
    state: CraftState | None = None,
    chunk: int = 50,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Poisoned:
    """Lowers an objective by small changes of images, and keeps the best restart.

    Args:
      images: clean images, intensities in [0, 1] on the grid.
      objective: see `Objective`.
      data: passed to it.
      key: typed key; fixes starts, draws of every step, and those of the scores.
      bound: largest change of an intensity, a multiple of 1/levels.
      step: change of an intensity per step, likewise.
      num_steps: of every restart.
      num_restarts: uniform random starts within the bound.
      num_draws: keys that every restart is scored on, the same for all.
      sign: "after" moves by the sign of Adam's update, a whole step each time;
        "before" gives Adam the sign of the gradient, and rounds at the end.
      levels: steps from black to white.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`.
      callback: `(steps over all restarts, state, metrics)` after each chunk.
      mesh: of `sharding.row_mesh`, whose devices share the images.

    Raises:
      ValueError: images that are bytes, NaN or off the grid, a bound or step outside of
        (0, 1] or no multiple of the grid's step, a bound that is no multiple of `step`,
        or a number out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.poisoning import perturbation
      >>> def darker(images, data, key):
      ...     return jnp.mean(images)
      >>> clean = jnp.full((1, 2, 2, 1), 128 / 255)
      >>> found = perturbation.craft(
      ...     clean, darker, key=jax.random.key(0), bound=8 / 255, num_steps=20
      ... )
      >>> float(clean[0, 0, 0, 0] - found.images.max()) > 7.9 / 255
      True
    """
    _class_checks.images(images=images)
    _checks.typed_key(key=key)
    _checks.one_of(("after", "before"), sign=sign)
    _checks.at_least(
        1,
        levels=levels,
        num_steps=num_steps,
        num_restarts=num_restarts,
        num_draws=num_draws,
    )
    bound_steps, step_steps = _in_steps(levels, bound=bound, step=step)
    if bound_steps % step_steps:
        raise ValueError(
            f"bound={bound} is not a multiple of step={step}: use a multiple of it, "
            f"such as {bound_steps // step_steps * step_steps or step_steps}/{levels}."
        )
    clean = to_grid(images, levels)
    if state is None:
        state = init(clean, num_restarts)
    elif (state.shift.shape, len(state.scores)) != (clean.shape, num_restarts):
        raise ValueError(
            f"state has shape {state.shift.shape} and {len(state.scores)} restarts, "
            f"this call {clean.shape} and {num_restarts}: repeat the options of the "
            "first call, or leave state out."
        )
    losses = []

    def after_chunk(done, state, metrics):
        losses.append(np.asarray(metrics["loss"]))
        return _loop.asks_to_stop(callback, done, state, metrics)

    run_step = _Step(
        objective, bound_steps, step_steps, num_steps, num_draws, levels, sign, mesh
    )
    state, _ = _loop.run(
        run_step,
        state,
        _Data(clean, data, _checks.key_data(key=key)),
        num_steps=num_steps * num_restarts,
        first_step=int(state.steps),
        chunk=chunk,
        callback=after_chunk,
        mesh=mesh,
    )
    # By NumPy, as bytes over 255 are: XLA may multiply by a rounded 1/255.
    whole = np.asarray(clean) + np.rint(np.asarray(state.best))
    best = jnp.asarray(whole / whole.dtype.type(levels))
    history = np.concatenate(losses) if losses else np.zeros(0, clean.dtype)
    return Poisoned(best, jnp.asarray(history), state.scores, state)
