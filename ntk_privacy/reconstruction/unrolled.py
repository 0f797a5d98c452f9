r"""Reconstruction by unrolled training: images on which training ends at the weights.

See `unrolled_search`; nothing is certified, and the verdict compares with sets of other
images.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy._types import ApplyFn, Callback, Params
from ntk_privacy.method import Method, field
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import result, staged
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.simulated import Training as Training
from ntk_privacy.reconstruction.simulated import misfit as misfit
from ntk_privacy.reconstruction.simulated import simulate as simulate
from ntk_privacy.reconstruction.unrolled_search import DEFAULT
from ntk_privacy.reconstruction.unrolled_search import Settings as Settings
from ntk_privacy.reconstruction.unrolled_search import State as State
from ntk_privacy.reconstruction.unrolled_search import prepare as prepare
from ntk_privacy.reconstruction.unrolled_search import run as run
from ntk_privacy.resume import Stage, straight

__all__ = [
    "METHOD",
    "Config",
    "Settings",
    "State",
    "Training",
    "from_evidence",
    "misfit",
    "prepare",
    "reconstruct",
    "run",
    "simulate",
]

_EPS_ROOT = 1e-14  # of Adam


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How the attack searches; attributes: see the help of each field."""

    num_steps: int = field(120, "Steps of L-BFGS, in each of seven stages.")

    def __post_init__(self):
        _checks.at_least(1, num_steps=self.num_steps)


def reconstruct(
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
    chunk: int = 10,
    state: State | None = None,
    first_step: int = 0,
    callback: Callback | None = None,
) -> result.Reconstruction:
    """Searches for images on which the training that is told ends at params_t.

    Args:
      network: an `MLP`, whose ReLUs are smoothed; any other `apply_fn(params, images)`
        is taken as it is, which serves smooth activations.
      params_0: weights before training.
      params_t: weights after it.
      training: how it went.
      labels: of the candidates, as many as images are searched for.
      key: typed key of the first candidates, and of the sets that the verdict compares
        with.
      image_shape: (height, width, depth) in pixels.
      bounds: smallest and largest intensity, scalar or per channel.
      starts: first candidates, instead of random ones.
      settings: of the search.
      chunk: steps between calls of `callback`.
      state: of an earlier call with the same arguments, to continue.
      first_step: steps that it has behind it.
      callback: `(steps, state, metrics)` after each chunk; if it returns True the
        search ends there.

    Returns:
      Images with the verdict; `kept["weights"]` are theirs in the loss, 1 being that of
      one image; `replay_misses` how far a training on them, with these weights and true
      ReLUs, ends from params_t, over the change's norm.

    Raises:
      ValueError: shapes or structures do not fit, the weights are not finite or the
        same, or the derivative through the training is not finite.

    Example:
      >>> import jax, optax
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import unrolled
      >>> net, key = MLP((16,)), jax.random.key(0)
      >>> x = jax.random.uniform(key, (2, 2, 2, 1))
      >>> y = jax.numpy.asarray([[1.0], [-1.0]])
      >>> training = unrolled.Training(optimizer=optax.sgd(0.1), num_steps=4)
      >>> before = net.init_params(key, (2, 2, 1))
      >>> after = unrolled.simulate(net.apply_fn, training, before, x, y)
      >>> few = unrolled.Settings(sharpnesses=(16.0,), num_steps=2)
      >>> found = unrolled.reconstruct(
      ...     net, before, after, training=training, labels=y, key=key,
      ...     image_shape=(2, 2, 1), bounds=(0.0, 1.0), settings=few)
      >>> found.images.shape
      (2, 2, 2, 1)
    """
    if (state is None) != (first_step == 0):
        raise ValueError(
            f"first_step={first_step} and a state {'is' if state else 'is not'} given: "
            "give both, of one earlier call, or neither."
        )
    search = prepare(
        network, params_0, params_t, training=training, labels=labels, key=key,
        image_shape=image_shape, bounds=bounds, starts=starts, settings=settings,
    )  # fmt: skip
    if state is not None:
        search = search._replace(state=state)
    return run(search, chunk=chunk, first_step=first_step, callback=callback)


