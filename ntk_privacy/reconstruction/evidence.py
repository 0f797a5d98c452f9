"""What an attacker of a trained network knows: the problem of every reconstruction."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _tree
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.data.dataset import Dataset
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.models.mlp import MLP
from ntk_privacy.training.recipe import LOSSES, Loss, Recipe
from ntk_privacy.training.victim import Victim

__all__ = ["NUM_AUXILIARY", "Dynamics", "Evidence", "far", "of", "of_gradient", "told"]

NUM_AUXILIARY = 2000
"""Test images that an attacker is told of, at most."""

# Of a step that decoding takes, over one as large as the weights: these round layers
# whose gradient is smaller than the others'.
_LARGER = 2.0**8

Dynamics = Literal["linearized", "standard"]

_OF_ADAPTERS = ("adapter", "auto")  # methods that read the factors of one
_REMEDIES = {
    "params_0": "give the weights before training, guess their seed with "
    "reconstruction.initialisation, or use max_margin, which needs those after it "
    "alone",
    "recipe": "say how the weights were trained, by a training.recipe.Recipe; on the "
    "command line give evidence=weights, dynamics=standard and an optimizer; one "
    "gradient is read by closed_units",
    "num_steps": "say how many steps the training took",
    "bounds": "give the smallest and the largest intensity, in the units that the "
    "network takes, such as (-mean, 1 - mean)",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """A network, its weights, and what is told of the images it was trained on.

    Attributes:
      network: the architecture; an `MLP`, or any `apply_fn(params, images)`.
      params_t: weights after training.
      params_0: before it; None where they are not known.
      image_shape: (height, width, depth) in pixels.
      bounds: smallest and largest intensity, scalar or per channel, in the units that
        the network takes: (-mean, 1 - mean). None where they are not known.
      dynamics: of the training; "linearized" where the network's first-order Taylor
        model was trained in its place.
      num_images: N, where it is told.
      labels: (k, c), the values that labels take, one row each; None are -1 and +1 for
        one output, and centred one-hot rows for several. `unrolled` takes them for
        those of the images, in any order, unless `num_images` is another number.
      auxiliary: (a, height, width, depth), images of the same domain, preprocessed
        alike.
      num_outputs: c, of an `apply_fn`; an `MLP` knows its own.
      objective: the loss of the training.
      is_gradient: params_t are one step against a gradient at params_0: see
        `of_gradient`.
      step: that step, before the weights round it; None where it is not known.
      adapter: all that was trained, of the first dense layer; params_0 are the frozen
        network then, and params_t that with the adapter merged.
      is_adapter: whether it is that; said of a network that is still to be trained.
      recipe: how the network was trained, where it is told.
      num_steps: that the training took, where it is told.

    Raises:
      ValueError: a number out of range, or shapes that do not fit.
    """

    network: MLP | ApplyFn
    params_t: Params
    params_0: Params | None = None
    image_shape: tuple[int, int, int]
    bounds: tuple[Any, Any] | None = None
    dynamics: Dynamics = "standard"
    num_images: int | None = None
    labels: Float[Array | np.ndarray, "k c"] | None = None
    auxiliary: Float[Array | np.ndarray, "a h w d"] | None = None
    num_outputs: int = 1
    objective: Loss = "mse"
    is_gradient: bool = False
    step: Params | None = None
    adapter: Adapter | None = None
    is_adapter: bool = False
    recipe: Recipe | None = None
    num_steps: int | None = None

    def __post_init__(self):
        for size in self.image_shape:
            _checks.at_least(1, image_shape=size)
        _checks.one_of(("linearized", "standard"), dynamics=self.dynamics)
        if isinstance(self.network, MLP):
            object.__setattr__(self, "num_outputs", self.network.num_outputs)
        _checks.at_least(1, num_outputs=self.num_outputs)
        _checks.one_of(LOSSES, objective=self.objective)
        if self.adapter is not None:
            object.__setattr__(self, "is_adapter", True)
        if self.num_images is not None:
            _checks.at_least(1, num_images=self.num_images)
        if self.labels is not None and self.labels.shape[1:] != (self.num_outputs,):
            raise ValueError(
                f"labels have shape {self.labels.shape}, the network has "
                f"{self.num_outputs} outputs: give one column per output."
            )

    def needs(self, method: str, *names: str) -> None:
        """Raises ValueError unless all these are known and the weights are finite."""
        if self.is_adapter and method not in _OF_ADAPTERS:
            raise ValueError(
                f"method={method} reads whole layers that were trained, and an adapter "
                f"trains its factors: use one of {', '.join(_OF_ADAPTERS)}."
            )
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(
                    f"{name} is not known: {method} needs it; {_REMEDIES[name]}."
                )
        _checks.finite(params_t=self.params_t)
        if self.params_0 is not None:
            _checks.finite(params_0=self.params_0)

    def mlp(self, method: str) -> MLP:
        """Returns the network, which must be an MLP.

        Raises:
          ValueError: it is another one.
        """
        if isinstance(self.network, MLP):
            return self.network
        raise ValueError(
            f"{method} takes an MLP: for other networks use kkt with settings='paper'."
        )

    def num_candidates(self) -> int:
        """Returns twice the number of images, as many as a search looks for.

        Raises:
          ValueError: that number is not told.
        """
        if self.num_images is None:
            raise ValueError(
                "num_images is not told: tell it, or give num_candidates, the images "
                "to search for."
            )
        return 2 * self.num_images

    def codes(self) -> Float[np.ndarray, "k c"]:
        """Returns the values that labels take, one row each."""
        if self.labels is not None:
            return np.unique(np.asarray(self.labels), axis=0)
        if self.num_outputs == 1:
            return np.asarray([[-1.0], [1.0]])
        return np.eye(self.num_outputs) - 1 / self.num_outputs

    def common(self, key: Array) -> dict[str, Any]:
        """Returns the arguments that every search takes."""
        return {"key": key, "image_shape": self.image_shape, "bounds": self.bounds}


def of(victim: Victim, **told: Any) -> Evidence:
    """Returns the evidence that a network trained here leaves, and what is told.

    Args:
      victim: from `training.victim`.
      **told: further fields of `Evidence`: `bounds`, `num_images` and so on.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train, digits.y_train, width=64, key=key
      ... )
      >>> evidence = ntk_privacy.reconstruction.evidence.of(
      ...     victim, bounds=digits.bounds
      ... )
      >>> evidence.image_shape, evidence.dynamics
      ((8, 8, 1), 'linearized')
    """
    told = {
        "image_shape": victim.image_shape,
        "objective": victim.objective,
        **told,
    }
    if victim.recipe is not None:
        told = {"recipe": victim.recipe, "num_steps": victim.steps, **told}
    if victim.adapter is not None:
        told["adapter"] = victim.adapter
    if victim.gradient is not None:
        return of_gradient(victim.model, victim.params_0, victim.gradient, **told)
    return Evidence(
        network=victim.model,
        params_0=victim.params_0,
        params_t=victim.params_t,
        **{"dynamics": victim.dynamics, **told},
    )


def of_gradient(
    network: MLP | ApplyFn, params: Params, gradient: Params, **told: Any
) -> Evidence:
    """Returns the evidence of one gradient, such as a client shares.

    It is that of weights after one step of linearized training. The step is a power of
    two that makes it as large as the weights, so that they hardly round it; `far` takes
    a larger one.

    Args:
      network: the architecture.
      params: at which the gradient was taken.
      gradient: of any mean or sum of losses, of the structure of the parameters.
      **told: further fields of `Evidence`: `image_shape`, `bounds` and so on.

    Raises:
      ValueError: structures differ, or the gradient is zero or not finite.

    Example:
      >>> import jax
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import evidence
      >>> net, key = MLP((4,)), jax.random.key(0)
      >>> params = net.init_params(key, (2, 2, 1))
      >>> gradient = jax.tree.map(lambda leaf: 1e-3 * leaf + 1e-6, params)
      >>> known = evidence.of_gradient(net, params, gradient, image_shape=(2, 2, 1))
      >>> known.dynamics, known.is_gradient
      ('linearized', True)
    """
    _checks.same_structure("params", params, "gradient", gradient)
    _checks.finite(gradient=gradient)
    if not float(_tree.largest(gradient)):
        raise ValueError("The gradient is zero: it holds nothing of the images.")
    # Weights of 16 bits would round the step away.
    params, gradient = (_tree.single(part) for part in (params, gradient))
    ratio = float(_tree.largest(params)) / float(_tree.largest(gradient))
    step = 2.0 ** round(float(np.log2(ratio))) if ratio else 1.0
    return Evidence(
        network=network,
        params_0=params,
        params_t=_tree.axpy(-step, gradient, params),
        dynamics="linearized",
        is_gradient=True,
        step=jax.tree.map(lambda leaf: -step * leaf, gradient),
        **told,
    )


def far(evidence: Evidence) -> Params:
    """Returns weights after training, of one gradient after a far larger step.

    For decoding, which takes changes of any size: the weights round it less.

    Args:
      evidence: of any kind.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> from ntk_privacy.reconstruction import evidence
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> client = ntk_privacy.training.victim.one_gradient(
      ...     digits.x_train, digits.y_train, width=16, key=key
      ... )
      >>> known = evidence.of(client, bounds=digits.bounds)
      >>> sorted(evidence.far(known)) == sorted(client.params_0)
      True
    """
    if evidence.step is None or evidence.params_0 is None:
        return evidence.params_t
    return _tree.axpy(_LARGER, evidence.step, evidence.params_0)


def told(
    victim: Victim,
    dataset: Dataset,
    *,
    num_images: int | None = None,
    auxiliary: bool = False,
) -> Evidence:
    """Returns the evidence of a network, and what is told of its image set.

    The attacker is told the range of intensities and the values of the labels.

    Args:
      victim: trained on the dataset.
      dataset: as `data.load` gives it.
      num_images: N; None is not told.
      auxiliary: the test images are told too, as images of the same domain.

    Example:
      >>> import jax
      >>> import ntk_privacy
      >>> key = jax.random.key(0)
      >>> digits = ntk_privacy.data.load("digits", num_train=4, key=key)
      >>> victim = ntk_privacy.training.victim.train(
      ...     digits.x_train, digits.y_train, width=64, key=key
      ... )
      >>> evidence = ntk_privacy.reconstruction.evidence.told(victim, digits)
      >>> evidence.num_images, evidence.codes().ravel()
      (None, array([-1.,  1.], dtype=float32))
    """
    images = None
    if auxiliary:
        dtype = jax.tree.leaves(victim.params_0)[0].dtype
        images = jnp.asarray(dataset.x_test[:NUM_AUXILIARY], dtype)
    return of(
        victim,
        bounds=dataset.bounds,
        num_images=num_images,
        labels=dataset.y_train,
        auxiliary=images,
    )
