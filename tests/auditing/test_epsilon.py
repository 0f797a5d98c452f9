"""The bound holds as often as it says, and says what it is."""

import sys

import numpy as np
import pytest

from ntk_privacy.auditing import epsilon, membership


@pytest.fixture
def auditor():
    # First, and outside the warnings of the tests: it imports other people's modules.
    return pytest.importorskip("jax_privacy.auditing")


def test_scores_apart_rule_out_what_the_binomial_tail_says(auditor):
    found = epsilon.lower_bound(np.ones(16), np.zeros(16), delta=1e-12)
    # 16 right guesses of 16 have probability (1 + exp(-epsilon))^-16 at most.
    rate = (0.05 / 3) ** (1 / 16)
    assert found.epsilon == pytest.approx(np.log(rate / (1 - rate)), rel=1e-3)
    assert found.num_images == 32
    assert f"({found.epsilon:.2f}, 1e-12)" in found.told
    assert "95% confidence" in found.told
    assert "no guarantee" in found.told


@pytest.mark.parametrize("true", [0.0, 0.5, 2.0])
def test_randomized_response_is_overstated_as_seldom_as_promised(auditor, true):
    rng = np.random.default_rng(0)
    bounds = []
    for _ in range(400):
        members = rng.random(60) < 0.5
        honest = rng.random(60) < 1 / (1 + np.exp(-true))
        # Ties are broken by what knows nothing of members.
        scores = np.where(honest, members, ~members) + 0.5 * rng.random(60)
        one, other = scores[members], scores[~members]
        bounds.append(epsilon.lower_bound(one, other, confidence=0.9).epsilon)
    # Three standard deviations of a rate of 10% among 400.
    assert np.mean(np.asarray(bounds) > true) < 0.1 + 3 * np.sqrt(0.09 / 400)
    if true == 2.0:
        assert np.median(bounds) > 0.5


def test_more_of_one_kind_do_not_help(auditor):
    rng = np.random.default_rng(1)
    # All are called members, of whom there are 200 to 2.
    assert epsilon.lower_bound(rng.random(200), rng.random(2)).epsilon == 0
    few = epsilon.lower_bound(np.ones(4), np.zeros(4))
    assert epsilon.lower_bound(np.ones(4), np.zeros(400)) == few


def test_equal_scores_rule_out_nothing(auditor):
    found = epsilon.lower_bound(np.ones(20), np.ones(20))
    assert found.epsilon == 0
    assert "No epsilon is ruled out" in found.told


def test_without_the_library_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy.auditing", None)
    found = epsilon.lower_bound(np.ones(3), np.zeros(3))
    assert found.epsilon is None
    assert "ntk_privacy[audit]" in found.told
    assert membership.measured(np.ones(3), np.zeros(3)).epsilon == found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"delta": 0.0}, "delta=0.0 must lie between 0 and 1"),
        ({"confidence": 1.0}, "confidence=1.0 must lie"),
    ],
)
def test_bad_values_are_one_sentence(given, told):
    with pytest.raises(ValueError, match=told):
        epsilon.lower_bound(np.ones(3), np.zeros(3), **given)
    with pytest.raises(ValueError, match="num_others"):
        epsilon.lower_bound(np.ones(3), np.zeros(0))