def _training(evidence: Evidence) -> Training:
    """Returns the training that is told, whose derivative is finite."""
    recipe, steps = evidence.recipe, evidence.num_steps
    assert recipe is not None
    assert steps is not None
    # Memory is least with about as many blocks as steps in each.
    block = max(1, math.isqrt(steps))
    optimizer = recipe.transformation(eps_root=_EPS_ROOT)
    return Training(optimizer=optimizer, num_steps=steps, loss=recipe.loss, block=block)


def _labels(evidence: Evidence) -> Float[np.ndarray, "m c"]:
    """Returns the labels that are told; of N alone, as many of each as can be."""
    told, count = evidence.labels, evidence.num_images
    if told is not None and count in (None, len(told)):
        return np.asarray(told)
    codes = evidence.codes()
    if count is None:
        raise ValueError(
            "num_images is not told: tell it, or the label of every image in labels."
        )
    return codes[np.arange(count) % len(codes)]


def from_evidence(
    evidence: Evidence,
    config: Config = Config(),
    *,
    key: Array,
    stage: Stage = straight,
) -> result.Reconstruction:
    """Searches for the images of a training of which everything else is told.

    Args:
      evidence: network, weights before and after, bounds, recipe, number of steps, and
        the label of every image or, of a balanced set, the number of images.
      config: of the search.
      key: typed key.
      stage: runs the loop "attack".

    Raises:
      ValueError: something is not known that is needed, or the training took batches;
        else see `reconstruct`.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.reconstruction import evidence, unrolled
      >>> from ntk_privacy.training import recipe, victim
      >>> key = jax.random.key(0)
      >>> digits = data.load("digits", num_train=2, key=key)
      >>> how = recipe.Recipe(num_epochs=20, learning_rate=0.02)
      >>> trained = victim.train(
      ...     digits.x_train, digits.y_train, width=8, depth=1, key=key,
      ...     dynamics="standard", recipe=how)
      >>> known = evidence.told(trained, digits)
      >>> found = unrolled.from_evidence(known, unrolled.Config(num_steps=2), key=key)
      >>> found.images.shape
      (2, 8, 8, 1)
    """
    evidence.needs("unrolled", "params_0", "bounds", "recipe", "num_steps")
    if evidence.num_steps == 0:
        raise ValueError(
            "The training took no step: its loss was low enough before. Nothing shows "
            "in the weights; ask for a smaller loss, such as early_stop_loss=none."
        )
    labels = _labels(evidence)
    _check(dataclasses.replace(evidence, num_images=len(labels)), config)
    search = prepare(
        evidence.network,
        evidence.params_0,
        evidence.params_t,
        training=_training(evidence),
        labels=labels,
        settings=Settings(num_steps=config.num_steps),
        **evidence.common(key),
    )

    def go(state, done, callback):
        return run(search._replace(state=state), first_step=done, callback=callback)

    ran = staged.search(stage, "attack", search.state, go, search.num_steps)
    lost = ran.lost or ran.result.nonfinite
    return ran.result._replace(losses=ran.losses, nonfinite=lost)


def _check(evidence: Evidence, config: Config) -> None:
    """Raises ValueError unless the training is told, and took all images at once."""
    del config
    if evidence.recipe is None:
        evidence.needs("unrolled", "recipe")
        return
    size, count = evidence.recipe.batch_size, evidence.num_images
    if size is not None and (count is None or size < count):
        raise ValueError(
            f"batch_size={size}: unrolled simulates a training on all images at every "
            "step, for the order of batches is not known; use closed_units or kkt."
        )


METHOD = Method(
    name="unrolled",
    about="Search for images on which the whole training, simulated and "
    "differentiated, ends at the weights: any optimizer, all images at every step (the "
    "aim of SimuDy, ICLR 2025; the search is ours).",
    config=Config,
    presets={"fast": Config},
    run=from_evidence,
    check=_check,
    wants=("recipe",),
)
