r"""The max-margin attack: training images from the weights after training alone.

Gradient flow on the logistic loss takes a homogeneous network, in direction, to a KKT
point of the max-margin problem,
$\theta = \sum_i \lambda_i y_i \nabla_\theta f(x_i)$ with $\lambda_i \ge 0$. Images and
multipliers that satisfy it are looked for by gradient descent.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758) and their released settings. The
victim has biases in its first layer only, which keeps it homogeneous, and a very small
first layer at initialisation, which takes it away from the kernel regime.

The loss is that of the paper; its evaluation is not (`max_margin_loss`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _loop, _tree
from ntk_privacy._types import Callback, Params
from ntk_privacy.method import Method, field
from ntk_privacy.models import fitting
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import max_margin_verdict, result, staged
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.max_margin_loss import objective as objective
from ntk_privacy.reconstruction.max_margin_loss import relu_and_slope as relu_and_slope
from ntk_privacy.reconstruction.max_margin_loss import stationarity as stationarity
from ntk_privacy.reconstruction.max_margin_settings import BY_CHANNELS as BY_CHANNELS
from ntk_privacy.reconstruction.max_margin_settings import RELEASED as RELEASED
from ntk_privacy.reconstruction.max_margin_settings import Settings as Settings
from ntk_privacy.reconstruction.max_margin_settings import (
    random_settings as random_settings,
)
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import logistic
from ntk_privacy.training.logistic import init_params as init_params
from ntk_privacy.training.logistic import network as network
from ntk_privacy.training.logistic import preprocess as preprocess
from ntk_privacy.training.logistic import train as train

__all__ = [
    "BY_CHANNELS",
    "METHOD",
    "RELEASED",
    "Attack",
    "AttackState",
    "Config",
    "Reconstruction",
    "Settings",
    "from_evidence",
    "init_params",
    "network",
    "objective",
    "plan",
    "prepare",
    "preprocess",
    "random_settings",
    "reconstruct",
    "relu_and_slope",
    "run",
    "stationarity",
    "train",
]


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
    _checks.typed_key(key=key)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How the attack searches; attributes: see the help of each field."""

    num_candidates: int | None = field(
        None, "Images searched for; none is twice those of the training set."
    )
    num_steps: int = field(50_000, "Epochs of the search.")
    learning_rate: float | None = field(
        None, "Step size of the images (intensity); none is the released one."
    )
    released: str | None = field(
        None,
        "The released run whose settings are taken; none is the one of images with as "
        "many channels.",
        choices=tuple(RELEASED),
    )

    def __post_init__(self):
        _checks.at_least(1, num_steps=self.num_steps)
        if self.num_candidates is not None:
            _checks.at_least(1, num_candidates=self.num_candidates)
        if self.learning_rate is not None:
            _checks.positive(learning_rate=self.learning_rate)
        if self.released is not None:
            _checks.one_of(RELEASED, released=self.released)


def plan(config: Config, depth: int) -> Settings:
    """Returns released settings, as the config alters them.

    Args:
      config: what is asked.
      depth: channels of the images.
    """
    suits = BY_CHANNELS.get(depth, next(iter(BY_CHANNELS.values())))
    chosen = RELEASED[config.released or suits]
    chosen = dataclasses.replace(chosen, num_epochs=config.num_steps)
    if config.learning_rate is None:
        return chosen
    return dataclasses.replace(chosen, image_learning_rate=config.learning_rate)


def from_evidence(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    stage: Stage = straight,
) -> result.Reconstruction:
    """Searches for the images that evidence speaks of, from the final weights alone.

    Args:
      evidence: network, weights after training and image shape; the number of images
        unless `config.num_candidates` is given.
      config: of the search.
      key: typed key; fixes the initial images and multipliers.
      stage: runs the loop "attack".

    Returns:
      Images less the mean image of the training set, as the network takes them; `duals`
      are multipliers times labels.

    Raises:
      ValueError: something is not known that is needed; else see `reconstruct`.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, reconstruction
      >>> from ntk_privacy.training import margin_victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=2, key=key)
      >>> victim = margin_victim.train(
      ...     digits.x_train, digits.y_train, width=16, max_steps=10, key=key
      ... )
      >>> known = reconstruction.evidence.of(victim)
      >>> row = reconstruction.METHODS["max_margin"]
      >>> few = row.configured(num_candidates=4, num_steps=10)
      >>> row.run(known, few, key=key).images.shape
      (4, 8, 8, 1)
    """
    evidence.needs("max_margin")
    attack = prepare(
        evidence.mlp("max_margin"),
        evidence.params_t,
        key=key,
        image_shape=evidence.image_shape,
        num_images=config.num_candidates or evidence.num_candidates(),
        settings=plan(config, evidence.image_shape[-1]),
    )

    def go(state, done, callback):
        return run(attack._replace(state=state), first_epoch=done, callback=callback)

    ran = staged.search(stage, "attack", attack.state, go, attack.num_epochs)
    found = ran.result
    m = len(found.images)
    return result.Reconstruction(
        images=np.asarray(found.images),
        duals=np.asarray(found.lambdas * found.labels)[None, :, None],
        losses=np.asarray(ran.losses, found.images.dtype),
        # Lost in an earlier start of this run, perhaps.
        verdict=max_margin_verdict.judge(None) if ran.lost else found.verdict,
        sources=("max_margin",) * m,
        contributions=found.contributions,
        nonfinite=ran.lost,
        **result.uncertain(m),
    )


def _check(evidence: Evidence, config: Config) -> None:
    del config
    if evidence.num_outputs > 1:
        raise ValueError(
            "max_margin takes two classes: use a binary task, or auto for more."
        )


def _fast(**given: Any) -> Config:
    # 50,000 epochs were no better at N = 20.
    return Config(**{"num_steps": 10_000, **given})


METHOD = Method(
    name="max_margin",
    about="Search from the final weights alone, of a network trained by cross-entropy "
    "(Haim et al., NeurIPS 2022, arXiv:2206.07758).",
    config=Config,
    presets={"fast": _fast, "paper": Config},
    run=from_evidence,
    check=_check,
    wants=("logistic",),
)
