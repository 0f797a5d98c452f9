"""The ball and the box: inside to the last bit, and the nearest point of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from ntk_privacy.evasion import ThreatModel, threat_model


def _project(x, u, norm, eps, dtype):
    limits = ThreatModel(norm, eps).limits(dtype)

    @jax.jit
    def both(x, u):
        allowed = threat_model.region(x, limits, norm=norm)
        return threat_model.project(u, allowed, norm=norm)

    return np.asarray(both(jnp.asarray(x, dtype), jnp.asarray(u, dtype)))


@pytest.mark.parametrize("eps", [8 / 255, 2 / 255, 0.3, 1e-4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linf_is_inside_to_the_last_bit(eps, dtype):
    rng = np.random.default_rng(2)
    x = rng.uniform(size=(40, 8, 8, 3)).astype(dtype)
    x[:3] = np.round(x[:3] * 255) / 255
    out = _project(
        x, x + 2 * eps * rng.choice([-1, 1], size=x.shape), "linf", eps, dtype
    )
    assert np.abs(out - x).max() <= dtype(eps)
    assert np.abs(out.astype(np.longdouble) - x).max() <= eps
    assert out.min() >= 0
    assert out.max() <= 1
    free = (x > eps) & (x < 1 - eps)
    assert np.abs(out - x)[free].min() >= eps - 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("eps", [0.3, 1.0, 2.5])
def test_l2_is_the_nearest_point_by_a_convex_solver(eps):
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(4, 2, 3, 1))
    u = x + rng.normal(size=x.shape)
    out = _project(x, u, "l2", eps, np.float64)
    for a, b, c in zip(
        x.reshape(4, -1), u.reshape(4, -1), out.reshape(4, -1), strict=True
    ):
        best = minimize(
            lambda z, b=b: np.sum((z - b) ** 2),
            a,
            jac=lambda z, b=b: 2 * (z - b),
            bounds=[(0, 1)] * 6,
            constraints={
                "type": "ineq",
                "fun": lambda z, a=a: eps**2 - np.sum((z - a) ** 2),
                "jac": lambda z, a=a: -2 * (z - a),
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(c, best.x, atol=1e-5)


def test_l2_agrees_with_bisection_and_stays_inside():
    rng = np.random.default_rng(4)
    x = rng.uniform(size=(30, 8, 8, 3)).astype(np.float32)
    u = x + 3 * rng.normal(size=x.shape).astype(np.float32)
    u[0] = x[0]
    eps = 5.0
    out = _project(x, u, "l2", eps, np.float32).astype(np.float64)
    move = u.astype(np.float64) - x
    low, high = np.zeros(30), np.ones(30)
    for _ in range(60):
        t = (low + high) / 2
        norms = np.linalg.norm(
            (np.clip(x + t[:, None, None, None] * move, 0, 1) - x).reshape(30, -1),
            axis=1,
        )
        low, high = np.where(norms <= eps, t, low), np.where(norms <= eps, high, t)
    slow = np.clip(x + low[:, None, None, None] * move, 0, 1)
    np.testing.assert_allclose(out[1:], slow[1:], atol=2e-6)
    np.testing.assert_array_equal(out[0], x[0])
    assert np.linalg.norm((out - x).reshape(30, -1), axis=1).max() <= eps + 1e-6
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_ball_of_radius_zero_is_a_point_and_an_infinite_one_the_box(norm):
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(3, 4, 4, 1)).astype(np.float32)
    u = x + rng.normal(size=x.shape).astype(np.float32)
    np.testing.assert_array_equal(_project(x, u, norm, 0, np.float32), x)
    out = _project(x, u, norm, float("inf"), np.float32)
    np.testing.assert_array_equal(out, np.clip(u, 0, 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"norm": "l1"}, "norm='l1' is unknown: use one of linf, l2"),
        ({"eps": -0.1}, "eps=-0.1 must be at least 0"),
        ({"eps": 8}, "eps=8 is more than the box from 0.0 to 1.0 is wide"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"low": 1.0, "high": 1.0}, "empty or unbounded"),
        ({"high": float("inf")}, "empty or unbounded"),
    ],
)
def test_a_bad_threat_model_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        ThreatModel(**options)
