"""Kernel distance: its formula, its bounds, a case by hand."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy.evaluation.kernel_distance import kernel_distance


def _kernel(seed, n=5):
    a = jax.random.normal(jax.random.key(seed), (n, n))
    return a @ a.T


def test_distance_is_one_less_the_cosine():
    k_0, k_t = _kernel(0), _kernel(1)
    cosine = np.trace(k_0.T @ k_t) / np.linalg.norm(k_0) / np.linalg.norm(k_t)
    np.testing.assert_allclose(kernel_distance(k_0, k_t), 1 - cosine, rtol=1e-12)
    np.testing.assert_allclose(kernel_distance(k_t, k_0), 1 - cosine, rtol=1e-12)


def test_a_case_by_hand():
    # <I, 1> = 2, norms sqrt(2) and 2: 1 - 1/sqrt(2).
    distance = kernel_distance(jnp.eye(2), jnp.ones((2, 2)))
    np.testing.assert_allclose(distance, 1 - 0.5**0.5, rtol=1e-12)


def test_parallel_is_zero_orthogonal_one_opposite_two():
    k = _kernel(0)
    # Exactly: 1 - cosine would leave some 1e-16.
    assert kernel_distance(k, k) == 0
    np.testing.assert_allclose(kernel_distance(k, 7 * k), 0, atol=1e-30)
    np.testing.assert_allclose(kernel_distance(k, -3 * k), 2, rtol=1e-12)
    apart = kernel_distance(
        jnp.diag(jnp.array([1.0, 0])), jnp.diag(jnp.array([0, 1.0]))
    )
    np.testing.assert_allclose(apart, 1, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kernels_lie_between_zero_and_one(seed):
    assert 0 <= kernel_distance(_kernel(seed), _kernel(seed + 10)) <= 1


@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1e18, 1e34])
def test_entries_whose_squares_leave_float32_are_fine(scale):
    k_0, k_t = (scale * _kernel(s).astype(jnp.float32) for s in (0, 1))
    got = kernel_distance(k_0, k_t)
    chex.assert_type(got, jnp.float32)
    np.testing.assert_allclose(got, kernel_distance(_kernel(0), _kernel(1)), rtol=1e-4)


def test_kernels_that_have_no_direction_are_refused():
    k, zero = _kernel(0), jnp.zeros((5, 5))
    with pytest.raises(ValueError, match="k_0 is zero everywhere"):
        kernel_distance(zero, k)
    with pytest.raises(ValueError, match="k_t is zero everywhere"):
        kernel_distance(k, zero)
    for bad in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="k_t has 1 entries that are NaN"):
            kernel_distance(k, k.at[1, 2].set(bad))
    with pytest.raises(ValueError, match=r"k_0 has shape \(5, 5\) but k_t \(4, 4\)"):
        kernel_distance(k, _kernel(1, 4))
    # Nothing can be raised from within a program: NaN, never a number.
    inside = jax.jit(kernel_distance)
    for pair in ((zero, k), (k, zero), (zero, zero), (k, k.at[0, 0].set(jnp.inf))):
        assert np.isnan(inside(*pair))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("scale", [1e38, 3e-36])
def test_no_size_of_the_entries_is_too_large_or_small(dtype, scale):
    k = np.asarray(_kernel(0), dtype)
    k = k / np.abs(k).max()
    other = np.asarray(_kernel(1), dtype)
    expected = kernel_distance(k, other)
    scaled = (k * dtype(scale)).astype(dtype)
    found = kernel_distance(scaled, other)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Of constants a compiler may square what is small before it is scaled.
    if scale < 1:
        closed = jax.jit(lambda one: one * kernel_distance(scaled, other))(1.0)
        np.testing.assert_allclose(closed, expected, rtol=1e-4)


@pytest.mark.parametrize("k", [np.eye(2, dtype=int), np.ones((2, 2, 1, 1)), [[]]])
def test_what_is_no_kernel_is_told(k, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"k_0 is .* of shape .*: give a kernel of fl"):
        kernel_distance(k, k)
