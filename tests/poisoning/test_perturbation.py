"""Crafting: the budget to the last bit, both orders of the sign, restarts, faults."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy.poisoning import perturbation

KEY = jax.random.key(0)
SHAPE = (3, 4, 4, 2)


def _images(levels=255, dtype=np.float32):
    random = np.random.default_rng(0)
    whole = random.integers(0, levels + 1, SHAPE)
    whole[0, 0], whole[1, 0] = 0, levels  # at both ends of the range
    return jnp.asarray(whole.astype(dtype) / dtype(levels))


def _goal(images, key, data):
    """Quadratic, with noise that the key draws."""
    noise = 0.1 * jax.random.normal(key, images.shape, images.dtype)
    return jnp.mean(jnp.square(images - data + noise))


def _craft(images, data, **kwargs):
    defaults = {
        "key": KEY,
        "bound": 16 / 255,
        "num_steps": 6,
        "num_restarts": 2,
        "num_draws": 3,
        "chunk": 4,
    }
    return perturbation.craft(images, _goal, data, **(defaults | kwargs))


@pytest.mark.parametrize("sign", ["after", "before"])
@pytest.mark.parametrize(
    ("bound", "step", "levels"), [(64, 1, 255), (128, 2, 255), (3, 1, 16)]
)
def test_the_budget_holds_to_the_last_bit(sign, bound, step, levels):
    images = _images(levels)
    options = {"bound": bound / levels, "step": step / levels, "levels": levels}
    out = _craft(images, 1 - images, sign=sign, **options)
    assert out.images.dtype == jnp.float32
    shift = np.asarray(out.images) * np.float32(levels) - np.asarray(images) * levels
    assert np.abs(np.rint(shift)).max() == bound
    # As bytes divided by their largest value: the bits that a file would give.
    whole = np.rint(np.asarray(out.images) * levels).astype(np.uint8)
    same = whole.astype(np.float32) / np.float32(levels)
    np.testing.assert_array_equal(np.asarray(out.images), same)
    clean = np.rint(np.asarray(images) * levels)
    assert np.abs(whole - clean).max() <= bound
    assert 0 <= float(out.images.min()) <= float(out.images.max()) <= 1


def _by_hand(images, data, sign, num_steps, bound):
    """One restart after the other, in units of 1/255; returns all ends."""
    clean = np.rint(np.asarray(images) * 255)
    key_start, key_step, _ = jax.random.split(KEY, 3)
    slope = jax.grad(lambda x, k: _goal(x, k, data))
    ends = []
    for r in range(2):
        start_key = jax.random.fold_in(key_start, r)
        u = jax.random.uniform(start_key, SHAPE, images.dtype, -1, 1)
        d = np.clip(clean + np.round(np.asarray(u) * bound), 0, 255) - clean
        m = v = 0.0
        for t in range(num_steps):
            key = jax.random.fold_in(key_step, r * num_steps + t)
            g = np.asarray(slope(jnp.asarray((clean + d) / 255), key)) / 255
            if sign == "after":
                m = 0.9 * m + 0.1 * g
                update = np.sign(m)
            else:
                g = np.sign(g)
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                count = t + 1
                update = m / (1 - 0.9**count)
                update /= np.sqrt(v / (1 - 0.999**count)) + 1e-8
            d = np.clip(d - update, -bound, bound)
            d = np.clip(clean + d, 0, 255) - clean
        ends.append(d)
    return ends, clean


@pytest.mark.parametrize("sign", ["after", "before"])
def test_it_is_the_published_loop_and_keeps_the_best_restart(sign):
    images = _images(dtype=np.float64)
    data = 1 - images
    out = _craft(images, data, sign=sign)
    ends, clean = _by_hand(images, data, sign, 6, 16)
    keys = jax.random.split(jax.random.split(KEY, 3)[2], 3)
    scores = [
        np.mean(
            [_goal(jnp.asarray((clean + np.round(d)) / 255), k, data) for k in keys]
        )
        for d in ends
    ]
    np.testing.assert_allclose(out.scores, scores, rtol=1e-10)
    best = ends[int(np.argmin(scores))]
    chex.assert_trees_all_close(out.images, (clean + np.round(best)) / 255, rtol=1e-12)
    assert out.losses.shape == (12,)


def test_the_sign_comes_after_by_default_and_a_lost_restart_is_not_taken():
    images = _images()
    out = _craft(images, 1 - images)
    chex.assert_trees_all_equal(out, _craft(images, 1 - images, sign="after"))
    first = int(np.argmin(out.scores))

    def lost(images, key, data):
        """NaN where the best restart would end."""
        gap = jnp.mean(jnp.square(images - out.images))
        return jnp.where(gap < 1e-9, jnp.nan, _goal(images, key, data))

    again = perturbation.craft(
        images,
        lost,
        1 - images,
        key=KEY,
        bound=16 / 255,
        num_steps=6,
        num_restarts=2,
        num_draws=3,
        chunk=4,
    )
    assert jnp.isinf(again.scores[first])
    assert again.scores[1 - first] == out.scores[1 - first]
    assert (again.images != out.images).any()


def test_with_time_it_reaches_what_the_bound_allows():
    images = _images(dtype=np.float64)
    target = jnp.where(images < 0.5, 1.0, 0.0)  # farther than the noise reaches
    out = _craft(images, target, num_steps=60, chunk=60)
    want = jnp.clip(target, images - 16 / 255, images + 16 / 255)
    chex.assert_trees_all_close(out.images, want, atol=1e-9)


def test_it_resumes_to_the_bit_within_a_restart():
    images = _images()
    states = []
    whole = _craft(images, 1 - images, callback=lambda n, s, m: states.append(s))
    assert [int(s.steps) for s in states] == [4, 8, 12]
    rest = _craft(images, 1 - images, state=states[1])
    chex.assert_trees_all_equal(rest.state, whole.state)
    chex.assert_trees_all_equal(rest.images, whole.images)
    assert not jnp.isinf(whole.scores).any()
    with pytest.raises(ValueError, match="repeat the options"):
        _craft(images, 1 - images, state=states[1], num_restarts=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0.1}, r"bound=0\.1 is not a multiple of 1/255: .* such as 26/255"),
        ({"bound": 0.0}, r"bound=0\.0 must lie in \(0, 1\].*above 0"),
        ({"bound": 8}, r"bound=8 must lie in \(0, 1\].*such as bound=8/255"),
        ({"bound": -1 / 255}, r"bound=-.* must lie in \(0, 1\]"),
        ({"bound": float("nan")}, r"bound=nan must lie in \(0, 1\]"),
        ({"step": 2}, r"step=2 must lie in \(0, 1\].*such as step=2/255"),
        ({"step": 0.003}, r"step=0\.003 is not a multiple of 1/255"),
        (
            {"bound": 16 / 255, "step": 3 / 255},
            r"is not a multiple of step=.* such as 15/255",
        ),
        ({"sign": "both"}, "sign='both' is unknown"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"num_restarts": 0}, "num_restarts=0 must be at least 1"),
    ],
)
def test_bad_numbers_are_refused_with_a_remedy(options, message):
    images = _images()
    with pytest.raises(ValueError, match=message):
        _craft(images, images, **options)


def test_images_must_be_bytes_over_their_largest_value(monkeypatch):
    images = _images()
    for wrong in (images - 0.5, images * 2, images + 0.4 / 255):
        with pytest.raises(ValueError, match="off the grid of 1/255"):
            _craft(wrong, images)
    with pytest.raises(ValueError, match="images has NaN or infinite values in 3 rows"):
        _craft(images * jnp.nan, images)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="images has dtype uint8"):
        _craft((255 * images).astype(jnp.uint8), images)
    with pytest.raises(ValueError, match="give at least one image"):
        _craft(images[:0], images[:0])
