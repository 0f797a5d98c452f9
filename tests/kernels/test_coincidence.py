"""Kernels of images that all but coincide, against float64 and extended precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import arccosine, coincidence, infinite, infinite_conv
from ntk_privacy.kernels.dual_activation import Gaps, dual_of_gaps

EPS = float(np.finfo(np.float32).eps)
S = 2**0.5


def images(distance, n=5, shape=(6, 6, 1), seed=0):
    """n images and each again, `distance` away at every pixel, exact in float32."""
    rng = np.random.default_rng(seed)
    base = rng.random((n, *shape)).astype(np.float32)
    again = base + distance * rng.normal(size=base.shape).astype(np.float32)
    return jnp.asarray(np.concatenate([base, again.astype(np.float32)]))


def wide(x):
    return jnp.asarray(x, jnp.float64)


KERNELS = {
    "relu": infinite.mlp(2),
    "standard": infinite.mlp(1, parametrization="standard", width=64),
    "deep with biases": infinite.mlp(4, weight_std=S, bias_std=0.1),
    "leaky": infinite.mlp(2, activation=infinite.abrelu(-0.2, 1.5), bias_std=0.3),
    "erf": infinite.mlp(4, activation="erf", bias_std=0.1),
    "gelu": infinite.mlp(2, activation="gelu"),
    "residual": infinite.kernel(
        (
            infinite.Dense(S, 0.1),
            infinite.residual(infinite.relu, infinite.Dense(S)),
            infinite.relu,
            infinite.Dense(),
        )
    ),
}


def program(kernel_fn, *, gradient, ways, through):
    """The kernel, by both of its ways, and the gradient of a sum of it: one program.

    Traced, as in a loss of the images. Most of the time is the compiler's.
    """

    def total(x, weights):
        values = [kernel_fn(x, x + 0), kernel_fn(x)][:ways]
        return sum(jnp.sum(weights * k) for k in values[:through]), values

    if gradient:
        return jax.jit(jax.grad(total, has_aux=True))
    return jax.jit(lambda x, weights: (x, total(x, weights)[1]))


def check(kernel_fn, places, gradients=(), ways=2, through=1):
    """Holds float32 against float64 at each of `places`, gradients where asked."""
    evaluate = program(kernel_fn, gradient=bool(gradients), ways=ways, through=through)
    rng = np.random.default_rng(1)
    for place, x in places.items():
        weights = rng.normal(size=(len(x), len(x))).astype(np.float32)
        ours, values = evaluate(x, jnp.asarray(weights))
        exact, (want, *_) = evaluate(wide(x), wide(weights))
        want, size = np.asarray(want), float(want.max())
        for k in values:
            assert k.dtype == ours.dtype == jnp.float32
            error = np.abs(np.asarray(k, np.float64) - want).max() / size
            # It was sqrt(EPS): thousands of them.
            assert error < 24 * EPS, (place, error / EPS)
        assert np.isfinite(np.asarray(ours)).all()
        if place in gradients:
            within = 2e-3 * float(jnp.abs(exact).max())
            np.testing.assert_allclose(ours, exact, atol=within)


def compiled_in_full(names, *chosen):
    """Names, some of them as users compile them: rounding depends on it."""
    marks = {name: [pytest.mark.optimized] for name in chosen}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


@pytest.mark.parametrize("name", compiled_in_full(KERNELS, "relu", "leaky"))
def test_float32_and_its_gradients_are_float64_to_a_few_roundings(name):
    places = {d: images(d) for d in (0.0, 1e-6, 1e-4, 1e-2)}
    steep = ("relu", "deep with biases", "erf")
    both = 2 if name == "relu" else 1
    check(KERNELS[name], places, [1e-4] if name in steep else (), through=both)


CONVOLUTIONS = {
    "flattened": infinite_conv.convnet(2, bias_std=0.1),
    "averaged": infinite_conv.convnet(2, head="global_pool"),
    "residual": infinite_conv.kernel(
        (
            infinite_conv.Conv(bias_std=0.1),
            infinite.residual(infinite.relu, infinite_conv.Conv()),
            infinite_conv.Flatten(),
            infinite.Dense(bias_std=0.1),
            infinite.relu,
            infinite.Dense(),
        )
    ),
}


@pytest.mark.parametrize("name", compiled_in_full(CONVOLUTIONS, "flattened"))
def test_convolutions_in_float32_are_float64_to_a_few_roundings(name):
    near = {d: images(d, 3, (4, 4, 2)) for d in (0.0, 1e-4, 1e-2)}
    multiple = near[0.0].at[3:].multiply(1.5)
    opposite = near[1e-4].at[3:].multiply(-1)
    places = {**near, "multiple": multiple, "opposite": opposite}
    check(CONVOLUTIONS[name], places, [1e-4, 1e-2], ways=1)


def test_one_image_moves_towards_another_as_float64_says():
    # The gap K_11 + K_22 - 2 K_12 is what a regression on both divides by.
    x = images(0.0, n=1)
    way = np.random.default_rng(2).normal(size=x[:1].shape)
    for distance in (1e-2, 1e-3, 1e-4):
        moved = x.at[1:].add(jnp.asarray(distance * way, jnp.float32))
        gaps = [
            float(k[0, 0] + k[1, 1] - 2 * k[0, 1])
            for k in (KERNELS["relu"](moved), KERNELS["relu"](wide(moved)))
        ]
        size = float(KERNELS["relu"](x)[0, 0])
        assert abs(gaps[0] - gaps[1]) < 6 * EPS * size, distance


def test_opposite_images_and_multiples():
    x = images(0.0, n=3)[:3]
    rng = np.random.default_rng(3)
    noise = jnp.asarray(1e-4 * rng.normal(size=x.shape), jnp.float32)
    for name in ("relu", "standard", "leaky"):
        kernel_fn = KERNELS[name]
        own = np.diagonal(kernel_fn(wide(x), wide(x) + 0))
        for other in (-x, -x + noise, 1.5 * x, 1000 * x, 1.5 * x + noise, 0 * x):
            want = np.asarray(kernel_fn(wide(x), wide(other)))
            theirs = np.diagonal(kernel_fn(wide(other), wide(other) + 0))
            # No entry is smaller for the length of its images.
            size = np.sqrt(np.outer(own, theirs)) + own.max() * (theirs == 0)
            error = np.abs(np.asarray(kernel_fn(x, other), np.float64) - want)
            assert (error < 24 * EPS * size).all(), name


def test_images_in_bytes_are_as_accurate():
    # Erf's arcsine saturates at variances like these, and its slope is steep.
    x = jnp.round(200 * images(0.0))
    x = x.at[5:, 0, 0, 0].add(1.0)
    for name in ("relu", "erf", "gelu"):
        want = np.asarray(KERNELS[name](wide(x)))
        np.testing.assert_allclose(KERNELS[name](x), want, atol=1e-4 * want.max())


def test_float64_is_the_recursion_in_extended_precision():
    x = np.asarray(wide(images(1e-6)), np.longdouble).reshape(10, -1)
    d, pi = x.shape[1], 4 * np.arctan(np.longdouble(1))
    q = (x**2).sum(1) / d
    k = x @ x.T / d
    ntk = k
    for _ in range(2):
        u = x / np.linalg.norm(x, axis=1)[:, None]
        if ntk is k:
            gap = ((u[:, None] - u[None]) ** 2).sum(-1)
            angle = 2 * np.arcsin(np.sqrt(gap) / 2)
        else:
            angle = np.arccos(np.clip(k / np.sqrt(np.outer(q, q)), -1, 1))
        slope = (pi - angle) / (2 * pi)
        scale = np.sqrt(np.outer(q, q))
        k = scale * (np.sin(angle) + np.cos(angle) * (pi - angle)) / (2 * pi)
        ntk = k + slope * ntk
        q = q / 2
    np.testing.assert_allclose(
        infinite.mlp(2)(wide(images(1e-6))), ntk.astype(float), rtol=3e-14
    )


def test_complements_against_extended_precision():
    u = np.logspace(-12, np.log10(2), 200).astype(np.float32)
    exact = np.asarray(u, np.longdouble)
    pi = 4 * np.arctan(np.longdouble(1))
    angle = 2 * np.arcsin(np.sqrt(exact / 2))
    kappa = 1 - angle / pi
    lost = exact - (np.sin(angle) - (1 - exact) * angle) / pi
    ours = arccosine.complements(jnp.asarray(u), jnp.asarray((2 - exact).astype("f4")))
    np.testing.assert_allclose(ours[0], kappa.astype(float), rtol=0, atol=8 * EPS)
    np.testing.assert_allclose(ours[1], lost.astype(float), rtol=20 * EPS)


def test_distances_are_those_of_all_pairs_where_wanted():
    x1, x2 = images(1e-4)[:, 0, :, 0], images(1e-4, seed=1, n=7)[:, 0, :, 0]
    slow = np.mean((np.asarray(x1)[:, None] - np.asarray(x2)[None]) ** 2, axis=-1)
    for share in (0.0, 0.1, 0.9, 1.0):
        wanted = np.random.default_rng(0).random(slow.shape) < share
        wanted[3] = False
        ours = coincidence.squared_distances(x1, x2, jnp.asarray(wanted))
        np.testing.assert_allclose(np.asarray(ours)[wanted], slow[wanted], rtol=1e-5)


def test_gaps_are_looked_at_only_where_they_are_needed():
    far = jax.random.normal(jax.random.key(0), (4, 9))
    q = jnp.sum(far**2, axis=1) / 9
    gram = far @ far.T / 9
    eye = jnp.eye(4, dtype=bool)
    any_close = coincidence.any_close
    assert not any_close(gram, q[:, None], q[None], except_for=eye)
    assert any_close(gram, q[:, None], q[None], except_for=None)
    for other in (far[0] * 1.3, -far[0], far[0] * (1 + 1e-9)):
        both = far.at[3].set(other)
        q = jnp.sum(both**2, axis=1) / 9
        assert any_close(both @ both.T / 9, q[:, None], q[None], except_for=eye)
    # A black image is near nothing.
    q = q.at[0].set(0.0)
    gram = gram.at[0].set(0.0)
    assert not any_close(gram[:1], q[:1, None], q[None], except_for=None)


def test_units_without_variance_and_equal_units():
    q = jnp.asarray([0.0, 2.0])
    gaps = Gaps(jnp.zeros(2), 4 * q)
    out, after = dual_of_gaps("homogeneous", gaps, q, q)
    chex.assert_trees_all_close(tuple(out), (q / 2, jnp.asarray([0.25, 0.5])))
    chex.assert_trees_all_close(after.below, jnp.zeros(2))
