"""The network under attack: what a reconstruction attack is tried on.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428), section 5: MLPs of two hidden layers,
trained on all images at once until the mean squared loss is below 1e-10, the network
itself or its first-order Taylor model.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ntk_privacy import _checks, resume
from ntk_privacy._types import AtMost, Params
from ntk_privacy.kernels import structured
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.models.mlp import MLP, Parametrization
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import linearized, subspace
from ntk_privacy.training import recipe as recipes
from ntk_privacy.training import train as full_batch_training
from ntk_privacy.training.recipe import Loss, Recipe

__all__ = [
    "Dynamics",
    "Schedule",
    "Victim",
    "fit",
    "one_gradient",
    "outputs",
    "train",
]

Dynamics = Literal["linearized", "standard"]
Schedule = Literal["flow", "heavy_ball", "paper"]

_MOMENTUM = 0.9  # the paper's, and that of the heavy ball
# Steps, in 1 / largest eigenvalue of the kernel.
_PACES = {"flow": 0.02, "heavy_ball": 0.3}


class Victim(NamedTuple):
    """A trained network, with what an attacker does not see of it.

    Attributes:
      model: the architecture.
      params_0: before training.
      params_t: after it.
      image_shape: (height, width, depth) in pixels.
      dynamics: "linearized" where the first-order Taylor model was trained.
      duals: multipliers of the training images, (n, c), known for a linearized model.
      loss: mean of (f - y)^2 / 2 at params_t, of outputs computed anew; or of the loss
        that it was trained on.
      steps: of the optimizer; None for the closed form.
      reached: whether the loss is what was asked for; None where nothing was, or where
        the epochs asked for ended the training before.
      centre: mean image that images are less of where they enter the network; None
        where it takes them as they are loaded.
      is_logistic: trained on the logistic loss from a vanishing first layer, whose
        kernel is no reference.
      objective: the loss that it was trained on.
      gradient: of the mean loss at params_0, where that is all that was shared;
        params_t are params_0 then, and steps 0.
      adapter: of the first layer, where that was trained alone; merged into params_t.
      recipe: of a training in practice; None where a schedule was followed.
    """

    model: MLP
    params_0: Params
    params_t: Params
    image_shape: tuple[int, int, int]
    dynamics: Dynamics
    duals: Float[np.ndarray, "n c"] | None
    loss: float
    steps: int | None
    reached: bool | None = None
    centre: Float[np.ndarray, "h w d"] | None = None
    is_logistic: bool = False
    objective: Loss = "mse"
    gradient: Params | None = None
    adapter: Adapter | None = None
    recipe: Recipe | None = None

    @property
    def evidence(self) -> str:
        """What is shared: "weights", "gradient" or "adapter"."""
        shared = {"adapter": self.adapter, "gradient": self.gradient}
        return next((k for k, v in shared.items() if v is not None), "weights")


def train(
    x_train: Float[Array | np.ndarray, "n h w d"],
    y_train: Float[Array | np.ndarray, "n c"],
    *,
    key: Array,
    width: int = 4096,
    depth: int = 2,
    parametrization: Parametrization = "standard",
    dynamics: Dynamics = "linearized",
    schedule: Schedule = "flow",
    stop_loss: float = 1e-10,
    max_steps: int = 1_000_000,
    recipe: Recipe | None = None,
    dtype: Any = None,
    stage: Stage = straight,
) -> Victim:
    """Trains an MLP on images, as the binary `experiments.reconstruct` does.

    Args:
      x_train: images less their mean (intensity), as `data.load` gives them.
      y_train: targets, one column per output.
      key: typed key of the initial weights.
      width: units of every hidden layer.
      depth: hidden layers.
      parametrization: of the network: Flax's default, or the NTK parametrisation.
      dynamics: train the network, or its first-order Taylor model in closed form.
      schedule: gradient flow ("standard": heavy ball close to it); a heavy ball in a
        fifteenth of those steps, which rounds a network of float32 the less; or the
        published step size, N * 2e-7 on the mean loss. Momentum is 0.9.
      stop_loss: mean of (f - y)^2 / 2 at which training ends; a greater one is an early
        stop.
      max_steps: limit of iterative training.
      recipe: loss, batches and optimizer of training in practice, in place of the
        schedule, under standard dynamics; None follows the schedule.
      dtype: of everything; None is that of the images.
      stage: runs the training, as "victim", "train_coordinates" or "train".

    Raises:
      ValueError: lengths differ, a number is out of range, images or targets hold a
        NaN, the loss becomes one, or a recipe does not fit.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train, digits.y_train, width=64, key=key
      ... )
      >>> victim.loss < 1e-9
      True
    """
    _checks.typed_key(key=key)
    _checks.same_length(x_train=x_train, y_train=y_train)
    _checks.at_least(1, num_images=len(x_train), width=width, depth=depth)
    x, y = jnp.asarray(x_train, dtype), jnp.asarray(y_train, dtype)
    model = MLP((width,) * depth, y.shape[1], parametrization=parametrization)
    params_0 = model.init_params(key, x.shape[1:], x.dtype)
    if recipe is not None:
        _checks.one_of(("linearized", "standard"), dynamics=dynamics)
        if dynamics == "linearized":
            raise ValueError(
                "dynamics=linearized: a recipe trains the network itself, step by "
                "step; use dynamics=standard."
            )
        given = {"stop_loss": stop_loss, "max_steps": max_steps, "stage": stage}
        return _by_recipe(model, params_0, x, y, recipe, key, **given)
    return fit(
        model,
        params_0,
        x,
        y,
        dynamics=dynamics,
        schedule=schedule,
        stop_loss=stop_loss,
        max_steps=max_steps,
        stage=stage,
    )


def fit(
    model: MLP,
    params_0: Params,
    x_train: Float[Array, "n h w d"],
    y_train: Float[Array, "n c"],
    *,
    dynamics: Dynamics = "linearized",
    schedule: Schedule = "flow",
    stop_loss: float = 1e-10,
    max_steps: int = 1_000_000,
    fraction: float | None = None,
    stage: Stage = straight,
    name: str | None = None,
) -> Victim:
    """Trains a network from given weights; see `train`.

    Args:
      model: the network.
      params_0: its weights before training.
      x_train: images.
      y_train: targets, one column per output.
      dynamics: see `train`.
      schedule: see `train`.
      stop_loss: see `train`.
      max_steps: see `train`.
      fraction: step size of standard dynamics, in 1 / largest eigenvalue of the kernel;
        None is 0.02 of flow, 0.3 of heavy_ball.
      stage: see `train`.
      name: of the stage; None is "victim" or "train_coordinates".

    Raises:
      ValueError: see `train`.
    """
    _checks.one_of(("linearized", "standard"), dynamics=dynamics)
    _checks.one_of(("flow", "heavy_ball", "paper"), schedule=schedule)
    _checks.positive(stop_loss=stop_loss)
    _checks.at_least(1, max_steps=max_steps)
    _checks.same_length(x_train=x_train, y_train=y_train)
    _checks.finite_data(x_train=x_train, y_train=y_train)
    _, height, width, depth = x_train.shape
    problem = (model, params_0, x_train, y_train)
    if dynamics == "linearized":

        def closed_form(state, done, callback):
            if not done:
                state = _linearized(*problem, schedule, stop_loss, max_steps)
                callback(1, state, {})
            return state

        start = jax.tree.map(jnp.zeros_like, (params_0, y_train, y_train[0, 0]))
        params, duals, loss = stage(name or "victim", start, closed_form, 1).result
        duals, steps = np.asarray(duals), None
    else:
        params, steps = _standard(
            *problem, schedule, stop_loss, max_steps, fraction, stage, name
        )
        # Of the network itself: in the images' coordinates it was rounded otherwise.
        loss = 0.5 * jnp.mean((model.apply_fn(params, x_train) - y_train) ** 2)
        duals = None
    return Victim(
        model=model,
        params_0=params_0,
        params_t=params,
        image_shape=(height, width, depth),
        dynamics=dynamics,
        duals=duals,
        loss=float(loss),
        steps=steps,
        # However the weights were found.
        reached=full_batch_training.reached(float(loss), stop_loss, y_train),
    )


def _by_recipe(
    model, params_0, x, y, recipe, key, *, stop_loss, max_steps, stage
) -> Victim:
    """Trains by a recipe, whose order of images has a key of its own."""
    _, height, width, channels = x.shape
    recipes.takes(recipe.loss, y.shape[1])
    order = jax.random.fold_in(key, 1)

    def go(state, done, callback):
        del done  # the state knows
        given = {"stop_loss": stop_loss, "max_steps": max_steps}
        return recipes.train(
            *(model, params_0, x, y, recipe),
            key=order,
            state=state,
            callback=callback,
            **given,
        )

    start = recipes.init(model, params_0, x, y, recipe)
    steps = min(recipe.num_epochs * recipes.steps_per_epoch(recipe, len(x)), max_steps)
    state = stage("train", start, go, steps).result
    loss = float(recipes.mean_loss(model, state.params, x, y, loss=recipe.loss))
    return Victim(
        model=model,
        params_0=params_0,
        params_t=state.params,
        image_shape=(height, width, channels),
        dynamics="standard",
        duals=None,
        loss=loss,
        steps=int(state.steps),
        reached=True if loss < stop_loss else None,
        objective=recipe.loss,
        recipe=recipe,
    )


def one_gradient(
    x_train: Float[Array | np.ndarray, "n h w d"],
    y_train: Float[Array | np.ndarray, "n c"],
    *,
    key: Array,
    width: int = 4096,
    depth: int = 2,
    parametrization: Parametrization = "standard",
    loss: Loss = "mse",
    dtype: Any = None,
    stage: Stage = straight,
) -> Victim:
    """Returns an untrained MLP and the gradient of its loss, as a client shares it.

    Args:
      x_train: images: the batch.
      y_train: targets, one column per output.
      key: see `train`, as width, depth, parametrization and dtype.
      width: of every hidden layer.
      depth: hidden layers.
      parametrization: of the network.
      loss: mean over the images, see `training.recipe`.
      dtype: of everything.
      stage: counts the time; nothing is stored.

    Raises:
      ValueError: see `train`.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = ntk_privacy.training.victim.one_gradient(
      ...     digits.x_train, digits.y_train, width=64, key=key
      ... )
      >>> victim.steps, victim.gradient["Dense_0"]["kernel"].shape
      (0, (64, 64))
    """
    _checks.typed_key(key=key)
    _checks.same_length(x_train=x_train, y_train=y_train)
    _checks.at_least(1, num_images=len(x_train), width=width, depth=depth)
    _checks.finite_data(x_train=x_train, y_train=y_train)
    x, y = jnp.asarray(x_train, dtype), jnp.asarray(y_train, dtype)
    recipes.takes(loss, y.shape[1])
    model = MLP((width,) * depth, y.shape[1], parametrization=parametrization)
    _, *shape = x.shape
    params = model.init_params(key, shape, x.dtype)

    def make():
        return _loss_and_gradient(model, loss, params, x, y)

    value, gradient = resume.timed(stage, "gradient", make)
    return Victim(
        model=model,
        params_0=params,
        params_t=params,
        image_shape=(shape[0], shape[1], shape[2]),
        dynamics="linearized",
        duals=None,
        loss=float(value),
        steps=0,
        objective=loss,
        gradient=gradient,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss_and_gradient(model, loss, params, x, y):
    def mean(params):
        return recipes.mean_loss(model, params, x, y, loss=loss)

    return jax.value_and_grad(mean)(params)


@functools.partial(jax.jit, static_argnums=0)
def _kernel_and_outputs(model, params_0, x):
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    return kernel, model.apply_fn(params_0, x)


def _linearized(model, params_0, x, y, schedule, stop_loss, max_steps):
    """Returns parameters, duals and loss of the Taylor model at `stop_loss`."""
    kernel, before = _kernel_and_outputs(model, params_0, x)
    spectrum = linearized.decompose(kernel, before, y)
    if schedule == "flow":
        gain = linearized.gradient_flow(linearized.time_at_loss(spectrum, stop_loss))
    else:
        rate = len(x) * 2e-7 / y.size
        if schedule == "heavy_ball":
            rate = _PACES[schedule] / float(spectrum.eigenvalues[-1])
        pace = {"learning_rate": rate, "momentum": _MOMENTUM}
        steps = linearized.steps_at_loss(
            spectrum, stop_loss, max_steps=max_steps, **pace
        )
        gain = linearized.gradient_descent(steps, **pace)
    duals = linearized.duals(spectrum, gain)
    params = linearized.params_at(model.apply_fn, params_0, x, duals)
    final = linearized.apply_linearized(model.apply_fn, params_0, params, x)
    return params, duals, 0.5 * jnp.mean((final - y) ** 2)


def _standard(
    model, params_0, x, y, schedule, stop_loss, max_steps, fraction, stage, name
):
    """Returns parameters and steps of training the network itself."""
    # Fewer numbers to move at every step: the first layer moves in the images' span.
    small = subspace.to_coordinates(params_0, x, parametrization=model.parametrization)
    problem = (model.apply_fn, small.params, small.images, y)
    published = full_batch_training.paper_optimizer(len(x))

    def go(state, done, callback):
        del done  # the state knows
        if int(state.steps) >= max_steps or float(state.loss) < stop_loss:
            return state
        optimizer = published
        if schedule != "paper":
            pace = _PACES[schedule] if fraction is None else fraction
            optimizer = _paced(model, params_0, x, y.size, pace)
        return full_batch_training.full_batch(
            *problem, optimizer=optimizer, max_steps=max_steps, stop_loss=stop_loss,
            chunk=20, state=state, callback=callback,
        ).state  # fmt: skip

    # The state of both optimizers is one: it does not hold the step size.
    start = full_batch_training.init(*problem, optimizer=published)
    state = stage(name or "train_coordinates", start, go, AtMost(max_steps)).result
    return small.restore(state.params), int(state.steps)


def _paced(model, params_0, x, num_targets, fraction) -> optax.GradientTransformation:
    """Heavy ball at a pace that the kernel sets."""
    kernel, _ = _kernel_and_outputs(model, params_0, x)
    square = kernel.transpose(0, 2, 1, 3).reshape(num_targets, num_targets)
    largest = float(jnp.linalg.eigvalsh(square)[-1])
    return full_batch_training.stable_optimizer(largest, num_targets, fraction=fraction)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(model, is_linearized, params_0, params_t, images):
    if is_linearized:
        return linearized.apply_linearized(model.apply_fn, params_0, params_t, images)
    return model.apply_fn(params_t, images)


def outputs(
    victim: Victim, images: Float[Array | np.ndarray, "n h w d"]
) -> Float[Array, "n c"]:
    """Returns what the trained network makes of images.

    Args:
      victim: trained.
      images: preprocessed like the training set; `centre` is subtracted here.
    """
    if victim.centre is not None:
        images = images - victim.centre
    return _outputs(
        victim.model,
        victim.dynamics == "linearized",
        victim.params_0,
        victim.params_t,
        jnp.asarray(images, jax.tree.leaves(victim.params_0)[0].dtype),
    )
