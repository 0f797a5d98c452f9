"""Which images train and which judge, drawn at random once for all seeds.

Whatever is chosen (a weight, a number of epochs) is chosen on images that are held out
of training; test images are for the report alone.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from ntk_privacy import _checks

__all__ = ["Split", "hold_out", "split"]

_SEED = 0


class Split(NamedTuple):
    """Rows in ascending order.

    Attributes:
      train: of the training images that are trained on.
      validation: of the training images that are not, to choose by.
      test: of the test images, to report on.
    """

    train: Int[np.ndarray, " n"]
    validation: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " t"]


def split(
    num_there: int,
    num_test_there: int,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    num_validation: int = 0,
) -> Split:
    """Returns random rows to train, to choose and to report on: always the same.

    Neither the training nor the test rows depend on whether any are held out.

    Args:
      num_there: training images that there are.
      num_test_there: test images that there are.
      num_train: training images to use; None is all.
      num_test: test images to use; None is all.
      num_validation: training images to hold out, of those that are not used.

    Raises:
      ValueError: more images are asked for than there are.
    """
    _checks.at_least(0, num_validation=num_validation)
    for name, asked, there in (
        ("num_train", num_train, num_there),
        ("num_test", num_test, num_test_there),
    ):
        if asked is not None:
            _checks.at_least(1, **{name: asked})
            if asked > there:
                raise ValueError(
                    f"{name}={asked} is more than the {there} images that there are: "
                    f"ask for at most {there}, or none for all."
                )
    order = np.random.default_rng(_SEED)
    rows = order.permutation(num_there)
    rest = rows[num_there if num_train is None else num_train :]
    if num_validation > len(rest):
        raise ValueError(
            f"num_validation={num_validation} is more than the {len(rest)} of "
            f"{num_there} training images that are not trained on: train on at most "
            f"{num_there - num_validation}."
        )
    return Split(
        np.sort(rows[:num_train]),
        np.sort(rest[:num_validation]),
        np.sort(order.permutation(num_test_there)[:num_test]),
    )


def hold_out(
    labels: Int32[np.ndarray, " n"], *, share: float = 0.2
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " t"]]:
    """Returns rows to train on and rows to test on, of a set without a test part.

    Always the same, and of each class alike: its share rounded, one at least; a class
    of one image is trained on.

    Args:
      labels: Class of each image.
      share: Of each class, to be tested on.

    Raises:
      ValueError: The share is not between 0 and 1, or no class has two images.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} must lie between 0 and 1.")
    draw = np.random.default_rng(_SEED)
    held = []
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(max(1, round(share * len(rows))), len(rows) - 1)])
    test = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    if not len(test):
        raise ValueError(
            f"Of {len(labels)} images no class has two, one to train on and one to "
            "test on: give more images, or a test part."
        )
    return np.setdiff1d(np.arange(len(labels)), test), test
