"""DM poisoning: poisons whose mean feature is the target's, in any random network.

Source: the RDM-DC paper, equation 5 and algorithm 2.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy.data import augmentation
from ntk_privacy.models.convnet import Network
from ntk_privacy.poisoning import perturbation

__all__ = ["MeanFeature", "Target", "poison"]


class Target(NamedTuple):
    """image: the target, in [0, 1]. mean, deviation: of the data, per channel."""

    image: Float[Array, "h w d"]
    mean: Float[Array, " d"]
    deviation: Float[Array, " d"]


def normalise(
    images: Float[Array, "n h w d"], mean: Float[Array, " d"], deviation: Array
) -> Float[Array, "n h w d"]:
    """Returns each channel less its mean, over its deviation."""
    return (images - mean.reshape(1, 1, 1, -1)) / deviation.reshape(1, 1, 1, -1)


@dataclasses.dataclass(frozen=True)
class MeanFeature:
    """Squared distance of the target's feature and the poisons' mean feature.

    Attributes:
      model: drawn anew for every key.
      operations: of `data.augmentation`; target and poisons share every draw.
    """

    model: Network
    operations: tuple[str, ...] = augmentation.OPERATIONS

    def __call__(
        self, images: Float[Array, "p h w d"], key: Array, data: Target
    ) -> Float[Array, ""]:
        """Returns its value, in squared feature units."""
        key_network, key_augment = jax.random.split(key)
        params = self.model.init_params(key_network, images.shape[1:], images.dtype)
        both = jnp.concatenate([data.image[None].astype(images.dtype), images])
        both = augmentation.augment(
            key_augment,
            normalise(both, data.mean, data.deviation),
            operations=self.operations,
            siamese=True,
        )
        features = self.model.embed_fn(params, both)
        return jnp.sum(jnp.square(features[0] - jnp.mean(features[1:], axis=0)))


def poison(
    images: Float[Array, "p h w d"],
    target: Target,
    *,
    model: Network,
    key: Array,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    **options: Any,
) -> perturbation.Poisoned:
    """Changes images of the adversarial class until their mean feature is the target's.

    Args:
      images: clean images whose label is the adversarial one, in [0, 1].
      target: what they shall stand for.
      model: the family that condensation draws from.
      key: typed key.
      operations: of `data.augmentation`.
      **options: of `perturbation.craft`: bound, step, num_steps, num_restarts...

    Raises:
      ValueError: see `perturbation.craft`.
    """
    objective = MeanFeature(model, operations)
    return perturbation.craft(images, objective, target, key=key, **options)
