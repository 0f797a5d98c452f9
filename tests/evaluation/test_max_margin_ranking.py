"""The published post-processing, by hand."""

import numpy as np
import pytest

from ntk_privacy.evaluation import max_margin_ranking


def _images(n=4, seed=0, channels=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(n, 12, 12, channels))


def _centred(n=4, channels=1):
    images = _images(n, channels=channels)
    mean = images.mean(axis=0)
    return images - mean, mean


def test_distances_are_two_minus_twice_the_correlation_per_channel():
    a, b = _images(3, 1, channels=2), _images(5, 2, channels=2)
    got = max_margin_ranking.normalized_distances(a, b, downsample=False)
    for i in range(3):
        for j in range(5):
            r = [
                np.corrcoef(a[i, ..., c].ravel(), b[j, ..., c].ravel())[0, 1]
                for c in range(2)
            ]
            assert got[i, j] == pytest.approx(2 - 2 * np.mean(r), rel=1e-9)


def test_brightness_and_contrast_do_not_matter_but_the_sign_does():
    a = _images(3, channels=2)
    factor, shift = np.asarray([0.2, 3.0]), np.asarray([5.0, -1.0])
    for downsample in (False, True):
        got = max_margin_ranking.normalized_distances(
            a, np.concatenate([a * factor + shift, -a]), downsample=downsample
        )
        np.testing.assert_allclose(np.diag(got[:, :3]), 0, atol=1e-9)
        np.testing.assert_allclose(np.diag(got[:, 3:]), 4, atol=1e-9)


def test_downsampling_hides_the_finest_detail():
    a = _images(1)
    checkers = np.indices((12, 12)).sum(0) % 2 - 0.5
    b = a + 2 * checkers[None, :, :, None]
    full = max_margin_ranking.normalized_distances(a, b, downsample=False)
    half = max_margin_ranking.normalized_distances(a, b)
    assert full[0, 0] > 0.5
    assert half[0, 0] < 0.1


def test_the_nearest_candidate_is_stretched_and_ranked_by_ssim():
    x, mean = _centred(3)
    rng = np.random.default_rng(5)
    noisy = x[2] + 0.5 * rng.normal(size=x[2].shape)
    slightly = x[0] + 0.05 * rng.normal(size=x[0].shape)
    candidates = np.stack([noisy, 1.0 * x[1], slightly, rng.normal(size=x[0].shape)])
    got = max_margin_ranking.rank(x, candidates, mean=mean, downsample=False)
    assert got.train_index.tolist() == [1, 0, 2]
    assert got.reconstruction_index.tolist() == [1, 2, 0]
    assert (np.diff(got.ssim) <= 0).all()
    truth = x[1] + mean
    expected = (truth - truth.min()) / (truth.max() - truth.min())
    np.testing.assert_allclose(got.images[0], expected, atol=1e-12)
    assert got.mean_ssim_best == pytest.approx(got.ssim.mean())
    assert got.mean_dssim_best == pytest.approx((1 - got.ssim.mean()) / 2)
    assert got.distances[0] == pytest.approx(0, abs=1e-9)


def test_the_score_is_the_mean_of_the_best_ten():
    x, mean = _centred(15)
    got = max_margin_ranking.rank(x, _images(6, 9) - mean, mean=mean)
    assert got.mean_ssim_best == pytest.approx(np.sort(got.ssim)[-10:].mean())


def test_vote_mean_averages_all_within_the_ratio():
    x, mean = _centred(1 + 3)
    rng = np.random.default_rng(6)
    noise = 0.3 * rng.normal(size=x[:1].shape)
    # Two candidates at like distance, whose errors cancel, and one far off.
    candidates = np.concatenate([x[:1] + noise, x[:1] - noise, x[1:2]])
    d = max_margin_ranking.normalized_distances(x[:1], candidates)[0]
    ratio = 1.01 * max(d[:2]) / min(d[:2])
    assert d[2] > ratio * min(d[:2])
    got = max_margin_ranking.rank(
        x[:1], candidates, mean=mean, vote="mean", ratio=ratio
    )
    truth = max_margin_ranking.stretch(x[:1] + mean)
    np.testing.assert_allclose(got.images, truth, atol=1e-12)
    alone = max_margin_ranking.rank(x[:1], candidates, mean=mean)
    assert alone.ssim[0] < got.ssim[0]
    closest = candidates[alone.reconstruction_index] + mean
    np.testing.assert_allclose(
        alone.images, max_margin_ranking.stretch(closest), atol=1e-12
    )


def test_stretch_maps_each_image_to_the_unit_interval():
    images = np.asarray([[1.0, 3.0, 2.0, 1.0], [7.0, 7.0, 7.0, 7.0]])
    got = max_margin_ranking.stretch(images.reshape(2, 2, 2, 1)).reshape(2, 4)
    np.testing.assert_array_equal(got, [[0, 1, 0.5, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("vote", ["nearest", "mean"])
def test_broken_and_constant_candidates_are_passed_over(vote):
    x, mean = _centred(2)
    broken = np.full_like(x[:1], np.nan)
    candidates = np.concatenate([broken, 0 * broken + 0, np.zeros_like(broken), x])
    got = max_margin_ranking.rank(x, candidates, mean=mean, vote=vote)
    assert sorted(got.reconstruction_index.tolist()) == [3, 4]
    assert np.isfinite(got.images).all()
    with pytest.raises(ValueError, match="lower the attack's learning rates"):
        max_margin_ranking.rank(x, broken, mean=mean, vote=vote)


def test_bad_input_is_told_in_a_sentence():
    x, mean = _centred(2)
    with pytest.raises(ValueError, match="num_reconstructions=0 must be at least 1"):
        max_margin_ranking.rank(x, x[:0], mean=mean)
    with pytest.raises(ValueError, match=r"ratio=0\.9 must be at least 1"):
        max_margin_ranking.rank(x, x, mean=mean, ratio=0.9)
    with pytest.raises(ValueError, match="give the images and the mean image"):
        max_margin_ranking.rank(x, x, mean=mean + 1)
