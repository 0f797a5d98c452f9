"""The rank of a change, and bounds as they are told."""

import numpy as np
import pytest

from ntk_privacy.reconstruction import change_factors
from ntk_privacy.reconstruction.verdict import told_bound


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dark", [0, 29])
def test_pixels_that_are_always_black_hide_no_rank(rank, dark):
    rng = np.random.default_rng(0)
    change = rng.random((64, rank)) @ rng.normal(size=(rank, 80))
    change += 1e-7 * rng.normal(size=change.shape)
    change[:dark] = 0  # to the bit
    found = change_factors.factorize(change)
    assert len(found.values) == rank
    assert found.gap > 1e3


@pytest.mark.parametrize("power", [-6, -3, -1])
def test_a_bound_holds_as_it_is_told(power):
    for bound in np.random.default_rng(0).uniform(1, 10, 50) * 10.0**power:
        told = float(told_bound(bound))
        assert bound <= told <= 2 * bound
    assert told_bound(0.0) == "0"
    assert told_bound(np.inf) == "inf"
    assert told_bound(9.4e-3) == "0.01"
