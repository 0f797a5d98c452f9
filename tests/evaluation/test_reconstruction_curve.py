"""The matching equals its definition; the figures equal hand-made ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_privacy.evaluation import reconstruction_curve as rc


def _images(seed, n, h=8, w=8, c=1):
    return np.random.default_rng(seed).uniform(size=(n, h, w, c))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**31),
    st.sampled_from([2, 99]),
)
def test_one_sort_takes_the_pairs_of_the_repeated_minimum(n, m, seed, levels):
    # Two levels: nearly every entry ties with another.
    cost = np.random.default_rng(seed).integers(levels, size=(n, m)).astype(float)
    fast = rc.greedy_pairs(cost)
    slow = rc.greedy_pairs_by_repeated_minimum(cost)
    np.testing.assert_array_equal(fast, slow)
    assert len(fast[0]) == min(n, m)


def test_blocks_of_the_sorted_entries_join_up(monkeypatch):
    monkeypatch.setattr(rc, "_BLOCK", 7)
    cost = np.random.default_rng(0).uniform(size=(12, 30))
    np.testing.assert_array_equal(
        rc.greedy_pairs(cost), rc.greedy_pairs_by_repeated_minimum(cost)
    )


def test_greedy_is_not_the_optimal_assignment():
    # Greedy takes 0 first and must then pay 10; the optimum is 1 + 1.
    rows, columns = rc.greedy_pairs(np.array([[0.0, 1.0], [1.0, 10.0]]))
    np.testing.assert_array_equal(rows, [0, 1])
    np.testing.assert_array_equal(columns, [0, 1])


def test_a_permuted_noisy_copy_is_matched_back():
    images = _images(0, 10)
    permutation = np.random.default_rng(1).permutation(10)
    noise = 1e-3 * np.random.default_rng(2).standard_normal(images.shape)
    noisy = np.concatenate([(images + noise)[permutation], _images(3, 10)])
    out = rc.match(images, noisy)
    np.testing.assert_array_equal(
        permutation[out.reconstruction_index], out.train_index
    )
    expected = np.sort(np.sum(noise**2, axis=(1, 2, 3)))
    np.testing.assert_allclose(out.squared_distances, expected, rtol=1e-12)
    np.testing.assert_allclose(out.distances**2, out.squared_distances, rtol=1e-12)


def test_curve_is_that_of_the_repeated_minimum_of_exact_distances():
    images, found = _images(0, 7), _images(1, 15)
    exact = np.sum((images[:, None] - found[None]) ** 2, axis=(2, 3, 4))
    rows, columns = rc.greedy_pairs_by_repeated_minimum(exact)
    out = rc.match(images, found)
    np.testing.assert_array_equal(out.train_index, rows)
    np.testing.assert_array_equal(out.reconstruction_index, columns)
    np.testing.assert_allclose(out.squared_distances, np.sort(exact[rows, columns]))


def test_close_pairs_keep_their_digits():
    # A distance of 1e-10 drowns in |a|^2 + |b|^2 - 2ab; the pair's difference has it.
    images = 100 + _images(0, 3)
    found = images.copy()
    found[:, 0, 0, 0] += 2.0**-30
    out = rc.match(images, found)
    np.testing.assert_allclose(out.distances, 2.0**-30, rtol=1e-6)


def test_fewer_reconstructions_than_images_give_that_many_pairs():
    out = rc.match(_images(0, 6), _images(1, 2))
    assert len(out.distances) == 2
    assert sorted(out.reconstruction_index.tolist()) == [0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_reconstructions_come_last_at_distance_inf(bad):
    images = _images(0, 4)
    found = images.copy()
    found[1, 2, 3, 0] = bad
    out = rc.evaluate(images, found, mean=np.zeros(1))
    assert out.train_index[-1] == 1
    assert out.reconstruction_index[-1] == 1
    assert out.squared_distances[-1] == np.inf
    np.testing.assert_array_equal(out.squared_distances[:3], 0.0)
    # Spare candidates: the broken one is left out altogether.
    spare = rc.match(images, np.concatenate([found, 1 - images]))
    assert np.isfinite(spare.distances).all()


def test_nan_pixels_never_count_as_recovered():
    images = _images(0, 3)
    out = rc.evaluate(images, np.full_like(images, np.nan), mean=np.zeros(1))
    assert out.num_recovered == 0


def test_500_images_take_500_of_1000_reconstructions_nearest_first():
    images, found = _images(0, 500, 32, 32, 3), _images(1, 1000, 32, 32, 3)
    out = rc.match(images, found)
    assert len(set(out.train_index.tolist())) == 500
    assert len(set(out.reconstruction_index.tolist())) == 500
    assert (np.diff(out.squared_distances) >= 0).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 10, 3)])
def test_a_perfect_reconstruction_scores_ssim_1_and_infinite_psnr(shape):
    images = _images(0, 5, *shape)
    mean = images.mean(axis=(0, 1, 2))
    out = rc.evaluate(images - mean, images - mean, mean=mean)
    np.testing.assert_allclose(out.ssim, 1.0, atol=1e-5)
    np.testing.assert_array_equal(out.psnr, np.inf)
    assert out.num_recovered == 5
    assert out.mean_error == out.mean_squared_error == 0.0


def test_psnr_is_that_of_the_formula_and_decides_what_is_recovered():
    images = np.full((2, 8, 8, 1), 0.5)
    found = images + np.array([10**-1.24, 10**-1.26])[:, None, None, None]
    out = rc.evaluate(images, found, mean=np.zeros(1))
    np.testing.assert_allclose(out.psnr, [25.2, 24.8], rtol=1e-5)
    assert out.num_recovered == 1
    assert rc.evaluate(images, found, mean=np.zeros(1), recovered_psnr=20.0)[4] == 2
    edge = rc.squared_distance_at(25.0, (8, 8, 1))
    assert out.squared_distances[0] < edge < out.squared_distances[1]


def test_reconstructions_are_clipped_for_psnr_but_not_for_distances():
    mean = np.array([0.25])
    images = np.ones((1, 8, 8, 1)) - mean
    out = rc.evaluate(images, images + 1.0, mean=mean)
    assert out.psnr[0] == np.inf
    np.testing.assert_allclose(out.squared_distances, 64.0)


def test_ssim_falls_with_noise_and_separates_it_from_a_shift():
    images = 0.25 + 0.5 * _images(0, 4, 28, 28)
    noise = np.random.default_rng(1).standard_normal(images.shape)
    ssim = [
        rc.evaluate(images, images + s * noise, mean=np.zeros(1)).ssim.mean()
        for s in (0.01, 0.05, 0.2)
    ]
    assert 1 > ssim[0] > ssim[1] > ssim[2] > 0
    shifted = rc.evaluate(images, images + 0.05, mean=np.zeros(1))
    assert shifted.ssim.mean() > ssim[1]  # the same error, but structure is kept


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_jax_arrays_of_either_precision_give_the_same_figures(dtype):
    images, found = _images(0, 4, 9, 9, 3), _images(1, 6, 9, 9, 3)
    mean = np.full(3, 0.0)
    numpy_out = rc.evaluate(images, found, mean=mean)
    jax_out = rc.evaluate(*(jnp.asarray(a, dtype) for a in (images, found)), mean=mean)
    np.testing.assert_allclose(jax_out.ssim, numpy_out.ssim, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax_out.psnr, numpy_out.psnr, rtol=1e-5)
    assert jax.config.jax_enable_x64  # the float32 inside does not leak out


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8, 1)), "num_images=0 must be at least 1"),
        (np.full((2, 8, 8, 1), np.nan), "images has 128 values that are NaN"),
        (np.full((2, 8, 8, 1), 3.0), r"span \[3, 3\] but PSNR and SSIM need \[0, 1\]"),
    ],
)
def test_bad_images_are_one_clear_line(images, message):
    with pytest.raises(ValueError, match=message):
        rc.evaluate(images, np.zeros((2, 8, 8, 1)), mean=np.zeros(1))


def test_nothing_reconstructed_is_a_result():
    images = _images(0, 4)
    out = rc.evaluate(images, np.zeros((0, 8, 8, 1)), mean=np.zeros(1))
    assert out.num_recovered == 0
    for field in (out.squared_distances, out.distances, out.psnr, out.ssim):
        assert field.shape == (0,)
    assert out.mean_error == out.mean_squared_error == np.inf
    with pytest.raises(ValueError, match="num_images=0"):
        rc.evaluate(images[:0], images, mean=np.zeros(1))
