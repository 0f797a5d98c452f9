"""Units of a network: found where certain images fit in no others, never bent."""

import numpy as np
import pytest

from ntk_privacy.auditing import units

RNG = np.random.default_rng(0)
X = RNG.random((6, 5, 5, 3))
MEAN, DEVIATION = np.asarray([0.5, 0.45, 0.4]), np.asarray([0.25, 0.24, 0.27])


def test_normalised_images_tell_mean_and_deviation_of_each_channel():
    found = units.fitted(X, ((X - MEAN) / DEVIATION)[::-1] + 1e-4)
    assert np.allclose(found.scale, DEVIATION, atol=1e-3)
    assert np.allclose(found.shift, MEAN, atol=1e-3)
    assert np.allclose(found.intensities(found.as_seen(X)), X)


def test_images_that_fit_as_they_are_keep_their_units():
    assert units.fitted(X, X + 1e-3) is None


def test_other_images_are_not_bent_to_fit():
    assert units.fitted(X, RNG.random((6, 5, 5, 3)) * 3 - 1) is None
    # Half of them is no proof.
    mixed = np.concatenate([(X[:2] - MEAN) / DEVIATION, RNG.random((4, 5, 5, 3))])
    assert units.fitted(X, mixed) is None


def test_one_image_alone_and_negatives_prove_no_units():
    assert units.fitted(X, (X[:1] - 0.5) / 0.25) is None
    assert units.fitted(X, -X) is None
    assert units.fitted(X, X[:0]) is None
    assert units.fitted(X * 0 + 0.5, X * 0) is None


def test_brightness_alone_makes_no_other_image_of_one():
    assert units.num_up_to_brightness(X, 3 * X[2:]) == 4
    assert units.num_up_to_brightness(X, RNG.random((6, 5, 5, 3))) == 0
    assert units.num_up_to_brightness(X, X[:2] * 0) == 0
    assert units.num_up_to_brightness(X, X[:2] * np.nan) == 0


@pytest.mark.parametrize("bounds", [(0, 1), (-1.0, 1.0), ((-2, -1, 0), (1, 2, 5))])
def test_bounds_are_black_and_white(bounds):
    found = units.told_by_bounds(bounds, 3)
    ends = [np.broadcast_to(np.asarray(e, float), (1, 1, 1, 3)) for e in bounds]
    assert np.allclose(found.intensities(ends[0]), 0)
    assert np.allclose(found.intensities(ends[1]), 1)


@pytest.mark.parametrize(
    "bounds", [(1, 0), (0, np.nan), (0, 0), ((0, 1), (2, 3)), (0, "a")]
)
def test_bounds_out_of_order_are_refused(bounds):
    with pytest.raises(ValueError, match="the smallest and the largest intensity"):
        units.told_by_bounds(bounds, 3)


def test_a_black_image_is_no_other_up_to_brightness():
    x = np.random.default_rng(0).random((4, 5, 5, 1))
    assert units.num_up_to_brightness(np.zeros_like(x), x) == 0
    assert units.num_up_to_brightness(1 - x, x) == 4
    assert (
        units.num_up_to_brightness(x[::-1], np.random.default_rng(1).random(x.shape))
        == 0
    )
