"""Images for regression: intensities less their mean, and targets."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class ArgumentError(ValueError):
    """What was asked does not fit the image set: its files are not at fault."""


class Dataset(NamedTuple):
    """Training and test images with regression targets.

    Intensities are in [0, 1] less `mean`, which belongs to the chosen training images
    alone and is subtracted from the test images too; there is no division by a
    standard deviation (Loo et al., arXiv:2302.01428, released code).

    Attributes:
        x_train: Training images, (n, h, w, c), intensity less mean.
        y_train: Targets, (n, k): -1 or +1 with k = 1, or one-hot less 1/k.
        class_train: The set's own class of each training image, (n,).
        x_test: Test images, (m, h, w, c).
        y_test: Targets of the test images, (m, k).
        class_test: Class of each test image, (m,).
        mean: Mean intensity of the training images per channel, (c,).
    """

    x_train: Float32[np.ndarray, "n h w c"]
    y_train: Float32[np.ndarray, "n k"]
    class_train: Int32[np.ndarray, " n"]
    x_test: Float32[np.ndarray, "m h w c"]
    y_test: Float32[np.ndarray, "m k"]
    class_test: Int32[np.ndarray, " m"]
    mean: Float32[np.ndarray, " c"]

    @property
    def bounds(self) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
        """What intensities 0 and 1 are after the mean is subtracted, per channel."""
        return -self.mean, np.float32(1) - self.mean
