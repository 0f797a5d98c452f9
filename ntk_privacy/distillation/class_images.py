"""What methods that match classes ask of the images that they replace."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy.data.image_set import ImageSet

__all__ = ["arrays", "check_batch", "check_start", "sizes"]


def arrays(
    images: ImageSet,
) -> tuple[Float[Array, "n h w d"], Int[Array, " n"]]:
    """Returns normalised training images, and their classes.

    Args:
      images: of which.
    """
    x = jnp.asarray(images.normalised(images.x_train))
    return x, jnp.asarray(images.class_train)


def sizes(images: ImageSet) -> np.ndarray:
    """Returns the number of training images of each class.

    Args:
      images: to count.
    """
    return np.bincount(images.class_train, minlength=images.num_classes)


def check_batch(images: ImageSet, batch_size: int) -> None:
    """Refuses a batch that a class cannot fill.

    Args:
      images: to draw from.
      batch_size: images of each class.

    Raises:
      ValueError: it is more than the smallest class has.
    """
    least = sizes(images)
    if batch_size > least.min():
        raise ValueError(
            f"batch_size={batch_size} is more than the {least.min()} training images "
            f"of class {int(np.argmin(least))}: use at most {least.min()}."
        )


def check_start(images: ImageSet, images_per_class: int, what: str) -> None:
    """Refuses more images of a class than there are.

    Args:
      images: to draw from.
      images_per_class: distilled images of each class.
      what: what takes as many real ones.

    Raises:
      ValueError: they are more than the smallest class has.
    """
    least = sizes(images)
    if images_per_class > least.min():
        raise ValueError(
            f"images_per_class={images_per_class} is more than the {least.min()} "
            f"training images of class {int(np.argmin(least))}, which are {what}: use "
            "fewer."
        )
