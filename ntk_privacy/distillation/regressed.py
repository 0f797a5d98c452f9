"""What methods that regress on labels ask of the images that they replace."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.method import field

__all__ = [
    "TaskConfig",
    "images_per_class",
    "targets",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learnt, and how exactly.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 16).reshape(4, 2, 2)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 2)
      >>> row = distillation.METHODS["full"]
      >>> config = row.configured(task="all_classes")
      >>> config
      TaskConfig(task='all_classes', precision='float32')
      >>> made = row.run(images, config, key=jax.random.key(0))
      >>> len(made.images) == len(images.x_train), made.labels.shape[1]
      (True, 2)
    """

    task: str | None = field(
        None, "odd_even, animal_vehicle or all_classes; none is the set's binary task."
    )
    precision: Literal["float32", "float64"] = field("float32", "Of everything.")


def targets(
    images: ImageSet, config: TaskConfig
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Returns training images less their mean, and the targets of the task.

    Args:
      images: to distil.
      config: has task and precision.
    """
    centred = images.regression(config.task)
    dtype = jnp.dtype(config.precision)
    return jnp.asarray(centred.x_train, dtype), jnp.asarray(centred.y_train, dtype)


def images_per_class(y: Float[Array | np.ndarray, "n c"], num_distilled: int) -> int:
    """Returns how many distilled images each class has.

    Args:
      y: targets.
      num_distilled: in all.

    Raises:
      ValueError: it is out of range or does not split evenly.
    """
    n, c = y.shape
    classes = 2 if c == 1 else c
    if not 1 <= num_distilled <= n:
        raise ValueError(
            f"num_distilled={num_distilled} must lie between {classes} and "
            f"num_train={n}."
        )
    if num_distilled % classes:
        raise ValueError(
            f"num_distilled={num_distilled} does not split evenly into the {classes} "
            f"classes: use a multiple of {classes}."
        )
    return num_distilled // classes
