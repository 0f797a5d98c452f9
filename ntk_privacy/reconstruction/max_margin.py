r"""The max-margin attack: training images from the weights after training alone.

Gradient flow on the logistic loss takes a homogeneous network, in direction, to a KKT
point of the max-margin problem,
$\theta = \sum_i \lambda_i y_i \nabla_\theta f(x_i)$ with $\lambda_i \ge 0$. Images and
multipliers that satisfy it are looked for by gradient descent.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758) and their released settings. The
victim has biases in its first layer only, which keeps it homogeneous, and a very small
first layer at initialisation, which takes it away from the kernel regime.

The loss is that of the paper; its evaluation is not. With $a_l$, $h_l$ and $b_l$ the
input, the output and the returning signal of layer l (weighted by $\lambda_j y_j / m$),
$\langle \theta, \sum_j g_j \rangle = \sum_{l,j} h_l(x_j) \cdot b_l(x_j)$ costs nothing
beyond the forward and the backward pass, and $\|\sum_j g_j\|^2$ is taken from Gram
products or from the summed gradient, per layer, whichever is smaller.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _loop, _tree
from ntk_privacy._linalg import matmul
from ntk_privacy._types import Callback, Params
from ntk_privacy.kernels import structured
from ntk_privacy.models import fitting
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import max_margin_verdict
from ntk_privacy.reconstruction.max_margin_settings import RELEASED as RELEASED
from ntk_privacy.reconstruction.max_margin_settings import Settings as Settings
from ntk_privacy.reconstruction.max_margin_settings import (
    random_settings as random_settings,
)
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.training import logistic
from ntk_privacy.training.logistic import init_params as init_params
from ntk_privacy.training.logistic import network as network
from ntk_privacy.training.logistic import preprocess as preprocess
from ntk_privacy.training.logistic import train as train

__all__ = [
    "RELEASED",
    "Attack",
    "AttackState",
    "Reconstruction",
    "Settings",
    "init_params",
    "network",
    "objective",
    "prepare",
    "preprocess",
    "random_settings",
    "reconstruct",
    "relu_and_slope",
    "run",
    "stationarity",
    "train",
]


@jax.custom_jvp
def relu_and_slope(
    x: Float[Array, "..."], sharpness: Float[Array, ""]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns ReLU, exact, and what stands in for its derivative: sigmoid(sharpness x).

    Derivatives of both follow from that slope; the sharpness is a constant for them.
    """
    return jax.nn.relu(x), jax.nn.sigmoid(sharpness * x)


@relu_and_slope.defjvp
def _relu_and_slope_jvp(primals, tangents):
    x, sharpness = primals
    value, slope = relu_and_slope(x, sharpness)
    dx = tangents[0]
    return (value, slope), (slope * dx, (sharpness * slope * (1 - slope)) * dx)


