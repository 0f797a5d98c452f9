r"""Search of unrolled training: images on which training ends at the weights.

Where features move and no algebra holds (Adam, convolutions first, normalisation before
the activation), the training itself is the equation: with $T$ the training of the
initial network on images x, what is looked for is the minimum over x of

$$|T(\theta_0, x) - \theta_T|^2 / |\theta_T - \theta_0|^2,$$

by derivatives through all steps, of which blocks are computed again on the way back.
The aim is that of SimuDy (ICLR 2025); the search is this project's own:

* With ReLUs the derivative knows of no gate that would flip, and the search stalls far
  from the images. So training is simulated with softplus in the place of ReLU, sharper
  from stage to stage, and each stage is minimised by L-BFGS.
* Candidates have weights in the loss of the training, which are searched for too: two
  candidates on one image give way to each other. Between stages one that has lost its
  weight joins the heaviest of its label, which stands for two images, and the two part.

Nothing is certified; the verdict compares with sets of other images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ntk_privacy import _checks, _linalg, _loop, _tree
from ntk_privacy._types import ApplyFn, Callback, Params
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import result
from ntk_privacy.reconstruction.simulated import Training, misfit, simulate
from ntk_privacy.reconstruction.unrolled_verdict import NUM_CONTROLS, judge
from ntk_privacy.training.recipe import takes

__all__ = ["DEFAULT", "Search", "Settings", "State", "prepare", "run"]

_CONTROL_SPREAD = 0.25
_LIGHT, _HEAVY = 0.3, 1.5  # weights, where 1 is that of one image
_APART = 0.02  # of the range, that two candidates part by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the search.

    Attributes:
      sharpnesses: of the softplus that stands for ReLU, one a stage, rising.
      num_steps: of L-BFGS, each stage.
      memory: of L-BFGS, in steps.
      box_weight: of the mean squared distance of pixels from their range.
      spread: deviation of the first candidates from the middle of the range, over the
        range.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> from ntk_privacy.reconstruction import unrolled
      >>> unrolled.Settings(sharpnesses=(8.0, 64.0), num_steps=40).memory
      50
    """

    sharpnesses: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    num_steps: int = 120
    memory: int = 50
    box_weight: float = 10.0
    spread: float = 0.1

    def __post_init__(self):
        _checks.at_least(1, num_steps=self.num_steps, memory=self.memory)
        _checks.positive(box_weight=self.box_weight, spread=self.spread)
        if not self.sharpnesses:
            raise ValueError(
                "sharpnesses is empty: give one at least, such as (64.0,)."
            )
        for each in self.sharpnesses:
            _checks.positive(sharpnesses=each)


DEFAULT = Settings()
"""Seven stages."""


class State(NamedTuple):
    """What the search resumes from.

    Attributes:
      images: candidates.
      scales: logarithms of their weights in the loss, up to a constant.
      opt_state: of L-BFGS.
    """

    images: Float[Array, "m h w d"]
    scales: Float[Array, " m"]
    opt_state: Any


class _Problem(NamedTuple):
    params_0: Params
    params_t: Params
    labels: Array
    bounds: tuple[Array, Array]
    sharpnesses: Array
    noise: Array


