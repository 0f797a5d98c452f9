"""Which training images become poison, and poison in their place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks

__all__ = ["choose", "replace"]


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
      ValueError: classes that are none, the target already has the adversarial label,
        or the class has too few images.
    """
    _checks.typed_key(key=key)
    _class_checks.numbers(classes=classes)
    most = int(np.max(np.asarray(classes)))
    _checks.in_range(0, most, adversarial_class=adversarial_class)
    _checks.at_least(0, target_class=target_class)
    if adversarial_class == target_class:
        raise ValueError(
            f"adversarial_class={adversarial_class} is the target's own: choose "
            "another class, or another target."
        )
    members = np.flatnonzero(np.asarray(classes) == adversarial_class)
    if not 1 <= num_poisons <= len(members):
        raise ValueError(
            f"num_poisons={num_poisons} must lie in [1, {len(members)}]: class "
            f"{adversarial_class} has {len(members)} training images, so ask for "
            "fewer, or choose another class."
        )
    order = np.asarray(jax.random.permutation(key, len(members)))
    return np.sort(members[order[:num_poisons]])


def replace(
    images: Float[Array | np.ndarray, "n h w d"],
    poisons: Float[Array | np.ndarray, "p h w d"],
    where: Int[np.ndarray, " p"] | Sequence[int],
) -> Float[Array, "n h w d"]:
    """Returns the training images with some replaced; their number does not change.

    Args:
      images: training images.
      poisons: in their place.
      where: rows, of `choose`.

    Raises:
      ValueError: lengths or shapes differ, either are bytes or not finite, or a row is
        not there or named twice.
    """
    rows = np.asarray(where)
    if not rows.size and not len(poisons):
        return jnp.asarray(images)
    _class_checks.images(images=images, poisons=poisons)
    _checks.same_length(poisons=poisons, where=rows)
    if poisons.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"poisons have shape {poisons.shape[1:]} but images {images.shape[1:]}: "
            "resize either."
        )
    # JAX would leave out a row behind the end without a word.
    inside = np.issubdtype(rows.dtype, np.integer) and bool(
        np.all((rows >= 0) & (rows < len(images)))
    )
    if not inside or len(np.unique(rows)) < len(rows):
        raise ValueError(
            f"where must name different rows in [0, {len(images) - 1}], whole "
            f"numbers, but lies in [{rows.min(initial=0)}, {rows.max(initial=0)}] with "
            f"{len(rows) - len(np.unique(rows))} repeated: take those of choose."
        )
    return jnp.asarray(images).at[rows].set(jnp.asarray(poisons, images.dtype))