def stationarity(
    model: MLP,
    params: Params,
    images: Float[Array, "m ..."],
    weights: Float[Array, " m"],
    *,
    squared_norm: Float[Array, ""],
    sharpness: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Returns $\|\theta - \nabla_\theta \sum_j w_j f(x_j)\|^2$.

    Args:
      model: the MLP; one output.
      params: theta.
      images: candidates.
      weights: w, that is lambda_j y_j / m.
      squared_norm: of theta: a constant of the attack.
      sharpness: of the ReLU's derivative.
    """
    stack = structured.layers(model, params)
    inputs, outputs, slopes = [], [], []
    a = images.reshape(images.shape[0], -1)
    for i, layer in enumerate(stack):
        a = layer.scale * a if layer.scale != 1.0 else a
        h = matmul(a, layer.kernel)
        if layer.bias is not None:
            h = h + layer.bias[None, :]
        inputs.append(a)
        outputs.append(h)
        if i < len(stack) - 1:
            a, slope = relu_and_slope(h, sharpness)
            slopes.append(slope)
    signals = structured.backward(model, params, slopes, weights[:, None])
    total = squared_norm
    for layer, a, h, b in zip(stack, inputs, outputs, signals, strict=True):
        (m, d), k = a.shape, b.shape[1]
        if m * (d + k) < d * k:
            gram = matmul(a, a.T) + (0.0 if layer.bias is None else 1.0)
            total += jnp.sum(gram * matmul(b, b.T))
        else:
            total += jnp.sum(matmul(a.T, b) ** 2)
            if layer.bias is not None:
                total += jnp.sum(jnp.sum(b, axis=0) ** 2)
        # theta is its own change: its product with the gradient is that with h.
        total -= 2 * jnp.sum(h * b)
    return total


class AttackState(NamedTuple):
    """What the attack resumes from: the variables and their velocities."""

    images: Float[Array, "m h w d"]
    lambdas: Float[Array, " m"]
    velocities: tuple[Float[Array, "m h w d"], Float[Array, " m"]]


class Reconstruction(NamedTuple):
    """What a search found, and whether that is anything.

    Attributes:
      images: candidates, less the mean image like the training set.
      lambdas: their multipliers times m, as the paper scales them.
      labels: -1 or +1, fixed.
      losses: before every epoch of this call.
      state: to continue from.
      nonfinite: the search overflowed; its last finite state is returned.
      verdict: what the evidence says of all images together.
      contributions: of each image to the share of the weights that is explained.
    """

    images: Float[Array, "m h w d"]
    lambdas: Float[Array, " m"]
    labels: Float[Array, " m"]
    losses: Float[Array, " epochs"]
    state: AttackState
    nonfinite: bool
    verdict: Verdict
    contributions: Float[np.ndarray, " m"]


class _Problem(NamedTuple):
    """Constants of one attack; settings too, so that runs share one program."""

    params: Params
    squared_norm: Array
    labels: Array
    settings: dict[str, Array]


def objective(
    model: MLP,
    params: Params,
    images: Float[Array, "m h w d"],
    lambdas: Float[Array, " m"],
    labels: Float[Array, " m"],
    *,
    squared_norm: Float[Array, ""],
    sharpness: Float[Array, ""],
    lambda_min: Float[Array, ""],
    lambda_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the loss of the attack, and its stationarity part.

    The other parts penalise pixels outside [-1, 1] and multipliers below lambda_min.

    Args:
      model: the MLP; one output.
      params: of the trained network.
      images: candidates.
      lambdas: their multipliers, times m.
      labels: -1 or +1.
      squared_norm: of the parameters.
      sharpness: of the ReLU's derivative.
      lambda_min: see `Settings`.
      lambda_weight: see `Settings`.
    """
    residual = stationarity(
        model,
        params,
        images,
        lambdas * labels / len(labels),
        squared_norm=squared_norm,
        sharpness=sharpness,
    )
    outside = jax.nn.relu(images - 1) ** 2 + jax.nn.relu(-1 - images) ** 2
    small = jax.nn.relu(lambda_min - lambdas) ** 2
    return residual + jnp.sum(outside) + lambda_weight * jnp.sum(small), residual


@dataclasses.dataclass(frozen=True)
class _Step:
    """One epoch; equal steps hash alike, so the loop is traced once per shape."""

    model: MLP

    def __call__(self, state: AttackState, epoch, problem: _Problem):
        del epoch
        s = problem.settings

        def loss_fn(images, lambdas):
            return objective(
                self.model,
                problem.params,
                images,
                lambdas,
                problem.labels,
                squared_norm=problem.squared_norm,
                sharpness=s["sharpness"],
                lambda_min=s["lambda_min"],
                lambda_weight=s["lambda_weight"],
            )

        (loss, residual), grads = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
            state.images, state.lambdas
        )
        moved = tuple(
            s["momentum"] * v + g for v, g in zip(state.velocities, grads, strict=True)
        )
        images = state.images - s["image_learning_rate"] * moved[0]
        lambdas = state.lambdas - s["lambda_learning_rate"] * moved[1]
        new = AttackState(images, lambdas, moved)
        # The last finite state is what a failed run leaves behind.
        ok = jnp.isfinite(loss) & jnp.isfinite(jnp.sum(images) + jnp.sum(lambdas))
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state), {
            "loss": jnp.where(ok, loss, jnp.nan),
            "stationarity": residual,
        }


class Attack(NamedTuple):
    """A search made ready by `prepare`: its step, its constants, its first state."""

    step: _Step
    problem: _Problem
    state: AttackState
    num_epochs: int


