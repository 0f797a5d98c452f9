r"""The KKT attack: training images from the weights before and after training.

At convergence of a linearized network $\theta_t - \theta_0 = \sum_i \alpha_i \nabla
f(x_i)$: images and duals that satisfy it are looked for by gradient descent on the
squared residual (`kernels.stationarity`) plus a penalty that keeps pixels in range.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 4. Beyond the paper:

* Candidates move in the column space of the first layer's change only. Each gradient
  of that layer is a sum of outer products with training images, so under full-batch
  training of any kind the images lie in that space, exactly.
* The loss is quadratic in the duals: they are solved for at every step (variable
  projection), and the search is over images alone.
* The first layer's equations are left out after that: what is left still has far more
  equations than unknowns, and half the cost.
* The loss is evaluated in its kernel form; the features are taken at any points of the
  segment from $\theta_0$ to $\theta_t$; steps decay by a cosine, and the sharpness of
  the smoothed ReLU rises geometrically over the first part of the run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _linalg, _loop, _tree
from ntk_privacy._types import ApplyFn, Callback, Params
from ntk_privacy.kernels import stationarity
from ntk_privacy.models import fitting
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import evidence, judging
from ntk_privacy.reconstruction.kkt_step import AttackState as AttackState
from ntk_privacy.reconstruction.kkt_step import Problem, Step
from ntk_privacy.reconstruction.projection import coordinates, project
from ntk_privacy.reconstruction.settings import FAST as FAST
from ntk_privacy.reconstruction.settings import PAPER as PAPER
from ntk_privacy.reconstruction.settings import POLISH as POLISH
from ntk_privacy.reconstruction.settings import REPLAYED as REPLAYED
from ntk_privacy.reconstruction.settings import STANDARD as STANDARD
from ntk_privacy.reconstruction.settings import Settings as Settings
from ntk_privacy.reconstruction.settings import parse_points as parse_points
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = [
    "FAST",
    "PAPER",
    "POLISH",
    "REPLAYED",
    "STANDARD",
    "Attack",
    "AttackState",
    "Reconstruction",
    "Settings",
    "parse_points",
    "prepare",
    "reconstruct",
    "run",
]


class Reconstruction(NamedTuple):
    """What a search found, and whether that is anything.

    Attributes:
      images: candidates, mean-subtracted like the training set.
      duals: multipliers, one set per point.
      losses: before every step of this call, without the box penalty.
      state: to continue from.
      nonfinite: the loss became NaN or infinite.
      verdict: what the evidence says of all images together (`judging.of_search`).
      contributions: share of the squared change that no other candidate makes up for,
        one per image; near 0 for images that explain nothing or that are there twice.
    """

    images: Float[Array, "m h w d"]
    duals: Float[Array, "q m c"]
    losses: Float[Array, " steps"]
    state: AttackState
    nonfinite: bool
    verdict: Verdict
    contributions: Float[np.ndarray, " m"]


class _Judged(NamedTuple):
    """What the images will be judged by: the parameters as they were given."""

    params_0: Params
    params_t: Params
    features: tuple[Params, ...] | None
    points: tuple[float, ...]
    bounds: tuple[Any, Any]


class Attack(NamedTuple):
    """A search made ready by `prepare`: its step, its constants, its first state."""

    step: Step
    problem: Problem
    state: AttackState
    image_shape: tuple[int, int, int]
    judged: _Judged


def prepare(
    network: MLP | ApplyFn,
    params_0: Params,
    params_t: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int,
    bounds: tuple[Any, Any],
    num_outputs: int = 1,
    points: str | Sequence[float] = "midpoint",
    features: Sequence[Params] | None = None,
    settings: Settings = FAST,
    initial_images: Float[Array | np.ndarray, "m h w d"] | None = None,
    initial_duals: Float[Array | np.ndarray, "q m c"] | None = None,
    movable: Bool[Array | np.ndarray, " m"] | None = None,
) -> Attack:
    """Checks the arguments of `reconstruct` and returns the search, not yet run.

    Args and Raises: see `reconstruct`.
    """
    _checks.at_least(1, num_images=num_images)
    points = parse_points(points)
    is_mlp = isinstance(network, MLP)
    if not is_mlp and (
        settings.form == "kernel" or settings.project or not settings.first_layer
    ):
        raise ValueError(
            "settings: the kernel form, the projection and leaving out the first layer "
            'are for an MLP; use form="parameter", project=False and first_layer=True '
            "with an apply_fn."
        )
    pixels = int(np.prod(image_shape))
    c = network.num_outputs if is_mlp else num_outputs
    given = {"params_0": params_0, "params_t": params_t}
    given |= {f"features[{i}]": params for i, params in enumerate(features or ())}
    if features is not None and not features:
        raise ValueError("features=() is empty: give at least one point, or None.")
    for name, params in given.items():
        if is_mlp:
            given[name] = fitting.mlp_params(
                network, params, image_shape=image_shape, name=name
            )
        else:
            fitting.check_apply_fn(
                network, params, image_shape=image_shape, num_outputs=c, name=name
            )
            _checks.full_precision(**{name: params})
        _checks.same_structure("params_0", given["params_0"], name, given[name])
        _checks.finite(**{name: given[name]})
    params_0, params_t, *rest = given.values()
    features = tuple(rest) or None
    _checks.differ("params_0", params_0, "params_t", params_t)
    q = len(features or points)
    judged = _Judged(params_0, params_t, features, points, bounds)
    for name, array, shape in (
        ("initial_images", initial_images, (num_images, *image_shape)),
        ("initial_duals", initial_duals, (q, num_images, c)),
        ("movable", movable, (num_images,)),
    ):
        if array is not None and array.shape != tuple(shape):
            raise ValueError(
                f"{name} has shape {array.shape}, the search needs {tuple(shape)}: "
                "give one row per candidate."
            )
    basis = None
    if settings.project:
        (params_0, params_t), basis = project(params_0, params_t)
    if features is None:
        features = stationarity.features(params_0, params_t, points)
    elif basis is not None:
        features = [coordinates(params, basis) for params in features]
    problem = _constants(
        params_0, params_t, basis, tuple(features), settings, bounds, image_shape
    )
    m, r = num_images, pixels if basis is None else basis.shape[1]
    dtype = problem.squared_norm.dtype
    # A latent step of the same length as a pixel step in every pixel.
    spread = (pixels / r) ** 0.5
    few = settings.form == "kernel" and q * m * c <= 2048
    step = Step(
        network=network,
        settings=settings,
        image_shape=(1, 1, r) if settings.project else tuple(image_shape),
        learning_rate=settings.learning_rate * spread,
        solve_duals=settings.duals == "solve" or (settings.duals == "auto" and few),
    )
    key_images, key_duals = jax.random.split(key)
    if initial_images is None:
        noise = jax.random.normal(key_images, (m, r), dtype)
        latents = settings.init_scale * spread * noise
    else:
        flat = jnp.asarray(initial_images, dtype).reshape(m, pixels)
        latents = flat if basis is None else _linalg.matmul(flat, basis)
    if initial_duals is None:
        duals = jax.random.uniform(key_duals, (q, m, c), dtype) - 0.5
    else:
        duals = jnp.asarray(initial_duals, dtype) * (m * c)
    movable = jnp.ones(m, bool) if movable is None else jnp.asarray(movable)
    problem = problem._replace(movable=movable, init=(latents, duals))
    opt_state = step.optimizer.init((latents, duals))
    state = AttackState(latents, duals, opt_state)
    return Attack(step, problem, state, tuple(image_shape), judged)


def run(
    attack: Attack,
    *,
    first_step: int = 0,
    chunk: int = 100,
    callback: Callback | None = None,
) -> Reconstruction:
    """Runs a search from `attack.state` to its last step.

    Args:
      attack: from `prepare`; replace its state to continue an earlier run.
      first_step: the number of steps that the state has behind it.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk.
    """
    losses = []

    def after_chunk(done, state, metrics):
        losses.append(np.asarray(metrics["loss"]))
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        return stop or not np.isfinite(losses[-1][-1])

    state, _ = _loop.run(
        attack.step,
        # A checkpoint may have left it on the host.
        jax.tree.map(jnp.asarray, attack.state),
        attack.problem,
        num_steps=attack.step.settings.num_steps,
        first_step=first_step,
        chunk=chunk,
        callback=after_chunk,
    )
    history = np.concatenate(losses) if losses else np.zeros(0, state.latents.dtype)
    m, c = state.duals.shape[1:]
    pixels = attack.step.pixels(state.latents, attack.problem)
    images, duals = pixels.reshape(m, *attack.image_shape), state.duals / (m * c)
    # Of an earlier call too: a search that was lost stays so.
    lost = not bool(np.isfinite(history).all() and jnp.isfinite(state.latents).all())
    found = None if lost else _evidence(attack, images, duals)
    return Reconstruction(
        images=images,
        duals=duals,
        losses=jnp.asarray(history),
        state=state,
        nonfinite=not bool(np.isfinite(history).all()),
        verdict=judging.of_search(found),
        contributions=np.zeros(m) if found is None else found.contributions,
    )


def _evidence(attack: Attack, images, duals) -> evidence.Evidence | None:
    judged = attack.judged
    features = judged.features or stationarity.features(
        judged.params_0, judged.params_t, judged.points
    )
    return evidence.measure(
        attack.step.network,
        features,
        _tree.sub(judged.params_t, judged.params_0),
        images,
        duals,
        bounds=judged.bounds,
    )


def reconstruct(
    network: MLP | ApplyFn,
    params_0: Params,
    params_t: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int,
    bounds: tuple[Any, Any],
    num_outputs: int = 1,
    points: str | Sequence[float] = "midpoint",
    features: Sequence[Params] | None = None,
    settings: Settings = FAST,
    initial_images: Float[Array | np.ndarray, "m h w d"] | None = None,
    initial_duals: Float[Array | np.ndarray, "q m c"] | None = None,
    movable: Bool[Array | np.ndarray, " m"] | None = None,
    chunk: int = 100,
    callback: Callback | None = None,
) -> Reconstruction:
    r"""Recovers training images from parameters before and after training.

    Minimises $\|\theta_t - \theta_0 - \frac1{mc}\sum_{q,j,c} a_{q,j}^c \nabla_\theta
    f^c_{\theta(s_q)}(x_j)\|^2 + \text{box}$ over images $x_j$ and duals $a$
    (arXiv:2302.01428, Eq. 7; $s = 1$ in the released code, $s = 0$ in print).

    Args:
      network: an `MLP`, or any `apply_fn(params, images)`; the latter needs
        `settings.form="parameter"` and `project=False`.
      params_0: parameters before training.
      params_t: parameters after training.
      key: typed key; fixes the initial images and duals.
      image_shape: (height, width, depth) in pixels.
      num_images: candidates m, usually twice the training set.
      bounds: smallest and largest intensity, scalar or per channel, in the units
        that the network takes: (-mean, 1 - mean).
      num_outputs: c, for an `apply_fn`; an `MLP` knows its own.
      points: "final", "init", "midpoint", "both", "three" (0, 1/2, 1) or s in [0, 1],
        each with its own duals. For linearized training use "init", where its gradients
        were; for standard training "both", with `settings=STANDARD`.
      features: parameters at which gradients are taken, each with its own duals, in
        place of `points`: from `replay.replay`.
      settings: `FAST`, or `PAPER` for the published search.
      initial_images: to start from, in place of noise.
      initial_duals: multipliers to start from, one set per point.
      movable: False where an initial image is held fixed.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk. To resume, give a saved
        state to `prepare(...)._replace(state=...)` and call `run`.

    Raises:
      ValueError: the parameters differ in structure or not at all, hold a NaN, do not
        fit the images, or a number is out of range.
    """
    attack = prepare(
        network,
        params_0,
        params_t,
        key=key,
        image_shape=image_shape,
        num_images=num_images,
        bounds=bounds,
        num_outputs=num_outputs,
        points=points,
        features=features,
        settings=settings,
        initial_images=initial_images,
        initial_duals=initial_duals,
        movable=movable,
    )
    return run(attack, chunk=chunk, callback=callback)


def _constants(params_0, params_t, basis, features, settings, bounds, image_shape):
    pixels = int(np.prod(image_shape))
    change = _tree.sub(params_t, params_0)
    # With one hidden layer the others alone would be too few.
    if not settings.first_layer and len(change) > 2:
        change = {name: leaf for name, leaf in change.items() if name != "Dense_0"}
    squared_norm = _tree.squared_norm(change)
    dtype = squared_norm.dtype
    if settings.form == "kernel":
        eps = float(jnp.finfo(dtype).eps)
        change = stationarity.factor(change, tolerance=10 * eps)
    low, high = (np.atleast_1d(np.asarray(bound, dtype)) for bound in bounds)
    by_channel = low.shape == high.shape and low.shape in ((1,), (image_shape[-1],))
    if not (by_channel and (low < high).all()):
        raise ValueError(
            f"bounds={tuple(bounds)}: give the smallest and the largest intensity, one "
            "number each or one per channel, the smallest first."
        )
    tiled = tuple(
        jnp.asarray(np.tile(bound, pixels // bound.size))[None] for bound in (low, high)
    )
    empty = jnp.zeros(0, dtype)
    return Problem(
        features=features,
        change=change,
        squared_norm=squared_norm,
        basis=basis,
        bounds=tiled,
        movable=empty,
        init=(empty, empty),
    )
