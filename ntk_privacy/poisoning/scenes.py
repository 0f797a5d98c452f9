"""What a poisoner has: an image to be misread, as what, and the images that may change.

The problem of every record of `poisoning.METHODS`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks
from ntk_privacy.data import ArgumentError
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.poisoning import rows

__all__ = ["Scene", "scene"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """An image set with a target, and the training images that become poison.

    Attributes:
      images: the clean set.
      target: row of the test image that shall be misread.
      adversarial_class: what it shall be taken for.
      where: rows of training images of that class, (p,), whose pixels may change.
      key: of whatever is drawn for this scene later.
    """

    images: ImageSet
    target: int
    adversarial_class: int
    where: Int[np.ndarray, " p"]
    key: jax.Array

    @property
    def target_class(self) -> int:
        """What the target is."""
        return int(self.images.class_test[self.target])

    @property
    def target_image(self) -> Float[np.ndarray, "h w c"]:
        """The target's intensities, in [0, 1]."""
        return self.images.x_test[self.target]

    @property
    def clean(self) -> Float[np.ndarray, "p h w c"]:
        """What stands in the rows that become poison, in [0, 1]."""
        return self.images.x_train[self.where]

    def poisoned(self, poisons: Float[Array | np.ndarray, "p h w c"]) -> ImageSet:
        """Returns the set with poison in its rows, normalised as it was.

        Args:
          poisons: intensities in [0, 1].

        Raises:
          ValueError: see `rows.replace`.
        """
        clean = jnp.asarray(self.images.x_train)
        changed = rows.replace(clean, jnp.asarray(poisons), self.where)
        return self.images.replaced(changed)


def scene(
    images: ImageSet, *, seed: int, rate: float, at_least_one: bool = False
) -> Scene:
    """Draws a target, a class that is not its own, and images of it to poison.

    Args:
      images: to draw from.
      seed: fixes all of it.
      rate: poison, as a share of the training images.
      at_least_one: whether a rate that asks for no image stands for one, as a scene
        that nobody will poison wants it.

    Raises:
      ArgumentError: the class has fewer images than the rate asks for, or the rate asks
        for none.
      ValueError: seed or rate is negative or not finite.

    Example:
      >>> from ntk_privacy import data, poisoning
      >>> images = data.load_set("digits").subset(num_train=400, num_test=50)
      >>> found = poisoning.scene(images, seed=0, rate=0.01)
      >>> found.where.shape, found.target_class, found.adversarial_class
      ((4,), 4, 6)
    """
    _checks.at_least(0, seed=seed, rate=rate)
    key = jax.random.key(seed)
    draw = np.random.default_rng(seed)
    target = int(draw.integers(len(images.x_test)))
    target_class = int(images.class_test[target])
    others = [c for c in range(images.num_classes) if c != target_class]
    adversarial = int(draw.choice(others))
    many = len(images.x_train)
    count = round(rate * many)
    if count < 1 and not at_least_one:
        raise ArgumentError(
            f"rate={rate} of {many} images is no poison at all: use a rate of at least "
            f"{1 / many:.4g}, or no attack."
        )
    count = max(1, count)
    members = int(np.sum(images.class_train == adversarial))
    if count > members:
        raise ArgumentError(
            f"rate={rate} asks for {count} poisons, class {adversarial} has {members} "
            f"images: use a rate of at most {members / many:.4f}."
        )
    where = rows.choose(
        jnp.asarray(images.class_train),
        key=jax.random.fold_in(key, 1),
        adversarial_class=adversarial,
        target_class=target_class,
        num_poisons=count,
    )
    return Scene(
        images=images,
        target=target,
        adversarial_class=adversarial,
        where=where,
        key=key,
    )
