"""Rows to train, to choose and to report on."""

import numpy as np
import pytest

from ntk_privacy.data import splits


def test_held_out_images_are_disjoint_and_change_nothing_else():
    plain = splits.split(50, 20, num_train=30, num_test=10)
    held = splits.split(50, 20, num_train=30, num_test=10, num_validation=15)
    np.testing.assert_array_equal(plain.train, held.train)
    np.testing.assert_array_equal(plain.test, held.test)
    assert len(plain.validation) == 0
    assert len(set(held.train) | set(held.validation)) == 45
    assert held.test.max() < 20
    for rows in held:
        assert (np.diff(rows) > 0).all()
    more = splits.split(50, 20, num_train=30, num_validation=20)
    assert set(held.validation) < set(more.validation)
    everything = splits.split(50, 20)
    np.testing.assert_array_equal(everything.train, np.arange(50))
    np.testing.assert_array_equal(everything.test, np.arange(20))


def test_the_split_is_the_one_of_all_seeds_before():
    """Networks that were trained on a part stay networks of that part."""
    order = np.random.default_rng(0)
    train, test = order.permutation(50)[:7], order.permutation(20)[:5]
    found = splits.split(50, 20, num_train=7, num_test=5, num_validation=3)
    np.testing.assert_array_equal(found.train, np.sort(train))
    np.testing.assert_array_equal(found.test, np.sort(test))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_train": 51}, "num_train=51 is more than the 50 images"),
        ({"num_test": 21}, "num_test=21 is more than the 20 images"),
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"num_validation": 1}, "more than the 0 of 50 .* train on at most 49"),
        ({"num_train": 45, "num_validation": 6}, "more than the 5 of 50"),
        ({"num_validation": -1}, "num_validation=-1 must be at least 0"),
    ],
)
def test_more_than_there_is_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        splits.split(50, 20, **asked)
