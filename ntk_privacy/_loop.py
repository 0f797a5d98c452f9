"""One loop for everything iterative: jitted scans in chunks, host work between."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ntk_privacy import _checks, _programs, sharding

State = TypeVar("State")
StepFn = Callable[[State, Any, Any], tuple[State, dict[str, Any]]]


def asks_to_stop(
    callback: Callable[[int, Any, dict[str, Any]], bool | None] | None,
    step: int,
    state: Any,
    metrics: dict[str, Any],
) -> bool:
    """Calls a user's callback, if there is one; returns whether it said stop."""
    return callback is not None and bool(callback(step, state, metrics))


@_programs.jit(num_static=3)
def _scan_chunk(
    step_fn: StepFn,
    length: int,
    mesh: Mesh | None,
    state: Any,
    data: Any,
    first_step: Any,
) -> tuple[Any, dict[str, Any]]:
    """Runs `length` steps in one jitted scan; metrics are stacked over steps."""
    return jax.lax.scan(
        lambda carry, i: sharding.whole(step_fn(carry, i, data), mesh),
        state,
        first_step + jnp.arange(length, dtype=jnp.int32),
    )


def run(
    step_fn: StepFn,
    state: State,
    data: Any = None,
    *,
    num_steps: int,
    first_step: int = 0,
    chunk: int = 100,
    callback: Callable[[int, Any, dict[str, Any]], bool | None] | None = None,
    mesh: Mesh | None = None,
) -> tuple[State, int]:
    """Runs `step_fn` from `first_step` to `num_steps`, in jitted chunks.

    Chunk borders are multiples of `chunk` counted from step 0, so that a run resumed
    at any border repeats the same compiled programs and ends with the same bits.

    Args:
      step_fn: `(state, step, data) -> (state, metrics)`, pure. It must be one object
        for all calls with the same shapes, else it is traced again.
      state: pytree carried from step to step.
      data: pytree of constants, traced as arguments rather than baked in.
      num_steps: steps in all, counting those before `first_step`.
      first_step: number of steps that `state` has behind it.
      chunk: steps per jitted call.
      callback: `(steps_done, state, metrics)` after each chunk, metrics stacked over
        the chunk's steps; a true return value stops the loop.
      mesh: of `sharding.row_mesh`: every device holds the state, and of the data what
        is not yet shared; the step spreads what it computes.

    Returns:
      The state, at home again (`sharding.home`), and the number of steps done.

    Raises:
      ValueError: chunk, num_steps or first_step out of range.
    """
    _checks.at_least(1, chunk=chunk)
    _checks.at_least(0, num_steps=num_steps, first_step=first_step)
    if first_step > num_steps:
        raise ValueError(
            f"first_step={first_step} is above num_steps={num_steps}: ask for more "
            "steps, or start from an earlier state."
        )
    done = first_step
    state, data = sharding.placed((state, data), mesh)
    while done < num_steps:
        stop = min((done // chunk + 1) * chunk, num_steps)
        state, metrics = _scan_chunk(
            step_fn, stop - done, mesh, state, data, jnp.asarray(done, jnp.int32)
        )
        done = stop
        if asks_to_stop(callback, done, state, metrics):
            break
    return sharding.home(state, mesh), done
