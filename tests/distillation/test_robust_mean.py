"""Robust means against NumPy, Lemma 4.1 by simulation, faults."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.distillation import robust_mean

METHODS = {
    "calibrated": robust_mean.calibrated,
    "truncated": robust_mean.truncated,
    "trimmed": robust_mean.trimmed,
    "quantum_entropy": robust_mean.quantum_entropy,
}


@functools.cache
def _mean(method):
    return jax.jit(method)


@functools.cache
def _kept(method):
    return jax.jit(method.kept)


def _features(n=40, d=15, rate=0.1, distance=8.0, seed=0):
    """Poison of one direction, last."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d))
    x[n - round(rate * n) :, 0] += distance
    return x


def _drop(x, scores, rate):
    keep = len(x) - math.ceil(round(3 * rate * len(x), 9))
    return x[np.argsort(scores, kind="stable")[:keep]].mean(0)


def _reference(name, x, rate):
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (len(x) - 1)
    values, vectors = np.linalg.eigh(covariance)
    if name == "calibrated":
        return _drop(x, np.abs(centred @ vectors[:, -1]), rate)
    if name == "truncated":
        return _drop(x, np.linalg.norm(centred, axis=1), rate)
    if name == "quantum_entropy":
        weight = np.exp(4 * (values / values[-1] - 1))
        return _drop(x, ((centred @ vectors) ** 2) @ weight, rate)
    side = math.ceil(round(3 * rate * len(x), 9)) // 2
    return np.sort(x, axis=0)[side : len(x) - side].mean(0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("n", "rate"), [(40, 0.1), (37, 0.05), (10, 0.0)])
def test_each_is_its_numpy_reference(name, n, rate):
    x = _features(n)
    found = _mean(METHODS[name](rate=rate))(jnp.asarray(x))
    np.testing.assert_allclose(found, _reference(name, x, rate), rtol=1e-10)


def test_mean_and_median_are_numpy_s():
    for n in (6, 7):
        x = _features(n)
        np.testing.assert_allclose(robust_mean.mean(jnp.asarray(x)), x.mean(0))
        np.testing.assert_allclose(robust_mean.median(jnp.asarray(x)), np.median(x, 0))
        compiled = jax.jit(robust_mean.median)(jnp.asarray(x))
        np.testing.assert_allclose(compiled, np.median(x, 0))


@pytest.mark.parametrize("name", METHODS)
def test_without_poison_to_expect_it_is_the_mean(name):
    x = jnp.asarray(_features())
    chex.assert_trees_all_close(METHODS[name](rate=0.0)(x), x.mean(0), rtol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_order_does_not_matter_nor_does_the_axis_of_classes(name):
    method = METHODS[name](rate=0.1)
    x = jnp.asarray(_features())
    once = _mean(method)(x)
    chex.assert_trees_all_close(_mean(method)(x[::-1]), once, rtol=1e-10)
    both = jax.jit(jax.vmap(method))(jnp.stack([x, x + 1]))
    chex.assert_trees_all_close(both, jnp.stack([once, once + 1]), rtol=1e-9)


@pytest.mark.parametrize("name", ["calibrated", "truncated", "quantum_entropy"])
def test_the_poison_is_dropped_and_equal_copies_of_it_too(name):
    method = METHODS[name](rate=0.1)
    x = _features()
    assert not method.kept(jnp.asarray(x))[-4:].any()
    x[-4:] = x[-1]
    kept = method.kept(jnp.asarray(x))
    assert int(kept.sum()) == 40 - 12
    assert not kept[-4:].any()


def test_quantum_entropy_lies_between_truncation_and_calibration():
    x = jnp.asarray(_features(distance=3.0))
    flat = robust_mean.quantum_entropy(rate=0.1, sharpness=0.0)
    chex.assert_trees_all_equal(flat.kept(x), robust_mean.truncated(rate=0.1).kept(x))
    sharp = robust_mean.quantum_entropy(rate=0.1, sharpness=1e4)
    exact = robust_mean.calibrated(rate=0.1, num_iterations=2000)
    chex.assert_trees_all_equal(sharp.kept(x), exact.kept(x))
    # Two poisons along two directions: the top eigenvector sees one of them.
    x = _features(100, 15, 0.0)
    x[-10:-5, 0] += 9
    x[-5:, 1] += 7
    entropy = robust_mean.quantum_entropy(rate=0.05)
    assert not entropy.kept(jnp.asarray(x))[-10:].any()
    top = robust_mean.calibrated(rate=0.05, num_iterations=500)
    assert top.kept(jnp.asarray(x))[-5:].any()


def test_poisoned_deviation_is_the_poison_s_share_of_the_mean():
    x = jnp.asarray(_features())
    poison = jnp.arange(40) >= 36
    want = np.linalg.norm(np.asarray(x)[36:].sum(0)) / 40
    np.testing.assert_allclose(robust_mean.poisoned_deviation(x, poison), want)
    kept = jnp.arange(40) < 37
    want = np.linalg.norm(np.asarray(x)[36]) / 37
    np.testing.assert_allclose(robust_mean.poisoned_deviation(x, poison, kept), want)


def test_calibration_takes_the_deviation_from_order_eps_to_eps_squared():
    """Lemma 4.1 with its condition: squared distance 5 sigma^2 / eps, alpha > 4.63.

    Clean and poisoned representations are uniform on [0, 1]^d, so of norm of order
    sqrt(d), and differ by a shift along the diagonal.
    """
    n, d = 2000, 64
    sigma = 12**-0.5

    @jax.jit
    def plain(x, poison):
        return robust_mean.poisoned_deviation(x, poison)

    for rate in (0.05, 0.1):
        random = np.random.default_rng(1)
        poison = np.arange(n) < rate * n
        x = random.random((n, d))
        x[poison] += (5 * sigma**2 / rate / d) ** 0.5
        x, poison = jnp.asarray(x), jnp.asarray(poison)
        kept = _kept(robust_mean.calibrated(rate=rate))(x)
        order = rate * d**0.5
        before = float(plain(x, poison))
        after = float(robust_mean.poisoned_deviation(x, poison, kept))
        assert 0.5 * order < before < 2 * order
        assert after < rate * order
        # And the mean itself moves to the clean one.
        x, poison, kept = np.asarray(x), np.asarray(poison), np.asarray(kept)
        clean = x[~poison].mean(0)
        error, moved = x[kept].mean(0) - clean, x.mean(0) - clean
        assert np.linalg.norm(error) < 0.7 * np.linalg.norm(moved)


@pytest.mark.parametrize(
    ("n", "rate", "dropped"),
    [(256, 0.1, 77), (256, 0.01, 8), (10, 0.1, 3), (10, 0.0, 0), (100, 0.33, 99)],
)
def test_the_number_dropped(n, rate, dropped):
    assert robust_mean.num_dropped(n, rate) == dropped


def test_rates_are_of_one_class():
    assert robust_mean.class_level(0.01, 10) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"rate=0\.5 must lie in \[0, 1/3\)"):
        robust_mean.class_level(0.05, 10)


