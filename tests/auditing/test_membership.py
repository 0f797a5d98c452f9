"""Members explain the change; the rates say no more than so few images can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _tree
from ntk_privacy.auditing import membership
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import Evidence

NET = MLP((48,), num_outputs=2)
X = jnp.asarray(np.random.default_rng(0).random((12, 3, 3, 1)))
PARAMS = NET.init_params(jax.random.key(0), (3, 3, 1), jnp.float64)


def _moved(duals):
    """Weights after a change that is a sum of gradients at the end, to first order."""
    pull = jax.vjp(lambda p: NET.apply_fn(p, X[: len(duals)]), PARAMS)[1]
    change = pull(jnp.asarray(duals))[0]
    # At the end: the gradients are those of PARAMS.
    return Evidence(
        network=NET,
        params_0=_tree.axpy(-1.0, change, PARAMS),
        params_t=PARAMS,
        image_shape=(3, 3, 1),
    )


def test_a_sum_of_gradients_is_explained_by_its_images_alone():
    duals = np.random.default_rng(1).normal(size=(4, 2)) * 1e-3
    shares = membership.explained_shares(_moved(duals), X)
    assert shares[:4].min() > 30 * shares[4:].max()
    assert np.all(shares >= 0)


def test_of_an_image_alone_the_share_is_the_whole():
    shares = membership.explained_shares(_moved(np.asarray([[0.02, -0.01]])), X[:1])
    assert shares[0] == pytest.approx(1, abs=0.01)


def test_any_network_is_taken_as_the_mlp_is():
    known = _moved(np.full((3, 2), 1e-3))
    other = Evidence(
        network=NET.apply_fn,
        params_0=known.params_0,
        params_t=known.params_t,
        image_shape=(3, 3, 1),
        num_outputs=2,
    )
    ours, theirs = (membership.explained_shares(one, X) for one in (known, other))
    assert np.allclose(ours, theirs, rtol=1e-5)


def test_rates_are_told_where_there_are_images_enough():
    few = membership.measured(np.ones(16), np.zeros(16))
    assert [rate.true_positives for rate in few.rates] == [None, None]
    assert "not known" in few.told
    assert "steps of 6.25%" in few.told
    some = membership.measured(np.ones(16), np.zeros(100))
    assert [rate.true_positives for rate in some.rates] == [1.0, None]
    many = membership.measured(np.ones(16), np.zeros(1000))
    assert [rate.true_positives for rate in many.rates] == [1.0, 1.0]
    assert "not known" not in many.told


def test_the_curve_is_that_of_the_definition():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.5, 1, 40), rng.normal(0, 1, 300)
    found = membership.measured(a, b)
    pairs = np.mean(a[:, None] > b) + 0.5 * np.mean(a[:, None] == b)
    assert found.area == pytest.approx(pairs)
    third = np.sort(b)[-4]  # three of 300 lie above: 1%
    assert found.rates[0].true_positives == np.mean(a > third)


def test_equal_scores_tell_nothing():
    found = membership.measured(np.ones(5), np.ones(500))
    assert found.area == 0.5
    assert found.rates[0].true_positives == 0


def test_bad_input_is_one_sentence():
    known = _moved(np.full((3, 2), 1e-3))
    with pytest.raises(ValueError, match="give from 1 to 2000 images"):
        membership.explained_shares(known, np.zeros((2001, 3, 3, 1)))
    still = Evidence(
        network=NET, params_0=PARAMS, params_t=PARAMS, image_shape=(3, 3, 1)
    )
    with pytest.raises(ValueError, match="did not change"):
        membership.explained_shares(still, X)
    with pytest.raises(ValueError, match="num_others"):
        membership.measured(np.ones(3), np.ones(0))


def test_few_images_tell_how_little_they_tell():
    told = membership.measured(np.ones(4), np.zeros(1)).told
    assert "in steps of 100%" in told
    assert "standard error of the area is at most 0.5" in told
