"""Candidates that show one image are one candidate."""

import numpy as np

from ntk_privacy.reconstruction.candidates import distinct


def test_candidates_that_show_the_same_image_are_merged():
    a, b, c = np.eye(3).reshape(3, 1, 3, 1)
    images = np.stack([a, 1.1 * a, 0.1 * b, c, -a])
    duals = np.asarray([1.0, 0.5, 1.0, -2.0, 0.3]).reshape(1, 5, 1)
    kept, sums, rest = distinct(images, duals, 2)
    np.testing.assert_array_equal(kept, [3, 0])
    np.testing.assert_array_equal(sums[0, :, 0], [-2.0, 1.5])
    np.testing.assert_array_equal(rest, [2, 4])
    assert len(distinct(images, duals, 9)[0]) == 4