@pytest.mark.parametrize("name", METHODS)
def test_rates_and_samples_out_of_range_are_refused(name):
    for rate in (-0.1, 1 / 3, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1/3\)"):
            METHODS[name](rate=rate)
    with pytest.raises(ValueError, match="drops 3 of 3 samples: give more"):
        METHODS[name](rate=0.3)(jnp.ones((3, 2)))
    assert METHODS[name](rate=0.1) == METHODS[name](rate=0.1)
    assert hash(METHODS[name](rate=0.1)) != hash(METHODS[name](rate=0.2))


def test_further_options_are_checked():
    with pytest.raises(ValueError, match="num_iterations=4 must be at least 5"):
        robust_mean.calibrated(num_iterations=4)
    with pytest.raises(ValueError, match=r"sharpness=-1\.0 must be at least 0"):
        robust_mean.quantum_entropy(sharpness=-1.0)


def test_float32_stays_and_equal_rows_are_no_fault():
    x = jnp.ones((20, 3), jnp.float32)
    for method in METHODS.values():
        out = _mean(method(rate=0.1))(x)
        assert out.dtype == jnp.float32
        chex.assert_trees_all_close(out, jnp.ones(3, jnp.float32))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_no_scale_is_too_small_or_too_large_for_float32(name, scale):
    x = _features(distance=30.0)
    found = _mean(METHODS[name](rate=0.1))(jnp.asarray(scale * x, jnp.float32))
    # The poison is far out, so that no rounding changes who is dropped last.
    want = scale * _reference(name, x, 0.1)
    assert np.abs(np.asarray(found) - want).max() < 1e-5 * scale
    if name != "trimmed":
        kept = METHODS[name](rate=0.1).kept(jnp.asarray(scale * x, jnp.float32))
        assert not kept[-4:].any()


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_near_float32(name):
    method = METHODS[name](rate=0.1)
    x = jnp.asarray(_features(), jnp.float32)
    found = method(x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert float(jnp.abs(found.astype(jnp.float32) - method(x)).max()) < 0.3


def test_poisoned_deviation_at_any_scale():
    x, poison = _features(), jnp.arange(40) >= 36
    want = float(robust_mean.poisoned_deviation(jnp.asarray(x), poison))
    for scale in (1e-30, 1e30):
        scaled = jnp.asarray(scale * x, jnp.float32)
        found = float(robust_mean.poisoned_deviation(scaled, poison))
        assert found == pytest.approx(scale * want, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 39])
def test_a_row_that_is_not_finite_is_told(bad, row):
    x = _features()
    x[row, 2] = bad
    x = jnp.asarray(x)
    methods = [make(rate=0.1) for make in METHODS.values()]
    for method in [*methods, robust_mean.mean, robust_mean.median]:
        with pytest.raises(ValueError, match=f"features has NaN.* in row {row}: rep"):
            method(x)
        # Within a program, where nothing can be raised.
        assert not np.isfinite(_mean(method)(x)).all()
        if isinstance(method, robust_mean.Selection):
            with pytest.raises(ValueError, match="features has NaN"):
                method.kept(x)
            assert not _kept(method)(x).any()
