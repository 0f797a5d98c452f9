"""One step of the KKT attack: loss, duals, Adam, and what a lost search leaves.

Source of the attack: Loo et al., ICLR 2024 (arXiv:2302.01428); see `kkt` for what is
this project's own.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntk_privacy import _linalg, sharding
from ntk_privacy._types import Params
from ntk_privacy.kernels import stationarity
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction.settings import Settings

__all__ = ["AttackState", "Problem", "Step"]


class AttackState(NamedTuple):
    """What the attack resumes from: variables (latents, duals) and Adam's moments."""

    latents: Float[Array, "m r"]
    duals: Float[Array, "q m c"]
    opt_state: Any


class Problem(NamedTuple):
    """Constants of one attack, passed to the jitted loop as data."""

    features: tuple[Params, ...]
    change: Params
    squared_norm: Array
    basis: Array | None
    bounds: tuple[Array, Array]
    movable: Array
    init: tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Step:
    """One Adam step; equal steps hash alike, so the loop is traced once per shape."""

    network: Any
    settings: Settings
    image_shape: tuple[int, int, int]
    learning_rate: float
    solve_duals: bool
    mesh: Mesh | None = None

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with a rate for latents and one for duals."""
        s = self.settings
        if s.decay == "cosine":
            decay = optax.cosine_decay_schedule(1.0, s.num_steps)
        else:
            decay = optax.constant_schedule(1.0)
        return optax.partition(
            {
                "latents": optax.adam(lambda i: self.learning_rate * decay(i)),
                "duals": optax.adam(lambda i: s.dual_learning_rate * decay(i)),
            },
            ("latents", "duals"),
        )

    def sharpness(self, step: Array, dtype) -> Array:
        """Of the smoothed ReLU at `step`."""
        s, i = self.settings, step.astype(dtype)
        if s.anneal == "paper":
            return jnp.minimum(10 + 10 ** (i / 20_000), s.max_sharpness)
        done = jnp.minimum(i / (0.6 * s.num_steps), 1.0)
        return s.start_sharpness * (s.max_sharpness / s.start_sharpness) ** done

    def pixels(self, latents: Array, problem: Problem) -> Array:
        """Images of the latents, flattened."""
        if problem.basis is None:
            return latents
        return _linalg.matmul(latents, problem.basis.T)

    @_linalg.full_precision
    def loss(self, variables, step, problem: Problem):
        """Loss with the box penalty; as auxiliary the former alone and the duals."""
        latents, duals = variables
        latents = sharding.spread(latents, self.mesh)
        m, c = duals.shape[1:]
        sharpness = self.sharpness(step, latents.dtype)
        if self.solve_duals:
            kernel, projection = stationarity.normal_equations(
                self.network,
                problem.features,
                problem.change,
                latents,
                sharpness=sharpness,
            )
            # At the minimum the duals' own derivative is zero: they are constants.
            best = jax.lax.stop_gradient(
                stationarity.best_duals(kernel, projection, ridge=self.settings.ridge)
            )
            explained = 2 * best @ projection - best @ kernel @ best
            stationary = problem.squared_norm - explained
            duals = best.reshape(duals.shape) * (m * c)
        elif self.settings.form == "kernel":
            stationary = stationarity.kernel_form(
                self.network,
                problem.features,
                problem.change,
                latents,
                duals / (m * c),
                squared_norm=problem.squared_norm,
                sharpness=sharpness,
            )
        else:
            # Projected or not, the network sees what its first layer expects.
            smoothed = isinstance(self.network, MLP)
            stationary = stationarity.parameter_form(
                self.network.apply_fn if smoothed else self.network,
                problem.features,
                problem.change,
                latents.reshape(m, *self.image_shape),
                duals / (m * c),
                sharpness=sharpness if smoothed else None,
            )
        low, high = problem.bounds
        pixels = self.pixels(latents, problem)
        outside = jax.nn.relu(pixels - high) ** 2 + jax.nn.relu(low - pixels) ** 2
        box = self.settings.box_weight * m * jnp.mean(outside)
        return stationary + box, (stationary, duals)

    def __call__(self, state: AttackState, step, problem: Problem):
        """Returns the state after the step, and the loss before it."""
        variables = (state.latents, state.duals)
        grads, (loss, best) = jax.grad(self.loss, has_aux=True)(
            variables, step, problem
        )
        # optax takes powers of a float by a step count.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimizer.update(
                grads, state.opt_state, variables
            )
        latents, duals = jax.tree.map(jnp.add, variables, updates)
        latents = jnp.where(problem.movable[:, None], latents, problem.init[0])
        if self.solve_duals:
            duals = best
        else:
            duals = jnp.where(problem.movable[None, :, None], duals, problem.init[1])
        new = AttackState(latents, duals, opt_state)
        # The last finite state is what a failed run leaves behind.
        ok = (
            jnp.isfinite(loss) & jnp.isfinite(latents).all() & jnp.isfinite(duals).all()
        )
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state), {
            "loss": loss
        }
