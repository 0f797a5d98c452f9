"""Image sets as condensation and poisoning want them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._flags import UsageError
from ntk_privacy import data
from ntk_privacy.data import augmentation

# Mean and deviation per channel in DC, DSA and DM; that of CIFAR-10 is the mean
# deviation within an image, a fifth below that of its pixels.
_PUBLISHED = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


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
      config: has dataset, data_dir, download and preset; "paper" normalises by the
        published constants rather than by those of the images at hand.
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
    mean, deviation = (part((0, 1, 2), dtype=np.float64) for part in (x.mean, x.std))
    if config.preset == "paper":
        mean, deviation = _PUBLISHED.get(config.dataset, (mean, deviation))
    return Images(
        x,
        raw.labels_train[train],
        x_test,
        raw.labels_test[test],
        np.asarray(mean, np.float32),
        np.asarray(deviation, np.float32),
        len(raw.class_names),
        raw.max_intensity,
        # Digits are no digits when mirrored.
        augmentation.NO_FLIP
        if config.dataset in ("digits", "mnist")
        else augmentation.OPERATIONS,
    )
