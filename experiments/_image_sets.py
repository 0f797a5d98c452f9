"""Image sets as condensation and poisoning want them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._flags import UsageError
from ntk_privacy import data
from ntk_privacy.data import augmentation


class Images(NamedTuple):
    """Intensities in [0, 1], classes, and what normalises each channel."""

    x: np.ndarray
    classes: np.ndarray
    x_test: np.ndarray
    class_test: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    num_classes: int
    levels: int
    operations: tuple[str, ...]

    def normalised(self, images: Any) -> jax.Array:
        """Returns images less the mean, over the deviation."""
        return jnp.asarray((np.asarray(images) - self.mean) / self.deviation)


def load(
    config: Any, *, num_train: int | None = None, num_test: int | None = None
) -> Images:
    """Returns an image set, or a random part of it that is the same for every seed.

    Args:
      config: has dataset, data_dir and download.
      num_train: training images; None is all.
      num_test: test images; None is all.

    Raises:
      UsageError: more images are asked for than there are.
      OSError, ValueError: a file is missing or damaged.
    """
    raw = data.load_raw(config.dataset, config.data_dir, config.download)
    for name, asked, there in (
        ("num_train", num_train, len(raw.labels_train)),
        ("num_test", num_test, len(raw.labels_test)),
    ):
        if asked is not None and asked > there:
            raise UsageError(
                f"{name}={asked} is more than the {there} images of {config.dataset}: "
                f"use at most {there}, or none for all."
            )
    order = np.random.default_rng(0)
    train = np.sort(order.permutation(len(raw.labels_train))[:num_train])
    test = np.sort(order.permutation(len(raw.labels_test))[:num_test])
    x, x_test = (
        images.astype(np.float32) / np.float32(raw.max_intensity)
        for images in (raw.images_train[train], raw.images_test[test])
    )
    return Images(
        x,
        raw.labels_train[train],
        x_test,
        raw.labels_test[test],
        x.mean((0, 1, 2), dtype=np.float64).astype(np.float32),
        x.std((0, 1, 2), dtype=np.float64).astype(np.float32),
        len(raw.class_names),
        raw.max_intensity,
        # Digits are no digits when mirrored.
        augmentation.NO_FLIP
        if config.dataset in ("digits", "mnist")
        else augmentation.OPERATIONS,
    )
