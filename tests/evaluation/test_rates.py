"""Means and deviations as all tables give them."""

import statistics

import numpy as np
import pytest

from ntk_privacy.evaluation import rates


def test_the_deviation_is_that_of_a_sample():
    values = [0.31, 0.35, 0.33, 0.42]
    rate = rates.mean_and_deviation(values)
    assert rate.mean == pytest.approx(statistics.mean(values))
    assert rate.deviation == pytest.approx(statistics.stdev(values))
    assert rates.in_percent(np.asarray(values)) == "35.2 +- 4.8"
    # Decisions are shares, too.
    assert rates.in_percent(np.asarray([True, False])) == "50.0 +- 70.7"


def test_it_is_right_on_average_where_few_runs_are_drawn():
    """The population formula would give half the variance of pairs."""
    draws = np.random.default_rng(0).normal(size=(4000, 2))
    squares = [(rates.mean_and_deviation(pair).deviation or 0) ** 2 for pair in draws]
    assert np.mean(squares) == pytest.approx(1, abs=0.1)


def test_a_single_run_has_no_deviation():
    assert rates.mean_and_deviation([0.5]) == (0.5, None)
    assert rates.in_percent([0.5]) == "50.0"
    assert rates.mean_and_deviation([0.5]).scaled(100) == (50, None)
    # Equal runs have one, of 0.
    assert rates.in_percent([0.5, 0.5], digits=2) == "50.00 +- 0.00"
    assert rates.mean_and_deviation([1, 3]).scaled(2) == (4, pytest.approx(8**0.5))
    with pytest.raises(ValueError, match="values is empty"):
        rates.mean_and_deviation([])
