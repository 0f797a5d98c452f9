"""Rows that vanish on more of what their image closes, and those on as many."""

import numpy as np
import pytest

from ntk_privacy.reconstruction import (
    change_factors,
    closed_rows,
    fuller_rows,
    unit_set,
    unit_space,
)

N, PIXELS, UNITS = 5, 20, 96
TIED = 0.1, 1, 1


def _scaled(space, u):
    assert space.scale is not None
    return u / (u @ space.scale)[:, None]


def _made(near, opened, seed=1):
    """Images, 0 and 1 so near that they differ in few gates, and signals with zeros.

    opened: units that image 0 closes, and opened for a while.
    Returns the space, the true rows, their images, and what these close.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, PIXELS))
    x[1] = x[0] + near * rng.standard_normal(PIXELS)
    kernel, bias = rng.standard_normal((PIXELS, UNITS)), rng.standard_normal(UNITS)
    moves = np.any(x @ kernel + bias > 0, axis=0)
    kernel, bias = kernel[:, moves], bias[moves]
    closed = x @ kernel + bias < 0
    signals = np.where(closed, 0.0, rng.uniform(0.5, 2.0, closed.shape))
    # Image 1 opens there too, else nothing could make up for it.
    odd = np.flatnonzero(closed[0] & ~closed[1])[:opened]
    assert len(odd) == opened
    signals[0, odd] = 0.3 * signals[1, odd] * (1 + np.arange(opened))
    factors = change_factors.factorize(x.T @ signals)
    space = unit_space.make(
        factors, (kernel, kernel), (bias, bias), np.sum(signals, axis=0)
    )
    assert space.alive.all()
    c = signals @ np.linalg.pinv(space.signals)
    u = np.linalg.inv(c).T
    return space, c, _scaled(space, u), closed, signals, odd


def _told(closed, odd):
    """Zeros of image 0 that image 1 does not share."""
    return np.sum(closed[0] & ~closed[1]) - len(odd)


def _mixed(space, c, signals, odd):
    """The set with a combination in the place of row 0: it vanishes at a unit more."""
    false = c.copy()
    false[0] -= signals[0, odd[0]] / signals[1, odd[0]] * c[1]
    u = np.linalg.inv(false).T
    return false, _scaled(space, u)


def _alike(a, b):
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.abs(np.sum(a * b, axis=1)) / size


def test_a_combination_gives_way_to_the_row_that_vanishes_on_more():
    space, c, _, closed, signals, odd = _made(0.25, 1)
    assert _told(closed, odd) > 1
    false, u = _mixed(space, c, signals, odd)
    assert _alike(false, c)[0] < 0.99
    made = fuller_rows.fuller(space, false, u, closed)
    np.testing.assert_allclose(_alike(made, c), 1, atol=1e-9)


def test_a_combination_of_three_gives_way_too():
    space, c, _, closed, signals, odd = _made(0.25, 1)
    false, _ = _mixed(space, c, signals, odd)
    false[0] += 0.01 * c[2]
    u = np.linalg.inv(false).T
    made = fuller_rows.fuller(space, false, _scaled(space, u), closed)
    np.testing.assert_allclose(_alike(made, c), 1, atol=1e-9)


def test_true_rows_stay_and_are_settled_where_they_are_the_fullest():
    space, c, u, closed, _, odd = _made(0.25, 1)
    assert _told(closed, odd) > 1
    np.testing.assert_array_equal(fuller_rows.fuller(space, c, u, closed), c)
    assert not fuller_rows.unsettled(space, c, u, closed).any()


@pytest.mark.parametrize("false", [False, True])
def test_a_rival_as_full_leaves_the_other_image_open_whichever_was_found(false):
    space, c, u, closed, signals, odd = _made(*TIED)
    assert _told(closed, odd) == 1
    apart = np.zeros(N)
    if false:
        c, now = _mixed(space, c, signals, odd)
        apart = np.linalg.norm((now - u) * space.values, axis=1)
        apart, u = apart / np.linalg.norm(now * space.values, axis=1), now
    far = fuller_rows.unsettled(space, c, u, closed)
    assert far[1] > 0.2
    assert np.all(far >= 0.999 * apart - 1e-9)
    assert np.max(np.delete(far, 1)) < 1e-6


def test_rows_that_vanish_wherever_their_image_closes_have_no_rivals():
    space, c, u, closed, _, _ = _made(0.1, 0)
    np.testing.assert_array_equal(fuller_rows.fuller(space, c, u, closed), c)
    assert not fuller_rows.unsettled(space, c, u, closed).any()


def test_what_rivals_of_several_rows_do_to_one_image_adds_up(monkeypatch):
    space, c, u, closed, _, _ = _made(0.1, 0)
    c = c / np.sum(c * u, axis=1, keepdims=True)
    shares = {0: 0.2, 1: -0.3}

    def rivals(*_):
        for i, share in shares.items():
            yield i, 7, (c[i] + share * c[2])[None], np.array([7])

    monkeypatch.setattr(fuller_rows, "_rivals", rivals)
    norms = np.linalg.norm(u * space.values, axis=1)
    want = np.zeros(N)
    want[2] = (0.2 * norms[0] + 0.3 * norms[1]) / norms[2]
    found = fuller_rows.unsettled(space, c, u, closed)
    np.testing.assert_allclose(found, want, atol=1e-9)


def test_zeros_beyond_what_any_row_can_have_are_counted_and_asked_for():
    space, c, _, closed, _, odd = _made(0.5, 1)
    whole = unit_set.complete(space, c)
    assert whole is not None
    # One by one: zeros, less those that N - 1 others leave to any row, less units that
    # the image closes and that are none.
    expected = []
    for i in range(N):
        zeros = sum(
            not (closed[i, j] and j in odd and i == 0)
            for j in np.flatnonzero(closed[i])
        )
        expected.append(zeros - (N - 1) - (len(odd) if i == 0 else 0))
    np.testing.assert_array_equal(whole.surplus, expected)
    good = closed_rows.passes(whole)
    assert good.all()
    for i in range(N):
        surplus = whole.surplus.copy()
        surplus[i] = 0
        worse = closed_rows.passes(whole._replace(surplus=surplus))
        assert worse.tolist() == [k != i for k in range(N)]
