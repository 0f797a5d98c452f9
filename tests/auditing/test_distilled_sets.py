"""A network that is trained on a distilled set gives that set away, and no more."""

import jax
import numpy as np
import pytest

from ntk_privacy.auditing import distilled_sets
from ntk_privacy.auditing.given_images import GivenImages

PICTURES = np.random.default_rng(0).random((10, 6, 6, 1)).astype(np.float32)


def _decoded(distilled, private, classes=None):
    return distilled_sets.decoded(
        GivenImages(distilled, classes, "made"),
        GivenImages(private, None, "given"),
        key=jax.random.key(0),
        seconds=60,
    )


def test_what_comes_back_is_the_set_and_a_copy_that_it_holds():
    told = _decoded(PICTURES[:4], PICTURES[4:], np.asarray([3, 1, 3, 1], np.int32))
    assert (told.own, told.originals) == (4, 0)
    assert told.best_psnr < 25
    twice = np.concatenate([PICTURES[:4], PICTURES[:3]])
    told = _decoded(twice, PICTURES[3:])
    assert (told.own, told.originals) == (4, 1)


@pytest.mark.parametrize(
    ("classes", "columns"), [(None, 1), ([7, 7, 7], 1), ([0, 4, 4], 1), ([0, 1, 2], 3)]
)
def test_targets_are_those_of_the_classes(classes, columns):
    told = None if classes is None else np.asarray(classes, np.int32)
    rows = distilled_sets._targets(GivenImages(PICTURES[:3], told, "made"))
    assert rows.shape == (3, columns)
    assert len(np.unique(rows, axis=0)) == min(columns + 1, 3)
