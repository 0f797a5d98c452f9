"""Crops, flips and CutMix: their laws, and what they read."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.data import crops


def images(n=3, h=6, w=8):
    return jax.random.normal(jax.random.key(0), (n, h, w, 2))


def test_the_whole_box_is_the_image():
    x = images()
    whole = jnp.asarray([[0, 0, 6, 8]])
    chex.assert_trees_all_close(crops.resized_crop(x, whole), x, atol=1e-12)
    each = jnp.tile(whole, (3, 1))
    chex.assert_trees_all_close(crops.resized_crop(x, each), x, atol=1e-12)


def test_a_crop_equals_a_resized_slice():
    x, boxes = images(), np.asarray([[1, 2, 3, 5], [0, 0, 2, 4], [4, 6, 1, 1]])
    found = crops.resized_crop(x, jnp.asarray(boxes))
    for image, (top, left, height, width), got in zip(x, boxes, found, strict=True):
        part = image[top : top + height, left : left + width]
        want = jax.image.resize(part, image.shape, "linear", antialias=False)
        chex.assert_trees_all_close(got, want, atol=1e-10)


@pytest.mark.parametrize("low", [0.08, 0.5, 1.0])
def test_boxes_fit_and_have_the_area_and_ratio_asked_for(low):
    size = (32, 24)
    boxes = np.asarray(
        crops.draw_boxes(jax.random.key(1), 4000, size=size, min_share=low)
    )
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 24).all()
    share = height * width / (32 * 24)
    # Sides are whole pixels.
    assert share.min() > low - 0.06
    if low < 1:
        assert share.max() > 0.9
        ratio = width / height
        assert 0.68 < ratio.min() < 0.8
        assert 1.25 < ratio.max() < 1.46
        # Every place is reached.
        small = (height < 20) & (width < 16)
        assert set(top[small] == 0) == ({True, False} if small.any() else set())


def test_cutmix_pastes_the_partner_into_the_window():
    x = images()
    mix = crops.Mix(jnp.asarray([1, 2, 0]), jnp.asarray([1, 2, 3, 4]))
    found = np.asarray(crops.mixed(x, mix))
    want = np.array(x)
    for i, partner in enumerate((1, 2, 0)):
        want[i, 1:4, 2:6] = np.asarray(x)[partner, 1:4, 2:6]
    np.testing.assert_array_equal(found, want)
    nothing = crops.Mix(mix.partner, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(crops.mixed(x, nothing), x)


def test_windows_of_cutmix_stay_inside_and_take_a_uniform_share():
    draw = jax.jit(jax.vmap(lambda k: crops.draw_mix(k, 5, size=(32, 32))))
    mixes = draw(jax.random.split(jax.random.key(2), 3000))
    top, left, height, width = np.asarray(mixes.window).T
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    assert (np.sort(mixes.partner, axis=1) == np.arange(5)).all()
    inner = (top > 0) & (left > 0) & (top + height < 32) & (left + width < 32)
    # Not cut at the border, a window is square.
    assert (height[inner] == width[inner]).all()
    # A uniform share of side sqrt(u), cut at the border: between 0.2 and 0.5.
    assert 0.2 < np.mean(height * width) / 1024 < 0.5


def test_shifts_and_flips():
    x = jnp.ones((64, 8, 8, 1))
    moved = crops.pad_crop_flip(jax.random.key(0), x, padding=2)
    filled = np.asarray(moved).mean((1, 2, 3))
    assert filled.min() == pytest.approx(36 / 64)
    assert filled.max() == pytest.approx(1)
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (64, 8, 8, 1))
    seen = np.asarray(crops.pad_crop_flip(jax.random.key(0), ramp, padding=0))
    mirrored = seen[:, 0, 0, 0] == 7
    assert 16 < mirrored.sum() < 48
    np.testing.assert_array_equal(seen[~mirrored], ramp[: (~mirrored).sum()])
    straight = crops.pad_crop_flip(jax.random.key(0), ramp, padding=0, flip=False)
    np.testing.assert_array_equal(straight, ramp)