def _parted(images, scales, labels, noise) -> tuple[Array, Array]:
    """Moves candidates that weigh next to nothing to the heaviest of their label.

    Args:
      images: candidates.
      scales: logarithms of their weights, up to a constant.
      labels: theirs.
      noise: what two of them part by.
    """
    order = jnp.argsort(scales)

    def one(k, carry):
        images, scales = carry
        light = order[k]
        weights = len(scales) * jax.nn.softmax(scales)
        kin = jnp.all(labels == labels[light][None], axis=1)
        heavy = jnp.argmax(jnp.where(kin, weights, -1))
        joins = (weights[light] < _LIGHT) & (weights[heavy] > _HEAVY)
        both = jnp.stack([light, heavy])
        sign = jnp.asarray([1, -1], images.dtype).reshape(2, 1, 1, 1)
        there = images[heavy][None] + sign * noise[light][None]
        half = jnp.broadcast_to(scales[heavy] - jnp.log(2.0).astype(scales.dtype), (2,))
        return (
            jnp.where(joins, images.at[both].set(there), images),
            jnp.where(joins, scales.at[both].set(half), scales),
        )

    return jax.lax.fori_loop(0, len(scales), one, (images, scales))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of L-BFGS; equal steps hash alike, so the loop is traced once."""

    apply_fn: Callable[..., Array]
    training: Training
    settings: Settings
    smoothed: bool

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        return optax.lbfgs(memory_size=self.settings.memory)

    @_linalg.full_precision
    def value(self, variables, sharpness, problem: _Problem):
        images, scales = variables
        end = simulate(
            self.apply_fn,
            self.training,
            problem.params_0,
            images,
            problem.labels,
            weights=jax.nn.softmax(scales),
            sharpness=sharpness if self.smoothed else None,
        )
        low, high = problem.bounds
        outside = jax.nn.relu(images - high) ** 2 + jax.nn.relu(low - images) ** 2
        box = self.settings.box_weight * jnp.mean(outside)
        return misfit(end, problem.params_0, problem.params_t) + box

    def __call__(self, state: State, step, problem: _Problem):
        sharpness = problem.sharpnesses[step // self.settings.num_steps]
        begins = step % self.settings.num_steps == 0

        def value_fn(variables):
            return self.value(variables, sharpness, problem)

        old = (state.images, state.scales)
        parted = _parted(*old, problem.labels, problem.noise)
        variables = jax.tree.map(lambda a, b: jnp.where(begins, a, b), parted, old)
        optimizer = self.optimizer()
        with jax.numpy_dtype_promotion("standard"):
            # What it remembers is of a network of another sharpness.
            opt_state = jax.tree.map(
                lambda new, old: jnp.where(begins, new, old),
                optimizer.init(variables),
                state.opt_state,
            )
            value, grad = optax.value_and_grad_from_state(value_fn)(
                variables, state=opt_state
            )
            updates, opt_state = optimizer.update(
                grad, opt_state, variables, value=value, grad=grad, value_fn=value_fn
            )
        images, scales = jax.tree.map(jnp.add, variables, updates)
        new = State(images, scales, opt_state)
        # The last finite state is what a search that is lost leaves behind.
        fine = jnp.isfinite(value) & jnp.isfinite(_tree.largest((images, scales)))
        kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)
        return kept, {"loss": jnp.where(fine, value, jnp.nan)}


class Search(NamedTuple):
    """A search that was prepared, or is to go on.

    Attributes:
      state: where it is.
      step: one step of it.
      problem: weights, labels and bounds.
      key: of the sets of other images that the verdict compares with.
      num_steps: of all stages.
    """

    state: State
    step: _Step
    problem: _Problem
    key: Array
    num_steps: int


def prepare(
    network: MLP | ApplyFn,
    params_0: Params,
    params_t: Params,
    *,
    training: Training,
    labels: Float[Array | np.ndarray, "m c"],
    key: Array,
    image_shape: tuple[int, int, int],
    bounds: tuple[Any, Any],
    starts: Float[Array | np.ndarray, "m h w d"] | None = None,
    settings: Settings = DEFAULT,
) -> Search:
    """Returns a search that `run` goes on with; see `unrolled.reconstruct`.

    Args:
      network: see `unrolled.reconstruct`, as all others.
      params_0: weights before training.
      params_t: weights after it.
      training: how it went.
      labels: of the candidates.
      key: typed key.
      image_shape: (height, width, depth) in pixels.
      bounds: smallest and largest intensity.
      starts: first candidates.
      settings: of the search.

    Raises:
      ValueError: see `unrolled.reconstruct`.

    Example:
      >>> import jax, optax
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import unrolled
      >>> net, y = MLP((4,)), jax.numpy.asarray([[1.0], [-1.0]])
      >>> before = net.init_params(jax.random.key(0), (2, 2, 1))
      >>> after = jax.tree.map(lambda leaf: leaf + 0.1, before)
      >>> training = unrolled.Training(optimizer=optax.sgd(0.1), num_steps=2)
      >>> search = unrolled.prepare(
      ...     net, before, after, training=training, labels=y, key=jax.random.key(1),
      ...     image_shape=(2, 2, 1), bounds=(0.0, 1.0))
      >>> search.state.images.shape, search.num_steps
      ((2, 2, 2, 1), 840)
    """
    _checks.typed_key(key=key)
    _checks.same_structure("params_0", params_0, "params_t", params_t)
    _checks.finite(params_0=params_0, params_t=params_t)
    _checks.at_least(1, num_labels=len(labels))
    _checks.finite_data(labels=labels)
    takes(training.loss, labels.shape[1])
    params_0, params_t = (_tree.single(part) for part in (params_0, params_t))
    if not float(_tree.squared_norm(_tree.sub(params_t, params_0))):
        raise ValueError("params_t equals params_0: no training shows in it.")
    dtype = jax.tree.leaves(params_0)[0].dtype
    low, high = (
        jnp.broadcast_to(jnp.asarray(b, dtype), image_shape)[None] for b in bounds
    )
    if not bool(jnp.all(low < high)):
        raise ValueError(
            f"bounds={bounds}: give the smallest and the largest intensity, in order."
        )
    m = len(labels)
    key_controls, key_noise = (jax.random.fold_in(key, k) for k in (1, 2))
    drawn = _drawn(key, (m, *image_shape), low, high, settings.spread)
    if starts is not None:
        if starts.shape != drawn.shape:
            raise ValueError(
                f"starts have shape {starts.shape}, the candidates {drawn.shape}: give "
                "one a label."
            )
        drawn = jnp.asarray(starts, dtype)
    smoothed = isinstance(network, MLP)
    stages = settings.sharpnesses if smoothed else settings.sharpnesses[-1:]
    problem = _Problem(
        params_0,
        params_t,
        jnp.asarray(labels, dtype),
        (low, high),
        jnp.asarray(stages, dtype),
        _APART * (high - low) * jax.random.normal(key_noise, drawn.shape, dtype),
    )
    apply_fn = network.apply_fn if isinstance(network, MLP) else network
    step = _Step(apply_fn, training, settings, smoothed)
    variables = drawn, jnp.zeros(m, dtype)
    _check_derivative(step, variables, problem)
    state = State(*variables, step.optimizer().init(variables))
    return Search(state, step, problem, key_controls, len(stages) * settings.num_steps)


def run(
    search: Search,
    *,
    chunk: int = 10,
    first_step: int = 0,
    callback: Callback | None = None,
) -> result.Reconstruction:
    """Runs a search to its end; see `unrolled.reconstruct`.

    Args:
      search: of `prepare`; to go on, `search._replace(state=...)`.
      chunk: steps between calls of `callback`.
      first_step: steps that the state has behind it.
      callback: `(steps, state, metrics)` after each chunk.

    Raises:
      ValueError: a number out of range.
    """
    _checks.at_least(1, chunk=chunk)
    _checks.at_least(0, first_step=first_step)
    step, problem, losses = search.step, search.problem, []

    def after_chunk(done, state, metrics):
        losses.append(np.asarray(metrics["loss"]))
        return _loop.asks_to_stop(callback, done, state, metrics)

    state, _ = _loop.run(
        step, search.state, problem, num_steps=search.num_steps,
        first_step=first_step, chunk=chunk, callback=after_chunk,
    )  # fmt: skip
    (low, high), shape = problem.bounds, state.images.shape
    weights = jax.nn.softmax(state.scales)
    sets = [state.images] + [
        _drawn(each, shape, low, high, _CONTROL_SPREAD)
        for each in jax.random.split(search.key, NUM_CONTROLS)
    ]
    left, *others = np.asarray(_left(step, jnp.stack(sets), weights, problem)).tolist()
    lost = bool(losses) and not np.isfinite(np.concatenate(losses)).all()
    m = len(state.images)
    return result.Reconstruction(
        images=np.asarray(jnp.clip(state.images, low, high)),
        duals=np.zeros((1, *problem.labels.shape)),
        losses=np.concatenate(losses) if losses else np.zeros(0),
        verdict=judge(
            left,
            np.nanmin([np.inf, *others]),
            num_unknowns=m * (low.size + 1),
            num_weights=_tree.size(problem.params_t),
        ),
        sources=("unrolled",) * m,
        nonfinite=lost or not np.isfinite(left),
        estimated_num_images=None,
        replay_misses=(float(np.sqrt(left)),),
        kept={"weights": np.asarray(weights) * m},
        **result.uncertain(m),
    )


def _drawn(key, shape, low, high, spread) -> Float[Array, "m h w d"]:
    """Random images about the middle of the range, within it."""
    noise = jax.random.normal(key, shape, low.dtype)
    return jnp.clip((low + high) / 2 + spread * (high - low) * noise, low, high)


@functools.partial(jax.jit, static_argnums=0)
@_linalg.full_precision
def _left(step: _Step, sets, weights, problem: _Problem) -> Float[Array, " s"]:
    """The misfits of trainings on sets of images, with the network as it is."""

    def one(images):
        end = simulate(
            step.apply_fn,
            step.training,
            problem.params_0,
            images,
            problem.labels,
            weights=weights,
        )
        return misfit(end, problem.params_0, problem.params_t)

    return jax.lax.map(one, sets)


def _check_derivative(step: _Step, variables, problem: _Problem) -> None:
    """Raises ValueError where the derivative through the training is not finite."""
    value, grads = jax.jit(jax.value_and_grad(step.value))(
        variables, problem.sharpnesses[0], problem
    )
    if not np.isfinite(float(value)):
        raise ValueError(
            f"The simulated training diverges (misfit {float(value)}): check the "
            "learning rate of training.optimizer."
        )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)):
        raise ValueError(
            "The derivative through the training is not finite: give Adam "
            "eps_root=1e-14, or another optimizer whose derivative is finite where "
            "gradients are zero."
        )
