"""Real images, some or all: what distilled ones are measured against."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, distribution_matching, search
from ntk_privacy.distillation.regressed import TaskConfig, images_per_class, targets
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method, field
from ntk_privacy.resume import Stage, straight

__all__ = ["METHODS", "Config", "of_classes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """Flags of some images.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> row = distillation.METHODS["random"]
      >>> config = row.configured(num_distilled=2)
      >>> row.run(images, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    num_distilled: int = field(20, "Distilled images, balanced over the classes.")

    def __post_init__(self):
        _checks.at_least(1, num_distilled=self.num_distilled)


def _chosen(images: ImageSet, config: TaskConfig, rows: np.ndarray) -> Distilled:
    centred = images.regression(config.task)
    return Distilled(
        images=jnp.asarray(centred.x_train[rows]),
        labels=jnp.asarray(centred.y_train[rows]),
        losses=np.zeros(0),
        state=None,
        nonfinite=jnp.asarray(False),
    )


def _check(images: ImageSet, config: Config) -> None:
    images_per_class(targets(images, config)[1], config.num_distilled)


def _some(
    images: ImageSet,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = 1,
    folder: Path | None = None,
) -> Distilled:
    del stage, chunk, folder
    labels = images.regression(config.task).y_train
    each = images_per_class(labels, config.num_distilled)
    order, sizes = search.class_order(jnp.asarray(labels), config.num_distilled)
    chosen, offset = [], 0
    for place, size in enumerate(sizes):
        drawn = jax.random.permutation(jax.random.fold_in(key, place), size)[:each]
        chosen.append(order[offset + np.sort(np.asarray(drawn))])
        offset += size
    return _chosen(images, config, np.concatenate(chosen))


def _all(
    images: ImageSet,
    config: TaskConfig,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = 1,
    folder: Path | None = None,
) -> Distilled:
    del key, stage, chunk, folder
    return _chosen(images, config, np.arange(len(images.class_train)))


def of_classes(images: ImageSet, *, images_per_class: int, key: jax.Array) -> Distilled:
    """Returns normalised real images with their classes, drawn blindly.

    Args:
      images: to draw from.
      images_per_class: of each class.
      key: typed key.

    Raises:
      ValueError: a class has fewer.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.distillation import real
      >>> digits = data.load_set("digits")
      >>> found = real.of_classes(digits, images_per_class=2, key=jax.random.key(0))
      >>> found.images.shape, found.labels[:3].tolist()
      ((20, 8, 8, 1), [0, 0, 1])
    """
    drawn = distribution_matching.init(
        *class_images.arrays(images),
        key=key,
        num_classes=images.num_classes,
        images_per_class=images_per_class,
        initial="real",
    )
    return Distilled(
        images=drawn.images,
        labels=drawn.labels,
        losses=np.zeros(0),
        state=None,
        nonfinite=jnp.asarray(False),
    )


METHODS = (
    Method("random", "are real images.", Config, {"paper": Config}, _some, _check),
    Method("full", "are all real images.", TaskConfig, {"paper": TaskConfig}, _all),
)
