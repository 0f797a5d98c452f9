"""DM poisoning: poisons whose mean feature is the target's, in any random network.

Source: the RDM-DC paper, equation 5 and algorithm 2.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks, _class_checks
from ntk_privacy.data import augmentation
from ntk_privacy.method import Method
from ntk_privacy.models.convnet import Network
from ntk_privacy.poisoning import bounded, perturbation
from ntk_privacy.poisoning.scenes import Scene
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config", "MeanFeature", "Target", "of_scene", "poison"]


class Target(NamedTuple):
    """image: the target, in [0, 1]. mean, deviation: of the data, per channel."""

    image: Float[Array, "h w d"]
    mean: Float[Array, " d"]
    deviation: Float[Array, " d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(bounded.Config):
    """Flags of DM poisoning.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, poisoning
      >>> images = data.load_set("digits").subset(num_train=100, num_test=10)
      >>> scene = poisoning.scene(images, seed=0, rate=0.02)
      >>> row = poisoning.METHODS["dm"]
      >>> config = row.configured(width=1, attack_steps=1, num_restarts=1)
      >>> row.run(scene, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """


def of_scene(scene: Scene) -> Target:
    """Returns what the objectives ask about the target of a scene.

    Args:
      scene: with the target, and how its images are normalised.
    """
    normal = scene.images.normal
    return Target(
        *map(jnp.asarray, (scene.target_image, normal.mean, normal.deviation))
    )


def normalise(
    images: Float[Array, "n h w d"], mean: Float[Array, " d"], deviation: Array
) -> Float[Array, "n h w d"]:
    """Returns each channel less its mean, over its deviation."""
    return (images - mean.reshape(1, 1, 1, -1)) / deviation.reshape(1, 1, 1, -1)


def checked(target: Target) -> Target:
    """Returns a target as arrays.

    Args:
      target: the image to be misread.

    Raises:
      ValueError: it is not one image in [0, 1] with its statistics.
    """
    target = Target(*map(jnp.asarray, target))
    image = target.image
    if image.ndim != 3:
        raise ValueError(
            f"target.image has shape {image.shape}: give one image, (height, width, "
            "channels), and one call to each target."
        )
    _class_checks.images(target_image=image[None])
    low, high = float(image.min()), float(image.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"target.image lies in [{low:.4g}, {high:.4g}], not in [0, 1]: give "
            "intensities before any normalisation, bytes over 255."
        )
    for name in ("mean", "deviation"):
        value = getattr(target, name)
        if value.shape != image.shape[-1:]:
            raise ValueError(
                f"target.{name} has shape {value.shape}: give one number for each of "
                f"the {image.shape[-1]} channels."
            )
    for centre, spread in zip(target.mean, target.deviation, strict=True):
        _checks.in_range(0, 1, target_mean=float(centre))
        _checks.positive(target_deviation=float(spread))
    return target


def check_images(images: Float[Array, "p h w d"], target: Target) -> None:
    """Raises ValueError unless images are such that a target may stand for them.

    Args:
      images: clean images.
      target: of the same shape.
    """
    _class_checks.images(images=images)
    if images.shape[1:] != jnp.shape(target.image):
        raise ValueError(
            f"images have shape {images.shape[1:]} but target.image "
            f"{jnp.shape(target.image)}: resize either."
        )


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
      ValueError: a batch of targets, a target out of [0, 1] or of another shape; see
        `perturbation.craft` for the rest.
    """
    _checks.typed_key(key=key)
    target = checked(target)
    check_images(images, target)
    objective = MeanFeature(model, operations)
    return perturbation.craft(images, objective, target, key=key, **options)


def _run(
    scene: Scene,
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
    chunk: int = bounded.CHUNK,
) -> perturbation.Poisoned:
    attack = functools.partial(
        poison, target=of_scene(scene), model=bounded.model(scene, config)
    )
    return bounded.craft(
        scene, config, attack, key=jax.random.fold_in(key, 2), stage=stage, chunk=chunk
    )


METHOD = Method(
    name="dm",
    about="matches the target's feature in random networks (RDM-DC).",
    config=Config,
    presets={"cpu": functools.partial(Config, **bounded.SMALL), "paper": Config},
    run=_run,
    check=bounded.check,
    loss="squared feature distance",
)
