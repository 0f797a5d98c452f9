"""Full-batch training on the squared loss, with a stop rule and snapshots.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 5.2: gradient descent with
momentum 0.9 until the mean loss is below 1e-10.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _loop
from ntk_privacy._types import ApplyFn, Callback, Params

__all__ = [
    "TrainState",
    "Trained",
    "full_batch",
    "init",
    "paper_optimizer",
    "reached",
    "stable_optimizer",
]


class TrainState(NamedTuple):
    """What training resumes from.

    params, opt_state: of the optimiser. loss: mean loss at `params`. steps: optimiser
    steps taken. snapshots: parameters at the first step below each snapshot loss,
    stacked on the first axis. reached: which of them were.
    """

    params: Params
    opt_state: Any
    loss: Float[Array, ""]
    steps: Int[Array, ""]
    snapshots: Params
    reached: Bool[Array, " k"]


class Trained(NamedTuple):
    """params: after training. loss: mean of (f - y)^2 / 2 there. steps: taken.
    snapshots: one pytree per snapshot loss, None where it was not reached. converged:
    the loss fell below `stop_loss`. state: to continue from.
    """  # noqa: D205

    params: Params
    loss: float
    steps: int
    snapshots: list[Params | None]
    converged: bool
    state: TrainState


def stable_optimizer(
    lambda_max: float,
    num_targets: int,
    *,
    momentum: float = 0.9,
    fraction: float = 0.02,
) -> optax.GradientTransformation:
    """Heavy ball close to gradient flow: step 0.02 / lambda_max on the summed loss.

    Args:
      lambda_max: largest eigenvalue of the NTK of the training images.
      num_targets: images times outputs: the loss is a mean over these.
      momentum: beta, in [0, 1).
      fraction: the step in units of 1 / lambda_max; stable below 2 (1 + beta) while
        the kernel keeps still, and the farther from gradient flow the larger.

    Raises:
      ValueError: lambda_max or fraction is not above 0, or num_targets below 1.
    """
    _checks.positive(lambda_max=lambda_max, fraction=fraction)
    _checks.at_least(1, num_targets=num_targets)
    return optax.sgd(fraction * num_targets / lambda_max, momentum=momentum)


def paper_optimizer(num_images: int) -> optax.GradientTransformation:
    """The published schedule: N * 2e-7 on the mean loss, momentum 0.9.

    Args:
      num_images: N.

    Raises:
      ValueError: num_images is below 1.
    """
    _checks.at_least(1, num_images=num_images)
    return optax.sgd(num_images * 2e-7, momentum=0.9)


def reached(loss: float, asked: float, y_train: Float[Array, "n c"]) -> bool:
    """Whether a loss measured at parameters is the one that training was asked for.

    Args:
      loss: mean of (f - y)^2 / 2, of outputs computed anew.
      asked: the loss asked for; 1% more, and outputs off by 100 roundings of the root
        mean square target (7e-11 of loss in float32), count as reached.
      y_train: targets.
    """
    y = jnp.asarray(y_train)
    rounding = 100 * float(jnp.finfo(y.dtype).eps)
    return loss <= 1.01 * asked + 0.5 * rounding**2 * float(jnp.mean(y**2))


class _Data(NamedTuple):
    x: Any
    y: Any
    stop_loss: Any
    snapshot_losses: Any


def _mean_loss(outputs, y):
    return 0.5 * jnp.mean((outputs - y) ** 2)


def _record(state: TrainState, levels) -> TrainState:
    """Copies the parameters for each level that the loss has just passed."""
    new = (state.loss < levels) & ~state.reached

    def copy(snapshots):
        def put(stack, leaf):
            mask = new.reshape((-1,) + (1,) * leaf.ndim)
            return jnp.where(mask, leaf[None], stack)

        return jax.tree.map(put, snapshots, state.params)

    snapshots = jax.lax.cond(jnp.any(new), copy, lambda s: s, state.snapshots)
    return state._replace(snapshots=snapshots, reached=state.reached | new)


class _Step:
    """The step of one training problem, a single object so that it is traced once."""

    def __init__(self, apply_fn, optimizer):
        self.apply_fn, self.optimizer = apply_fn, optimizer

    def __call__(self, state: TrainState, step, data: _Data):
        del step

        def advance(state):
            grads = jax.grad(lambda p: _mean_loss(self.apply_fn(p, data.x), data.y))(
                state.params
            )
            updates, opt_state = self.optimizer.update(
                grads, state.opt_state, state.params
            )
            params = optax.apply_updates(state.params, updates)
            loss = _mean_loss(self.apply_fn(params, data.x), data.y)
            state = state._replace(
                params=params, opt_state=opt_state, loss=loss, steps=state.steps + 1
            )
            return _record(state, data.snapshot_losses)

        # A state below the stop loss, or lost to overflow, stays as it is.
        running = (state.loss >= data.stop_loss) & jnp.isfinite(state.loss)
        state = jax.lax.cond(running, advance, lambda s: s, state)
        return state, {"loss": state.loss}


def init(
    apply_fn: ApplyFn,
    params_0: Params,
    x_train: Float[Array, "n ..."],
    y_train: Float[Array, "n c"],
    *,
    optimizer: optax.GradientTransformation,
    snapshot_losses: Sequence[float] = (),
) -> TrainState:
    """Returns the state before the first step.

    Args: those of `full_batch`.
    """
    x, y = jnp.asarray(x_train), jnp.asarray(y_train)
    params = jax.tree.map(jnp.array, params_0)
    k = len(snapshot_losses)
    state = TrainState(
        params=params,
        opt_state=optimizer.init(params),
        loss=_mean_loss(apply_fn(params, x), y),
        steps=jnp.zeros((), jnp.int32),
        snapshots=jax.tree.map(lambda a: jnp.zeros((k, *a.shape), a.dtype), params),
        reached=jnp.zeros(k, bool),
    )
    return _record(state, jnp.asarray(snapshot_losses, y.dtype))


def full_batch(
    apply_fn: ApplyFn,
    params_0: Params,
    x_train: Float[Array, "n ..."],
    y_train: Float[Array, "n c"],
    *,
    optimizer: optax.GradientTransformation,
    max_steps: int = 1_000_000,
    stop_loss: float = 1e-10,
    snapshot_losses: Sequence[float] = (),
    chunk: int = 100,
    state: TrainState | None = None,
    callback: Callback | None = None,
) -> Trained:
    """Trains on all images at once until the mean loss is below `stop_loss`.

    Args:
      apply_fn: the network.
      params_0: parameters at initialisation.
      x_train: images.
      y_train: targets, one column per output.
      optimizer: on the loss mean((f - y)^2) / 2; see `stable_optimizer`.
      max_steps: steps in all, counting those already in `state`.
      stop_loss: mean loss below which training stops.
      snapshot_losses: keep the first parameters below each of these (early stopping).
      chunk: steps between calls of `callback`.
      state: from an earlier call, to continue it.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: lengths differ, images or targets are no finite floating-point
        numbers, a number is out of range, or the loss is not finite.
    """
    _checks.same_length(x_train=x_train, y_train=y_train)
    _checks.floating(x_train=x_train, y_train=y_train)
    _checks.finite_data(x_train=x_train, y_train=y_train)
    _checks.positive(stop_loss=stop_loss)
    for level in snapshot_losses:
        _checks.positive(snapshot_loss=level)
    x, y = jnp.asarray(x_train), jnp.asarray(y_train)
    levels = jnp.asarray(snapshot_losses, y.dtype)
    outputs = jax.eval_shape(apply_fn, params_0, x)
    if outputs.shape != y.shape:
        raise ValueError(
            f"y_train has shape {y.shape}, the outputs have {outputs.shape}: give one "
            "column per output of the network."
        )
    if state is None:
        state = init(
            apply_fn,
            params_0,
            x,
            y,
            optimizer=optimizer,
            snapshot_losses=snapshot_losses,
        )

    def after_chunk(done, state, metrics):
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        loss = float(state.loss)
        return stop or loss < stop_loss or not np.isfinite(loss)

    data = _Data(x, y, jnp.asarray(stop_loss, y.dtype), levels)
    state, _ = _loop.run(
        _Step(apply_fn, optimizer),
        state,
        data,
        num_steps=max_steps,
        first_step=int(state.steps),
        chunk=chunk,
        callback=after_chunk,
    )
    loss = float(state.loss)
    if not np.isfinite(loss):
        raise ValueError(
            f"The training loss became {loss} after {int(state.steps)} steps: lower "
            "the learning rate."
        )
    snapshots = [
        jax.tree.map(lambda a, i=i: a[i], state.snapshots) if reached else None
        for i, reached in enumerate(np.asarray(state.reached))
    ]
    return Trained(
        params=state.params,
        loss=loss,
        steps=int(state.steps),
        snapshots=snapshots,
        converged=loss < stop_loss,
        state=state,
    )
