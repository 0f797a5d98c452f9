"""The schedule of Square, its bumps, and one step against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, pool, square, task, threat_model


def test_sides_at_32_pixels():
    sides = square.sides(10000, (32, 32))
    first = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert list(sides[first]) == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    for i in first[1:]:
        assert sides[i - 1] > sides[i], "the schedule falls after a query, not before"
    assert np.sum(np.diff(sides) != 0) == 9
    # Without stretching, 5000 queries end at an eighth of a side; else they see it all.
    assert square.sides(5000, (32, 32))[-1] == 3
    stretched = square.sides(5000, (32, 32), rescale=True)
    np.testing.assert_array_equal(stretched, sides[::2])


def test_round_sides_are_odd_and_fit():
    sides = square.sides(10000, (32, 32), norm="l2")
    assert sides.max() == 29
    assert sides.min() == 3
    assert np.all(sides % 2 == 1)
    assert square.sides(10, (4, 6), norm="l2").max() == 3
    assert square.sides(10, (3, 40)).max() == 3


def test_a_bump_is_two_pyramids_of_opposite_sign():
    for side in (2, 3, 7, 12):
        bump = square.bump(side)
        np.testing.assert_allclose(np.sum(bump**2), 1)
        assert np.all(bump[: side // 2] > 0)
        assert np.all(bump[side // 2 :] < 0)
    row = square.bump(7)[1]
    assert np.argmax(row) == 3
    np.testing.assert_allclose(row, row[::-1])


@pytest.fixture(scope="module")
def walks(toy, model):
    """Points, best images, margins and successes of every evaluation, by norm."""
    return functools.cache(lambda norm: _walk(toy, model, norm))


def _walk(toy, model, norm):
    key = jax.random.key(5)
    work = task.prepare(toy.logits_fn, toy.x, toy.y, key=key, threat_model=model[norm])
    lengths = square.sides(60, (5, 5), norm=norm)
    bumps = jnp.asarray(square.table((5, 5), norm, np.float32))

    @jax.jit
    def whole(work):
        search = square.walk(jnp.asarray(lengths), bumps, key, norm=norm)
        spot = pool.whole(work, work.y)
        first = search.begin(spot, jnp.full(12, jnp.inf, jnp.float32))

        def body(state, _):
            new = search.advance(spot, state, key)
            return new, (state.point, new.best, new.margin, new.success)

        return jax.lax.scan(body, first, None, length=61)[1]

    return lengths, [np.asarray(row) for row in whole(work)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margin_never_rises_and_the_broken_stay(walks, toy, model, norm):
    _, (points, best, margins, success) = walks(norm)
    attacked = np.delete(np.arange(12), [0, 7])
    assert np.all(np.diff(margins[:, attacked], axis=0) <= 0)
    assert np.any(np.diff(margins[:, attacked], axis=0) < 0)
    assert np.all(success[1:] >= success[:-1])
    still = success[:-1]
    np.testing.assert_array_equal(best[1:][still], best[:-1][still])
    for images in (points, best):
        flat = jnp.asarray(images.reshape(-1, 5, 5, 2))
        far = threat_model.distance(flat - jnp.tile(toy.x, (61, 1, 1, 1)), norm=norm)
        assert float(jnp.max(far)) <= model[norm].eps + 1e-6


def test_a_proposal_is_one_window_for_the_whole_batch(walks, toy, model):
    lengths, (points, best, _, _) = walks("linf")
    x = np.asarray(toy.x)
    eps = np.float32(model["linf"].eps)
    # The start: stripes, one sign per column and channel.
    inner = (x > 2 * eps) & (x < 1 - 2 * eps)
    signs = np.sign(points[0] - x)
    assert np.all(np.abs(np.where(inner, signs, 0).sum(1)) == inner.sum(1))
    for i in range(60):
        move = points[i + 1] - best[i]
        inside = np.any(move != 0, axis=(0, 3))
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            continue
        for where in (rows, columns):
            assert where.max() - where.min() < lengths[i]
        signs = np.sign(move).reshape(-1, 2)
        for channel in range(2):
            assert len(set(signs[:, channel]) - {0.0}) <= 1


def test_the_l2_start_and_steps_reach_the_sphere(walks, toy):
    _, (points, _, _, _) = walks("l2")
    far = np.sqrt(((points - np.asarray(toy.x)[None]) ** 2).sum((2, 3, 4)))
    # Almost: the box cuts some of it off.
    assert np.median(far) > 0.95 * 0.2


def test_bad_settings_are_refused(toy):
    def attack(**options):
        square.attack(
            toy.logits_fn,
            toy.x,
            toy.y,
            key=jax.random.key(0),
            threat_model=ThreatModel(),
            **options,
        )

    with pytest.raises(ValueError, match="num_queries=0 must be at least 1"):
        attack(num_queries=0)
    with pytest.raises(ValueError, match=r"p_init=2 must lie in \[0, 1\]"):
        attack(p_init=2)
