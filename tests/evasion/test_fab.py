"""Projections on planes against a linear program and bisection; exact distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from ntk_privacy.evasion import ThreatModel, fab, pool, task


@pytest.fixture(scope="module")
def planes():
    """Points, normals with zeros, heights of both signs, one out of reach."""
    rng = np.random.default_rng(6)
    p = rng.uniform(size=(9, 2, 3, 1))
    w = rng.normal(size=p.shape)
    w[1, 0, 0] = 0
    w[2] = 1e-6 * w[2]
    goal = rng.uniform(size=p.shape)
    height = -np.sum(w * (goal - p), axis=(1, 2, 3))
    height[3] = 100.0
    height[4] = 0.0
    w[5] = 0
    return p, w, height


def _solve(planes, norm):
    limits = ThreatModel(norm, 1).limits(np.float64)
    call = jax.jit(lambda *a: fab.onto_plane(*a, limits, norm=norm))
    return np.asarray(call(*(jnp.asarray(a) for a in planes))).reshape(9, -1)


def test_linf_moves_are_those_of_a_linear_program(planes):
    p, w, height = (a.reshape(9, -1) for a in planes)
    moves = _solve(planes, "linf")
    for i in (0, 1, 2, 4, 6, 7, 8):
        scale = np.abs(w[i]).max()
        # Unknowns: six moves and their greatest length.
        sides = np.concatenate([np.eye(6), -np.eye(6)])
        best = linprog(
            np.r_[np.zeros(6), 1],
            A_ub=np.c_[sides, -np.ones(12)],
            b_ub=np.zeros(12),
            A_eq=np.r_[w[i] / scale, 0][None],
            b_eq=-height[i] / scale,
            bounds=[*zip(-p[i], 1 - p[i], strict=True), (0, None)],
        )
        np.testing.assert_allclose(np.abs(moves[i]).max(), best.fun, atol=1e-9)
        assert abs(w[i] @ moves[i] + height[i, 0]) < 1e-9 * scale
    out = p + moves
    assert out.min() >= -1e-12
    assert out.max() <= 1 + 1e-12


def test_l2_moves_solve_the_dual_by_bisection(planes):
    p, w, height = (a.reshape(9, -1) for a in planes)
    moves = _solve(planes, "l2")
    for i in (0, 1, 2, 4, 6, 7, 8):
        scale = np.abs(w[i]).max()
        slope, high = w[i] / scale, height[i, 0] / scale
        low, top = -1e3, 1e3  # the multiplier: clip(-L w), falling in L
        for _ in range(100):
            mid = (low + top) / 2
            move = np.clip(-mid * slope, -p[i], 1 - p[i])
            low, top = (mid, top) if slope @ move + high > 0 else (low, mid)
        np.testing.assert_allclose(moves[i], move, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_out_of_reach_and_a_vanishing_slope(planes, norm):
    p, w, _ = (a.reshape(9, -1) for a in planes)
    moves = _solve(planes, norm)
    np.testing.assert_allclose(
        p[3] + moves[3], np.where(w[3] > 0, 0.0, 1.0), atol=1e-12
    )
    np.testing.assert_array_equal(moves[5], 0)


@pytest.mark.parametrize(
    ("norm", "num_targets"), [("linf", 3), ("l2", 3), ("linf", None)]
)
def test_the_distance_to_a_linear_boundary_is_found(line, norm, num_targets):
    out = fab.attack(
        line.logits_fn,
        line.x,
        line.y,
        key=jax.random.key(0),
        threat_model=ThreatModel(norm, float("inf")),
        num_steps=20,
        num_targets=num_targets,
    )
    assert bool(jnp.all(out.success))
    ratio = np.asarray(out.distance) / line.distances[norm]
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.01


@pytest.mark.parametrize(("eps", "radius"), [(1.2, 0.6), (float("inf"), 0.5)])
def test_restarts_begin_half_of_the_radius_away(line, eps, radius):
    limits = ThreatModel("l2", eps).limits(line.x.dtype)
    n = len(line.y)
    x, y = jnp.asarray(line.x), jnp.asarray(line.y)
    logits = line.logits_fn(x)
    work = task.Task(line.logits_fn, x, y, logits, jnp.ones(n, bool), limits)
    ascent = fab.walk(
        (jnp.asarray(0.1), jnp.asarray(1.05), jnp.asarray(0.9)),
        jax.random.key(0),
        norm="l2",
        num_steps=1,
        num_restarts=2,
        aim=False,
        stop_early=True,
    )
    spot = pool.whole(work, y)._replace(run=jnp.arange(n, dtype=jnp.int32) % 2)
    start = ascent.begin(spot, jnp.full(n, jnp.inf)).point
    away = np.sqrt(((np.asarray(start) - line.x) ** 2).sum((1, 2, 3)))
    # Pixels cut to the box take a little off.
    np.testing.assert_allclose(away, np.arange(n) % 2 * radius, rtol=0.03)


def test_what_lies_beyond_eps_is_no_success(line):
    far = line.distances["linf"]
    eps = float(np.median(far))
    out = fab.attack(
        line.logits_fn,
        line.x,
        line.y,
        key=jax.random.key(0),
        threat_model=ThreatModel("linf", eps),
        num_steps=20,
        num_targets=3,
        stop_early=True,
    )
    np.testing.assert_array_equal(out.success, far < eps)
    np.testing.assert_array_equal(
        np.asarray(out.images)[far > eps], np.asarray(line.x)[far > eps]
    )
    assert np.all(np.asarray(out.queries)[far > eps] == 3 * 2 * 20)
    assert np.all(np.asarray(out.queries)[far < eps] < 3 * 2 * 20)
