"""The polynomials are what the docstring says, and as accurate as it says."""

from fractions import Fraction
from math import comb

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ntk_privacy.kernels import arccosine

TERMS = 90


def series(extra: Fraction) -> list[Fraction]:
    """Taylor coefficients of P (extra = 0) or R (3/2), less the factor sqrt(2) / pi."""
    a = [Fraction(comb(2 * k, k), 8**k * (2 * k + 1)) for k in range(TERMS)]
    return [x / (k + extra) for k, x in enumerate(a)] if extra else a


def economised(coefficients: list[Fraction], degree: int) -> list[Fraction]:
    """Drops the Chebyshev polynomials on [0, 1] above `degree`, from the top."""
    chebyshev = [[Fraction(1)], [Fraction(-1), Fraction(2)]]
    for _ in range(2, len(coefficients)):
        new = [Fraction(0)] + [4 * c for c in chebyshev[-1]]
        for i, c in enumerate(chebyshev[-1]):
            new[i] -= 2 * c
        for i, c in enumerate(chebyshev[-2]):
            new[i] -= c
        chebyshev.append(new)
    kept = list(coefficients)
    while len(kept) - 1 > degree:
        top = chebyshev[len(kept) - 1]
        factor = kept[-1] / top[-1]
        kept = [k - factor * c for k, c in zip(kept, top, strict=True)][:-1]
    return kept


@pytest.mark.parametrize(
    ("table", "extra"),
    [("_P32", 0), ("_P64", 0), ("_R32", Fraction(3, 2)), ("_R64", Fraction(3, 2))],
)
def test_tables_are_the_economised_series(table, extra):
    table = getattr(arccosine, table)
    exact = economised(series(Fraction(extra)), len(table) - 1)
    expected = [float(c) * np.sqrt(2) / np.pi for c in exact]
    np.testing.assert_allclose(table, expected, rtol=1e-14)


def reference(rho):
    """Both functions in extended precision, without cancellation."""
    rho = np.asarray(rho, np.longdouble)
    pi = 4 * np.arctan(np.longdouble(1))
    u = 1 - np.abs(rho)
    angle = 2 * np.arcsin(np.sqrt(u / 2)) / pi
    terms = [
        np.longdouble(c.numerator) / np.longdouble(c.denominator)
        for c in series(Fraction(3, 2))
    ]
    rest = np.sqrt(np.longdouble(2)) / pi * u**1.5 * np.polyval(terms[::-1], u)
    return np.where(rho < 0, angle, 1 - angle), np.maximum(rho, 0) + rest


@pytest.mark.parametrize(("dtype", "ulps"), [(np.float32, 4), (np.float64, 6)])
def test_relative_error_is_a_few_roundings(dtype, ulps):
    u = np.concatenate([np.logspace(-6, 0, 4000), [0.0]])
    rho = np.concatenate([1 - u, u - 1]).astype(dtype)
    tolerance = ulps * np.finfo(dtype).eps
    for name, exact in zip(("kappa0", "kappa1"), reference(rho), strict=True):
        ours = getattr(arccosine, name)(jnp.asarray(rho))
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, np.longdouble), exact, tolerance)


def test_ends_and_rounding_beyond_them():
    rho = jnp.array([-1.0, 0.0, 1.0])
    chex.assert_trees_all_close(arccosine.kappa0(rho), jnp.array([0.0, 0.5, 1.0]))
    expected = jnp.array([0.0, 1 / jnp.pi, 1.0])
    chex.assert_trees_all_close(arccosine.kappa1(rho), expected)
    beyond = jnp.array([-1 - 1e-12, 1 + 1e-12])
    for kappa in (arccosine.kappa0, arccosine.kappa1):
        chex.assert_trees_all_close(kappa(beyond), jnp.array([0.0, 1.0]), atol=1e-11)


def test_derivatives_are_exact_and_finite():
    rho = jnp.linspace(-0.9, 0.9, 41)
    slope = jax.vmap(jax.grad(arccosine.kappa1))(rho)
    chex.assert_trees_all_equal(slope, arccosine.kappa0(rho))
    for kappa in (arccosine.kappa0, arccosine.kappa1):
        check_grads(jax.jit(kappa), (rho,), order=2, rtol=1e-4)
    ends = jnp.array([-1.0, 1.0, -1 - 1e-16, 1 + 1e-15, 1 - 1e-16])
    for kappa in (arccosine.kappa0, arccosine.kappa1):
        once = jax.grad(lambda r, k=kappa: k(r).sum())
        twice = jax.jit(lambda r, f=once: jax.jvp(f, (r,), (r,)))
        chex.assert_tree_all_finite(twice(ends))
