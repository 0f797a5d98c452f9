"""The kernel of a network followed through its training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy._types import AtMost
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import empirical
from ntk_privacy.kernels.named import Network
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import train

__all__ = ["CHUNK", "Moved", "figures", "follow"]

CHUNK = 10
"""Training steps between looks at the loss, and before the first at the kernel."""

_MOST_LOOKS = 64


class Moved(NamedTuple):
    """The kernel during training.

    Attributes:
      steps, losses, distances: at each look; the first is before training.
      kernel_t: after training.
      converged: the loss fell below `stop_loss`.
    """

    steps: Int[np.ndarray, " looks"]
    losses: Float[np.ndarray, " looks"]
    distances: Float[np.ndarray, " looks"]
    kernel_t: Float[np.ndarray, "n n"]
    converged: bool


def follow(
    network: Network,
    x_train: Float[Array, "n h w d"],
    y_train: Float[Array, "n c"],
    *,
    kernel_0: Float[Array, "n n"],
    stop_loss: float = 1e-3,
    max_steps: int = 2000,
    stage: Stage = straight,
) -> Moved:
    """Trains, and measures the kernel after 10, 20, 40, ... steps and at the end.

    Args:
      network: of `kernels.named.KERNELS`.
      x_train: images.
      y_train: targets.
      kernel_0: of these images at initialisation.
      stop_loss: mean of (f - y)^2 / 2 at which training ends.
      max_steps: limit of training.
      stage: runs the training, as "train".

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.evaluation import kernel_movement
      >>> from ntk_privacy.kernels.named import KERNELS, Problem
      >>> x = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
      >>> y = jnp.asarray([[1.0], [-1.0], [1.0], [-1.0]])
      >>> row = KERNELS["empirical_mlp"]
      >>> made = row.run(Problem(x, 1), row.configured(width=8), key=jax.random.key(1))
      >>> moved = kernel_movement.follow(
      ...     made.network, x, y, kernel_0=made.fn(x), max_steps=25
      ... )
      >>> moved.steps, moved.converged
      (array([ 0, 10, 20, 25]), False)
    """
    apply_fn = network.model.apply_fn
    square = _square(apply_fn, network.params_0, x_train)
    largest = float(jnp.linalg.eigvalsh(square)[-1])
    optimizer = train.stable_optimizer(largest, y_train.size)
    problem = (apply_fn, network.params_0, x_train, y_train)
    state = train.init(*problem, optimizer=optimizer)
    looks = {"rows": np.zeros((_MOST_LOOKS, 3)), "count": np.zeros((), np.int64)}
    looks["rows"][0] = (0, float(state.loss), 0.0)
    looks["count"] += 1

    def go(start, done, callback):
        del done  # the state knows
        looks = jax.tree.map(np.array, start["looks"])

        def look(steps, state, metrics):
            if steps >= CHUNK * 2 ** (int(looks["count"]) - 1):
                kernel = network.kernel_at(state.params)(x_train)
                distance = float(kernel_distance(kernel_0, kernel))
                looks["rows"][looks["count"]] = (steps, float(state.loss), distance)
                looks["count"] += 1
            return callback(steps, {"state": state, "looks": looks}, metrics)

        trained = train.full_batch(
            *problem,
            optimizer=optimizer,
            max_steps=max_steps,
            stop_loss=stop_loss,
            chunk=CHUNK,
            state=start["state"],
            callback=look,
        )
        return trained, network.kernel_at(trained.params)(x_train), looks

    ran = stage("train", {"state": state, "looks": looks}, go, AtMost(max_steps))
    trained, kernel_t, looks = ran.result
    rows = looks["rows"][: int(looks["count"])]
    if rows[-1, 0] < trained.steps:
        last = float(kernel_distance(kernel_0, kernel_t))
        rows = np.vstack([rows, (trained.steps, trained.loss, last)])
    return Moved(
        steps=rows[:, 0].astype(np.int64),
        losses=rows[:, 1],
        distances=rows[:, 2],
        kernel_t=np.asarray(kernel_t),
        converged=trained.converged,
    )


def _square(apply_fn, params, x):
    """The kernel of all outputs as one matrix."""
    full = empirical.ntk(apply_fn, params, x, trace_outputs=False)
    n, c = full.shape[0], full.shape[2]
    return full.transpose(0, 2, 1, 3).reshape(n * c, n * c)


def figures(moved: Moved) -> dict[str, Any]:
    """Returns how far the kernel moved, and what it took, as a file of results has it.

    Args:
      moved: of `follow`.
    """
    return {
        "kernel_distance": moved.distances[-1],
        "train_steps": moved.steps[-1],
        "train_loss": moved.losses[-1],
        "converged": moved.converged,
        "steps": moved.steps,
        "losses": moved.losses,
        "kernel_distances": moved.distances,
    }
