"""Images balanced over the classes of a task: their flags, and loading them."""

import dataclasses

import jax

from experiments import _flags, _image_sets
from experiments._groups import Data
from ntk_privacy import data
from ntk_privacy.method import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskImages(Data):
    """Images."""

    task: str | None = field(
        None,
        "odd_even, animal_vehicle, two_classes or all_classes; none is the set's "
        "binary task, if it has one.",
    )
    num_images: int = field(20, "Training images N, balanced over the classes.")


def load(images: TaskImages, seed: int) -> tuple[data.Dataset, jax.Array]:
    """Returns the images that are asked for, and the key of a network's weights.

    Args:
      images: the flags.
      seed: of the run.

    Raises:
      UsageError: a flag does not fit the image set.
      OSError, ValueError: see `data.load`.
    """
    key_data, key_init = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
    with _flags.usage(data.ArgumentError):
        dataset = data.load(
            **_image_sets.source(images),
            task=images.task,
            num_train=images.num_images,
            key=key_data,
        )
    return dataset, key_init