def prepare(
    model: MLP,
    params: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int,
    settings: Settings,
) -> Attack:
    """Checks the arguments of `reconstruct` and returns the search, not yet run.

    Args and Raises: see `reconstruct`.
    """
    logistic.single_output(model)
    params = fitting.mlp_params(model, params, image_shape=image_shape)
    _checks.finite(params=params)
    if num_images < 2 or num_images % 2:
        raise ValueError(
            f"num_images={num_images} must be even and at least 2: half of the "
            "candidates have the label -1, half +1."
        )
    dtype = params["Dense_0"]["kernel"].dtype
    key_images, key_lambdas = jax.random.split(key)
    noise = jax.random.normal(key_images, (num_images, *image_shape), dtype)
    images = settings.init_scale * noise
    lambdas = jax.random.uniform(key_lambdas, (num_images,), dtype)
    state = AttackState(
        images, lambdas, (jnp.zeros_like(images), jnp.zeros_like(lambdas))
    )
    half = jnp.ones(num_images // 2, dtype)
    numbers = dataclasses.asdict(settings)
    num_epochs = numbers.pop("num_epochs")
    problem = _Problem(
        params=params,
        squared_norm=_tree.squared_norm(params),
        labels=jnp.concatenate([-half, half]),
        settings={name: jnp.asarray(value, dtype) for name, value in numbers.items()},
    )
    return Attack(_Step(model), problem, state, num_epochs)


def run(
    attack: Attack,
    *,
    first_epoch: int = 0,
    chunk: int = 500,
    callback: Callback | None = None,
) -> Reconstruction:
    """Runs a search from `attack.state` to its last epoch.

    Args:
      attack: from `prepare`; replace its state to continue an earlier run.
      first_epoch: the number of epochs that the state has behind it.
      chunk: epochs between calls of `callback`.
      callback: `(epochs, state, metrics)` after each chunk.
    """
    losses = []

    def after_chunk(done, state, metrics):
        losses.append(np.asarray(metrics["loss"]))
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        return stop or not np.isfinite(losses[-1][-1])

    state, _ = _loop.run(
        attack.step,
        attack.state,
        attack.problem,
        num_steps=attack.num_epochs,
        first_step=first_epoch,
        chunk=chunk,
        callback=after_chunk,
    )
    history = np.concatenate(losses) if losses else np.zeros(0, state.images.dtype)
    lost = not bool(np.isfinite(history).all() and jnp.isfinite(state.images).all())
    problem, found = attack.problem, None
    if not lost:
        found = max_margin_verdict.measure(
            attack.step.model, problem.params, state.images, problem.labels
        )
    return Reconstruction(
        images=state.images,
        lambdas=state.lambdas,
        labels=problem.labels,
        losses=jnp.asarray(history),
        state=state,
        nonfinite=not bool(np.isfinite(history).all()),
        verdict=max_margin_verdict.judge(found),
        contributions=(
            np.zeros(len(problem.labels)) if found is None else found.contributions
        ),
    )


def reconstruct(
    model: MLP,
    params: Params,
    *,
    key: Array,
    image_shape: tuple[int, int, int],
    num_images: int,
    settings: Settings,
    chunk: int = 500,
    callback: Callback | None = None,
) -> Reconstruction:
    r"""Recovers training images near the margin from a trained network's parameters.

    Minimises $\|\theta - \frac1m \sum_j \lambda_j y_j \nabla_\theta f(x_j)\|^2$ plus
    penalties for pixels outside [-1, 1] and for small multipliers, by gradient descent
    with momentum (arXiv:2206.07758, section 5). The initial parameters are not needed.

    Args:
      model: the network; one output, homogeneous in its parameters (`network`).
      params: after training on the logistic loss (`train`).
      key: typed key; fixes the initial images and multipliers.
      image_shape: (height, width, depth) in pixels.
      num_images: candidates m, even, usually twice the training set.
      settings: one of `RELEASED`, from `random_settings`, or your own. The released
        rates belong to m = 1000 candidates; fewer need lower ones, since the gradient
        of each candidate grows as 1/m.
      chunk: epochs between calls of `callback`.
      callback: `(epochs, state, metrics)` after each chunk. To resume, give a saved
        state to `prepare(...)._replace(state=...)` and call `run` with `first_epoch`.

    Raises:
      ValueError: several outputs, parameters that hold a NaN or do not fit the images,
        or an odd number of candidates.
    """
    attack = prepare(
        model,
        params,
        key=key,
        image_shape=image_shape,
        num_images=num_images,
        settings=settings,
    )
    return run(attack, chunk=chunk, callback=callback)
