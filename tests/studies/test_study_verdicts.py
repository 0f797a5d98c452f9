"""Verdicts on made-up figures: right where they agree, and where they do not."""

import dataclasses
import doctest
import math

import numpy as np
import pytest
from scipy import stats

from ntk_privacy.studies import (
    figures,
    item,
    items,
    loo_outliers,
    rdm_lemma,
    verdict,
)

NAMES = ("above", "below")


def test_an_order_that_every_draw_shows_holds():
    part = verdict.above("told", [1.0, 1.2, 0.9])
    assert part.holds
    assert verdict.of_parts([part]) == "agrees"
    assert verdict.below("told", [-1.0, -1.2, -0.9]).holds


def test_the_opposite_is_refuted_and_noise_decides_nothing():
    assert verdict.above("told", [-1.0, -1.2, -0.9]).holds is False
    assert verdict.above("told", [3.0, -2.0, 0.1]).holds is None
    good, bad, open_ = (
        verdict.above("told", values)
        for values in ([1.0, 1.2, 0.9], [-1.0, -1.2, -0.9], [3.0, -2.0, 0.1])
    )
    assert verdict.of_parts([good, open_]) == "undecided"
    assert verdict.of_parts([good, open_, bad]) == "differs"
    assert verdict.of_parts([open_, bad]) == "refuted"
    assert verdict.of_parts([]) == "none yet"


def test_one_draw_decides_nothing():
    part = verdict.above("told", [100.0])
    assert (part.low, part.high, part.holds) == (-math.inf, math.inf, None)


@pytest.mark.parametrize("num_draws", [3, 5])
def test_the_interval_misses_the_truth_as_often_as_it_says(num_draws):
    draws = np.random.default_rng(0).normal(1.0, 2.0, (4000, num_draws))
    missed = np.mean([verdict.above("", values, 1.0).holds is True for values in draws])
    assert abs(missed - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 4000)


def test_shares_have_the_exact_interval():
    part = verdict.share_below("told", 0, 15, 0.2)
    assert part.high == pytest.approx(1 - 0.05 ** (1 / 15))
    assert part.holds
    assert verdict.share_below("told", 0, 5, 0.2).holds is None
    assert verdict.share_below("told", 15, 15, 0.2).holds is False
    part = verdict.share_above("told", 9, 15, 0.6)
    assert stats.binom.sf(8, 15, part.low) == pytest.approx(0.05)
    assert stats.binom.cdf(9, 15, part.high) == pytest.approx(0.05)
    assert part.holds is None


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: verdict.above("", []), "num_draws"),
        (lambda: verdict.above("", [math.nan]), "NaN"),
        (lambda: verdict.share_above("", 3, 2, 0.5), "successes"),
        (lambda: verdict.share_above("", 0, 0, 0.5), "trials"),
    ],
)
def test_what_is_no_figure_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


@dataclasses.dataclass(frozen=True)
class Point:
    width: int
    number: int


def _rows(value, draws=(0, 1, 2)):
    return [
        item.Row(Point(w, n), draw, {"error": value(w, n, draw)})
        for w in (8, 16)
        for n in (1, 2)
        for draw in draws
    ]


def test_pairs_are_of_one_draw_and_differ_in_one_field():
    # A draw's own level is large, and falls out.
    rows = _rows(lambda w, n, draw: 100.0 * draw + n + 1 / w)
    found = item.paired(rows, "error", of="number", one=2, other=1)
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0])
    found = item.paired(rows, "error", of="width", one=8, other=16, number=2)
    np.testing.assert_allclose(found, [1 / 16] * 3)
    np.testing.assert_allclose(
        item.by_draw(rows, "error", width=8), [1.625, 101.625, 201.625]
    )
    with pytest.raises(ValueError, match="no pair"):
        item.paired(rows, "error", of="width", one=8, other=99)
    with pytest.raises(ValueError, match="no row"):
        item.by_draw(rows, "error", width=99)


def test_a_line_waits_for_all_its_draws():
    rows = _rows(lambda w, n, draw: float(n))
    places, values = figures.line(rows, "error", of="number", width=8)
    assert places == [1, 2]
    np.testing.assert_array_equal(values, [[1.0, 2.0]] * 3)
    assert figures.line(rows[:-1], "error", of="number", width=16) is None
    assert figures.line(rows, "error", of="number", width=99) is None


def test_ranks_are_those_of_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=30), rng.integers(0, 5, 30).astype(float)
    expected = stats.spearmanr(one, other).statistic
    assert verdict.spearman(one, other) == pytest.approx(expected)
    with pytest.raises(ValueError, match="all numbers of a list are equal"):
        verdict.spearman([1.0, 2.0], [3.0, 3.0])


def test_leave_one_out_is_regression_on_the_others():
    rng = np.random.default_rng(0)
    root, residuals = rng.normal(size=(6, 9)), rng.normal(size=6)
    kernel = root @ root.T
    duals, missing = loo_outliers.left_out(kernel, residuals)
    np.testing.assert_allclose(kernel @ duals, residuals)
    for i in range(6):
        rest = np.delete(np.arange(6), i)
        known = np.linalg.solve(kernel[np.ix_(rest, rest)], residuals[rest])
        np.testing.assert_allclose(missing[i], residuals[i] - kernel[i, rest] @ known)


def test_a_threshold_is_the_best_there_is():
    rng = np.random.default_rng(0)
    is_poison = np.arange(200) < 40
    scores = rng.normal(size=200) + 2 * is_poison
    worst = [
        max(np.mean(scores[~is_poison] > t), np.mean(scores[is_poison] <= t))
        for t in scores
    ]
    found, at = rdm_lemma.separation(scores, is_poison)
    assert found == pytest.approx(min(worst))
    assert worst[list(scores).index(at)] == pytest.approx(found)


def test_docstrings_run():
    for module in (item, items, loo_outliers, rdm_lemma, verdict):
        failed, attempted = doctest.testmod(module)
        assert (failed, attempted > 0) == (0, True), module.__name__
