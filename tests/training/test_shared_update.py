"""What clients send: identities, and the noise and the steps that are promised."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _versions
from ntk_privacy.training import gaussian_mechanism, shared_update

N, FEATURES = 6, 5
KEY = jax.random.key(3)


def _loss(params, x, y):
    outputs = jnp.tanh(x @ params["kernel"] + params["bias"][None])
    return jnp.mean((outputs - y) ** 2)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.standard_normal((FEATURES, 40)), jnp.float32),
        "bias": jnp.zeros(40, jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((N, FEATURES)), jnp.float32)
    # Sizes of gradients differ.
    y = jnp.asarray(rng.standard_normal((N, 40)) * (1 + np.arange(N)[:, None]))
    return params, x, y.astype(jnp.float32)


def _close(a, b, tolerance=1e-5):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        size = float(jnp.max(jnp.abs(v))) or 1.0
        np.testing.assert_allclose(u / size, v / size, atol=tolerance)


def _norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


def test_one_local_step_sends_a_multiple_of_the_gradient(problem):
    params, x, y = problem
    sent = shared_update.client_update(
        _loss, params, (x[None], y[None]), step_size=0.25
    )
    expected = jax.tree.map(lambda g: 0.25 * g, jax.grad(_loss)(*problem))
    _close(sent, expected, 1e-3)  # the difference of weights is rounded as they are


def test_local_steps_follow_one_another(problem):
    params, x, y = problem
    batches = x.reshape(3, 2, -1), y.reshape(3, 2, -1)
    sent = shared_update.client_update(_loss, params, batches, step_size=0.25)
    now = params
    for xb, yb in zip(*batches, strict=True):
        grads = jax.grad(_loss)(now, xb, yb)
        now = jax.tree.map(lambda p, g: p - 0.25 * g, now, grads)
    _close(sent, jax.tree.map(jnp.subtract, params, now), 1e-4)


def test_nothing_clipped_and_no_noise_is_the_gradient(problem):
    sent = shared_update.clipped_mean_gradient(
        _loss, *problem, clip_norm=jnp.inf, noise_multiplier=0.0, key=KEY
    )
    _close(sent, jax.grad(_loss)(*problem))


def test_each_gradient_is_clipped_by_itself(problem):
    params, x, y = problem
    each = [jax.grad(_loss)(params, x[i : i + 1], y[i : i + 1]) for i in range(N)]
    norms = [_norm(g) for g in each]
    clip = float(np.median(norms))
    shares = [min(1.0, clip / size) for size in norms]
    assert min(shares) < 0.9
    assert max(shares) == 1
    expected = jax.tree.map(
        lambda *gs: sum(s * g for s, g in zip(shares, gs, strict=True)) / N, *each
    )
    sent = jax.jit(functools.partial(shared_update.clipped_mean_gradient, _loss))(
        params, x, y, clip_norm=clip, noise_multiplier=0.0, key=KEY
    )
    _close(sent, expected)


def test_noise_has_the_deviation_that_privacy_counts_on(problem):
    sent = [
        shared_update.clipped_mean_gradient(
            _loss, *problem, clip_norm=0.5, noise_multiplier=sigma, key=KEY
        )
        for sigma in (0.0, 4.0)
    ]
    noise = jax.tree.map(jnp.subtract, sent[1], sent[0])
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(noise)])
    # 240 numbers: 4.6% of a standard deviation is one of its own.
    assert np.std(flat) == pytest.approx(4.0 * 0.5 / N, rel=0.2)
    kernel, bias = noise["kernel"], noise["bias"]
    assert abs(np.corrcoef(kernel[0], bias)[0, 1]) < 0.6


def test_top_k_keeps_the_largest_of_every_leaf(problem):
    params = problem[0] | {"bias": jnp.arange(40.0) - 30}
    _close(shared_update.top_k(params, share=1.0), params, 0)
    kept = shared_update.top_k(params, share=0.1)
    for leaf, whole in zip(jax.tree.leaves(kept), jax.tree.leaves(params), strict=True):
        assert int(jnp.sum(leaf != 0)) == round(0.1 * whole.size)
        dropped = jnp.where(leaf == 0, jnp.abs(whole), 0)
        assert float(jnp.max(dropped)) <= float(jnp.min(jnp.abs(leaf[leaf != 0])))
        np.testing.assert_array_equal(leaf[leaf != 0], whole[leaf != 0])
    assert int(jnp.sum(shared_update.top_k(params, share=1e-9)["bias"] != 0)) == 1


@pytest.mark.parametrize("bits", [2, 8])
def test_quantised_values_are_within_half_a_step(problem, bits):
    params = problem[0]
    sent = shared_update.quantise(params, bits=bits)
    step = float(jnp.max(jnp.abs(params["kernel"]))) / (2 ** (bits - 1) - 1)
    error = jnp.max(jnp.abs(sent["kernel"] - params["kernel"]))
    assert float(error) <= step / 2 * (1 + 1e-4)
    assert len(np.unique(sent["kernel"])) <= 2**bits - 1
    assert not np.any(sent["bias"])


def test_a_key_rounds_at_random_and_without_bias():
    values = jnp.concatenate([jnp.array([1.0, -1.0]), jnp.full(20_000, 0.3)])
    same = [shared_update.quantise(values, bits=3) for _ in range(2)]
    np.testing.assert_array_equal(same[0], same[1])
    drawn = [
        shared_update.quantise(values, bits=3, key=jax.random.key(k)) for k in (0, 1)
    ]
    assert np.any(drawn[0] != drawn[1])
    assert len(np.unique(drawn[0][2:])) == 2
    # Of a step of 1/3: a standard deviation of the mean is 0.0007.
    assert np.mean(drawn[0][2:]) == pytest.approx(0.3, abs=0.005)
    np.testing.assert_allclose(drawn[0][:2], values[:2], rtol=1e-6)


def test_bad_input_is_told_in_one_sentence(problem):
    params, x, y = problem
    with pytest.raises(ValueError, match=r"share=0.* must lie in \(0, 1\]"):
        shared_update.top_k(params, share=0.0)
    with pytest.raises(ValueError, match=r"bits=1 must lie in \[2, 16\]"):
        shared_update.quantise(params, bits=1)
    private = functools.partial(shared_update.clipped_mean_gradient, _loss, params)
    with pytest.raises(ValueError, match=r"clip_norm=0\.0 must be above 0"):
        private(x, y, clip_norm=0.0, noise_multiplier=0.0, key=KEY)
    with pytest.raises(ValueError, match="clip to a finite one, or add none"):
        private(x, y, clip_norm=jnp.inf, noise_multiplier=1.0, key=KEY)
    with pytest.raises(ValueError, match="noise_multiplier=-1"):
        private(x, y, clip_norm=1.0, noise_multiplier=-1.0, key=KEY)
    with pytest.raises(ValueError, match="labels has 5 rows"):
        private(x, y[:5], clip_norm=1.0, noise_multiplier=0.0, key=KEY)
    batches = x.reshape(3, 2, -1), y.reshape(3, 2, -1)[:2]
    with pytest.raises(ValueError, match="labels has 2 rows"):
        shared_update.client_update(_loss, params, batches, step_size=0.1)


def _delta_by_integration(sigma, epsilon):
    """The hockey-stick divergence of two normal variables one apart."""
    z = np.linspace(-30 * sigma, 30 * sigma + 1, 2_000_001)
    p, q = (np.exp(-(((z - m) / sigma) ** 2) / 2) for m in (1, 0))
    excess = np.maximum(p - np.exp(epsilon) * q, 0) / (sigma * np.sqrt(2 * np.pi))
    return float(np.sum(excess) * (z[1] - z[0]))


@pytest.mark.parametrize(("sigma", "epsilon"), [(0.5, 3.0), (1.0, 0.0), (4.0, 0.5)])
def test_delta_is_the_divergence_of_the_two_releases(sigma, epsilon):
    found = gaussian_mechanism.delta(sigma, epsilon=epsilon)
    assert found == pytest.approx(_delta_by_integration(sigma, epsilon), rel=1e-6)


@pytest.mark.parametrize("sigma", [1e-8, 1e-3, 0.3, 1.0, 50.0])
def test_epsilon_is_the_inverse_of_delta(sigma):
    epsilon = gaussian_mechanism.epsilon(sigma, delta=1e-5)
    assert gaussian_mechanism.delta(sigma, epsilon=epsilon) == pytest.approx(
        1e-5, rel=1e-4
    )
    assert gaussian_mechanism.epsilon(1.1 * sigma, delta=1e-5) < epsilon


def test_enough_noise_needs_no_epsilon():
    assert gaussian_mechanism.epsilon(1e6, delta=1e-5) == 0
    with pytest.raises(ValueError, match=r"delta=0\.0 must lie between 0 and 1"):
        gaussian_mechanism.epsilon(1.0, delta=0.0)
    with pytest.raises(ValueError, match=r"noise_multiplier=0\.0 must be above 0"):
        gaussian_mechanism.epsilon(0.0)


@pytest.mark.parametrize("module", [shared_update, gaussian_mechanism])
def test_the_examples_print_what_they_say(module):
    with _versions.enable_x64(False):
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert failed == 0
