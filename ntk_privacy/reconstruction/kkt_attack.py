"""A KKT search made ready: arguments checked, constants and first state computed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy import _checks, _linalg, _tree
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.kernels import stationarity
from ntk_privacy.models import fitting
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction.kkt_step import AttackState, Problem, Step
from ntk_privacy.reconstruction.projection import coordinates, project
from ntk_privacy.reconstruction.settings import FAST, Settings, parse_points

__all__ = ["Attack", "prepare"]


class Judged(NamedTuple):
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
    judged: Judged


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
    """Checks the arguments of `kkt.reconstruct` and returns the search, not yet run.

    Args and Raises: see `kkt.reconstruct`.
    """
    _checks.typed_key(key=key)
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
    height, width, depth = image_shape
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
    judged = Judged(params_0, params_t, features, points, bounds)
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
        image_shape=(1, 1, r) if settings.project else (height, width, depth),
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
    return Attack(step, problem, state, (height, width, depth), judged)


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
    least, most = (
        jnp.asarray(np.tile(bound, pixels // bound.size))[None] for bound in (low, high)
    )
    empty = jnp.zeros(0, dtype)
    return Problem(
        features=features,
        change=change,
        squared_norm=squared_norm,
        basis=basis,
        bounds=(least, most),
        movable=empty,
        init=(empty, empty),
    )
