"""The direct attack: the target itself, with the adversarial label, is the poison.

Source: the RDM-DC paper, table 5. The number of copies is not given there; here it
fills every slot.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks

__all__ = ["choose", "poison", "replace"]


def choose(
    classes: Int[Array, " n"],
    *,
    key: Array,
    adversarial_class: int,
    target_class: int,
    num_poisons: int,
) -> np.ndarray:
    """Returns which training images become poison: some of the adversarial class.

    Args:
      classes: of the training images.
      key: typed key.
      adversarial_class: what the target shall be taken for.
      target_class: what it is.
      num_poisons: how many, at most as many as the class has.

    Raises:
      ValueError: the target already has the adversarial label, or the class has too
        few images.
    """
    if adversarial_class == target_class:
        raise ValueError(
            f"adversarial_class={adversarial_class} is the target's own: choose "
            "another class, or another target."
        )
    members = np.flatnonzero(np.asarray(classes) == adversarial_class)
    if not 1 <= num_poisons <= len(members):
        raise ValueError(
            f"num_poisons={num_poisons} must lie in [1, {len(members)}]: class "
            f"{adversarial_class} has {len(members)} training images."
        )
    order = np.asarray(jax.random.permutation(key, len(members)))
    return np.sort(members[order[:num_poisons]])


def poison(
    target: Float[Array, "h w d"], *, num_poisons: int
) -> Float[Array, "p h w d"]:
    """Returns copies of the target, to stand under the adversarial label.

    Args:
      target: the image to be misread.
      num_poisons: copies.
    """
    _checks.at_least(1, num_poisons=num_poisons)
    return jnp.repeat(target[None], num_poisons, axis=0)


def replace(
    images: Float[Array, "n h w d"],
    poisons: Float[Array, "p h w d"],
    where: Int[np.ndarray, " p"],
) -> Float[Array, "n h w d"]:
    """Returns the training images with some replaced; their number does not change.

    Args:
      images: training images.
      poisons: in their place.
      where: rows, of `choose`.
    """
    _checks.same_length(poisons=poisons, where=where)
    return images.at[where].set(poisons.astype(images.dtype))
