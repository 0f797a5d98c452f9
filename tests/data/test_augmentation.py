"""Augmentation: what each operation does, siamese sharing, gradients, dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.data import augmentation

SHAPE = (5, 8, 8, 3)
KEY = jax.random.key(0)
jitted = jax.jit(augmentation.augment, static_argnames=("operations", "siamese"))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), SHAPE)


def test_translation_moves_whole_pixels_and_fills_with_zero(x):
    down, right = jnp.array([2, 0, -3, 8, 1]), jnp.array([0, -1, 4, 0, 1])
    moved = np.asarray(augmentation.translate(x, down, right))
    for image, out, a, b in zip(np.asarray(x), moved, down, right, strict=True):
        want = np.zeros_like(image)
        for i in range(8):
            for j in range(8):
                if 0 <= i - a < 8 and 0 <= j - b < 8:
                    want[i, j] = image[i - a, j - b]
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(("size", "row", "hit"), [(4, 0, 2), (4, 8, 2), (3, 4, 3)])
def test_a_cut_window_is_clamped_to_the_image(x, size, row, hit):
    cut = augmentation.cut_out(x, jnp.array([row]), jnp.array([4]), (size, size))
    zeros = np.asarray(cut == 0).all((0, 3))
    assert zeros.sum() == hit * size
    top = max(0, row - size // 2)
    assert zeros[top : top + hit, 4 - size // 2 : 4 - size // 2 + size].all()
    np.testing.assert_array_equal(cut[:, ~zeros], x[:, ~zeros])


def _bilinear(image, matrix):
    """One pixel at a time."""
    h, w = image.shape[:2]
    out = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            u, v = matrix @ [(2 * j + 1) / w - 1, (2 * i + 1) / h - 1]
            column, row = ((u + 1) * w - 1) / 2, ((v + 1) * h - 1) / 2
            for a in range(h):
                for b in range(w):
                    weight = max(0, 1 - abs(row - a)) * max(0, 1 - abs(column - b))
                    out[i, j] += weight * image[a, b]
    return out


def test_warps_are_bilinear_with_zeros_outside(x):
    x = x[:2, :, :6]  # not square
    matrices = jnp.array([[[1.2, 0.0], [0.0, 0.9]], [[0.96, -0.28], [0.28, 0.96]]])
    found = jax.jit(augmentation.warp)(x, matrices)
    for image, matrix, out in zip(x, matrices, found, strict=True):
        want = _bilinear(np.asarray(image), np.asarray(matrix))
        np.testing.assert_allclose(out, want, atol=1e-12)
    eye = jnp.eye(2)[None]
    chex.assert_trees_all_close(augmentation.warp(x, eye), x, atol=1e-12)


@pytest.mark.parametrize("name", augmentation.OPERATIONS)
def test_the_gradient_is_that_of_finite_differences(x, name):
    images = x[:2]

    @jax.jit
    def total(images, key):
        out = augmentation.augment(key, images, operations=(name,))
        return jnp.sum(jnp.sin(out)), out

    for key in jax.random.split(KEY, 2):
        grad, out = jax.grad(total, has_aux=True)(images, key)
        direction = jax.random.normal(jax.random.key(3), images.shape)
        step = 1e-5
        up = total(images + step * direction, key)[0]
        down = total(images - step * direction, key)[0]
        slope = float((up - down) / (2 * step))
        assert out.shape == images.shape
        np.testing.assert_allclose(float(jnp.sum(grad * direction)), slope, rtol=1e-6)
        assert float(jnp.abs(grad).max()) > 0.01


@pytest.mark.parametrize("name", augmentation.OPERATIONS)
def test_siamese_batches_share_parameters_and_others_do_not(name):
    image = jnp.arange(192.0).reshape(1, 8, 8, 3) / 100
    five, two = jnp.tile(image, (5, 1, 1, 1)), jnp.tile(image, (2, 1, 1, 1))
    apart = same = 0
    for key in jax.random.split(KEY, 6):
        shared = jitted(key, five, operations=(name,), siamese=True)
        other = jitted(key, two, operations=(name,), siamese=True)
        # To rounding: programs of two batch sizes may fuse differently.
        chex.assert_trees_all_close(shared, jnp.tile(other[:1], (5, 1, 1, 1)))
        alone = jitted(key, five, operations=(name,))
        apart += int((alone != alone[:1]).any())
        same += int((shared != five).any())
    assert apart >= 2
    assert same >= 1


def test_the_operation_is_drawn_uniformly_and_shared_by_the_batch():
    names = ("flip", "cutout")
    x = 1 + jnp.arange(64.0).reshape(1, 8, 8, 1)
    draw = jax.jit(
        jax.vmap(lambda k: augmentation.augment(k, x, operations=names, siamese=True))
    )
    out = draw(jax.random.split(KEY, 400))
    cut = float((out == 0).any((1, 2, 3, 4)).mean())
    assert abs(cut - 0.5) < 0.08
    flipped = float((out == x[:, :, ::-1][None]).all((1, 2, 3, 4)).mean())
    assert abs(flipped - 0.25) < 0.07


def test_parameters_stay_in_the_published_ranges():
    x = jnp.ones((2000, 8, 8, 1))
    bright = jitted(KEY, x, operations=("color",))
    assert 0.5 <= float(bright.min()) < 0.51
    assert 1.49 < float(bright.max()) <= 1.5
    kept = jitted(KEY, x, operations=("crop",)).sum((2, 3)).max(1)  # columns kept
    assert set(np.asarray(kept)) == {7.0, 8.0}  # by 1 = int(0.125 * 8 + 0.5) at most
    area = jitted(KEY, x, operations=("cutout",)).sum((1, 2, 3))
    assert float(area.min()) == 64 - 16
    assert float(area.max()) == 64 - 4


def test_saturation_and_contrast_stay_in_the_published_ranges():
    grey = jnp.full((2000, 2, 2, 3), 2.0)
    tint = grey + jnp.array([-1.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    # What brightness adds leaves the gap of two channels alone.
    out = jitted(KEY, tint, operations=("color",))
    gap = np.asarray(out[:, 0, 0, 2] - out[:, 0, 0, 1])  # 2 u (v + 0.5)
    assert 0 <= gap.min() < 0.01
    assert 2.8 < gap.max() <= 3
    half = grey.at[:, 0].add(2)
    out = jitted(KEY, half, operations=("color",))
    gap = np.asarray(out[:, 0, 0, 0] - out[:, 1, 0, 0]) / 2  # v + 0.5
    assert 0.5 <= gap.min() < 0.51
    assert 1.49 < gap.max() <= 1.5


def test_scales_and_angles_stay_in_the_published_ranges(monkeypatch):
    monkeypatch.setattr(augmentation, "warp", lambda x, matrix: matrix[..., None])
    x = jnp.ones((2000, 2, 2, 1))
    scale, rotate = (
        np.asarray(draw(KEY, x, 2000))[..., 0]
        for draw in (augmentation._scale, augmentation._rotate)
    )
    factors = scale[:, [0, 1], [0, 1]]
    assert not scale[:, [0, 1], [1, 0]].any()
    assert 1 / 1.2 <= factors.min() < 1 / 1.2 + 0.002
    assert 1.198 < factors.max() <= 1.2
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.1  # independent of each other
    square = rotate @ rotate.transpose(0, 2, 1)
    np.testing.assert_allclose(
        square, np.broadcast_to(np.eye(2), (2000, 2, 2)), atol=1e-9
    )
    degrees = np.degrees(np.arctan2(rotate[:, 1, 0], rotate[:, 0, 0]))
    assert -15 <= degrees.min() < -14.9
    assert 14.9 < degrees.max() <= 15


def test_float32_stays_and_no_operation_is_the_identity(x):
    small = x.astype(jnp.float32)
    assert jitted(KEY, small, operations=augmentation.OPERATIONS).dtype == jnp.float32
    assert augmentation.augment(KEY, x, operations=()) is x
    assert "flip" not in augmentation.NO_FLIP
    with pytest.raises(ValueError, match="operations='blur' is unknown"):
        augmentation.augment(KEY, x, operations=("blur",))
