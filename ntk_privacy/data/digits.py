"""The 8x8 handwritten digits that come with scikit-learn: always at hand, offline."""

import numpy as np

from ntk_privacy.data.raw import Raw

NUM_TEST = 360
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_raw() -> Raw:
    """Returns the 1,797 digits, 8x8x1, intensities 0 to 16.

    The split is ours: scikit-learn publishes none. The last 360 images are the test
    set. Images of one writer follow each other in the file, so most test digits are
    by writers that the first 1,437 do not include.

    Example:
      >>> from ntk_privacy import data
      >>> data.SETS["digits"].load_raw(".").images_test.shape
      (360, 8, 8, 1)
    """
    # Slow to import, and the one thing that the library has of it.
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    bunch = load_digits()
    assert isinstance(bunch, Bunch)  # a tuple only where asked for
    images = np.asarray(bunch["images"]).astype(np.uint8)[..., None]
    labels = np.asarray(bunch["target"]).astype(np.int32)
    return Raw(
        images_train=images[:-NUM_TEST],
        labels_train=labels[:-NUM_TEST],
        images_test=images[-NUM_TEST:],
        labels_test=labels[-NUM_TEST:],
        class_names=CLASS_NAMES,
        max_intensity=16,
    )
