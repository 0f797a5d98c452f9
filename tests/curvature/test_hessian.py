"""The top eigenvalue against matrices whose eigenvalues are known."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import curvature
from ntk_privacy.curvature import hessian

KEY = jax.random.key(1)
SIZE = 14


def quadratic(matrix, x):
    """One program for all matrices."""
    flat = x.reshape(len(x), -1)
    moved = jnp.matmul(flat, matrix, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(flat * moved, axis=1) / 2


def rotated(eigenvalues):
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.normal(size=(len(eigenvalues),) * 2))
    return basis @ np.diag(eigenvalues) @ basis.T


def padded(*leading, size=SIZE):
    return np.r_[leading, np.zeros(size - len(leading))]


MATRICES = {
    "identity": np.eye(SIZE),
    "minus_identity": -np.eye(SIZE),
    "zero": np.zeros((SIZE, SIZE)),
    "rank_one": rotated(padded(2.5)),
    "minus_rank_one": rotated(padded(-2.5)),
    "rank_three": rotated(padded(5.0, 4.9, -30.0)),
    "negative": rotated(-1.0 - np.arange(SIZE)),
    "double": rotated(padded(1.0, 1.0, -1.0)),
    "a_small_one_above_large_ones_below": rotated(np.r_[0.1, -np.ones(SIZE - 1)]),
    "spread": rotated(np.linspace(-1, 2, SIZE)),
}


@pytest.mark.parametrize("steps", [1, 2, 5, SIZE, 3 * SIZE])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_it_is_the_matrix_s_at_any_number_of_steps(steps, dtype):
    x = jax.random.normal(jax.random.key(0), (3, SIZE), dtype)
    rounding = 100 * float(jnp.finfo(dtype).eps)
    for name, matrix in MATRICES.items():
        found = curvature.measure(
            quadratic, jnp.asarray(matrix, dtype), x, key=KEY, num_matvecs=steps
        )
        values = np.linalg.eigvalsh(matrix)
        allowed = rounding * np.abs(values).max()
        allowed = max(allowed, 1e-3 * abs(values[-1]))
        assert np.abs(np.asarray(found.values) - values[-1]).max() <= allowed, name
        assert (np.asarray(found.errors) <= allowed).all(), name
        assert found.converged.all(), name
        chex.assert_type(found.values, dtype)


LARGE = {
    "few": padded(3.0, 2.9, 1.0, -5.0, size=120),
    "minus_identity": -np.ones(120),
    "spread": np.linspace(-1, 1, 120) ** 3,
}


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_a_space_too_large_to_span_is_restarted(steps):
    x = jnp.ones((2, 120))
    for name, values in LARGE.items():
        matrix = jnp.asarray(rotated(values))
        found = curvature.measure(quadratic, matrix, x, key=KEY, num_matvecs=steps)
        assert found.converged.all(), name
        assert (found.errors <= 1e-3 * abs(values.max())).all(), name
        np.testing.assert_allclose(found.values, values.max(), 1e-3, err_msg=name)


def test_what_did_not_converge_is_told():
    matrix = jnp.asarray(rotated(np.linspace(0, 1, 120)))
    given = {"key": KEY, "num_matvecs": 2, "max_matvecs": 4}
    found = curvature.measure(quadratic, matrix, jnp.ones((2, 120)), **given)
    assert not found.converged.any()
    # The residual says by how much: an eigenvalue is within it.
    assert (found.errors > 1e-3).all()
    with pytest.warns(UserWarning, match="2 of 2 top eigenvalues did not converge in"):
        curvature.top_eigenvalues(quadratic, matrix, jnp.ones((2, 120)), **given)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_scales_whose_squares_leave_float32(scale):
    matrix = jnp.asarray(scale * rotated(padded(3.0, 1.0, -2.0)), jnp.float32)
    x = jnp.zeros((2, SIZE), jnp.float32)
    found = curvature.top_eigenvalues(quadratic, matrix, x, key=KEY)
    np.testing.assert_allclose(found / scale, 3.0, rtol=1e-5)


@functools.cache
def networks():
    """Losses of small ReLU networks, as `(params, images, labels) -> losses`."""

    def loss(params, x, labels):
        h = x.reshape(len(x), -1)
        for w in params[:-1]:
            h = jax.nn.relu(h @ w)
        logs = jax.nn.log_softmax(h @ params[-1])
        return -jnp.take_along_axis(logs, labels[:, None], 1)[:, 0]

    return loss


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("steps", [1, 4, 16, 40])
def test_networks_of_few_classes(classes, steps):
    """Of rank one below the classes: every Krylov space ends within some steps."""
    shapes = ((16, 32), (32, 32), (32, classes))
    params = [
        jax.random.normal(jax.random.key(i), s) / s[0] ** 0.5
        for i, s in enumerate(shapes)
    ]
    x = jax.random.normal(jax.random.key(9), (20, 4, 4, 1))
    labels = jnp.arange(20, dtype=jnp.int32) % classes
    loss = networks()
    found = curvature.top_eigenvalues(
        loss, params, x, labels, key=KEY, num_matvecs=steps, batch_size=7
    )

    def exact(image, label):
        full = jax.hessian(lambda u: loss(params, u[None], label[None])[0])(image)
        return jnp.linalg.eigvalsh(full.reshape(16, 16))[-1]

    chex.assert_trees_all_close(found, jax.vmap(exact)(x, labels), rtol=1e-6)


def test_products_have_full_precision():
    settings = (4, 2, 1e-3, 100, 2)
    rest = (jnp.eye(6), jnp.ones((2, 6)), (), jax.random.key_data(KEY))

    def loss(matrix, x):
        return jnp.sum((x @ matrix) ** 2, axis=1)

    program = jax.jit(lambda *a: hessian._measure(loss, settings, *a))
    told = program.lower(*rest).as_text()
    products = [line for line in told.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


def test_what_is_not_finite_is_nan_and_only_there():
    def loss(scale, x):
        return scale * jnp.sum(jnp.square(x), axis=1) / 2 / jnp.sign(x[:, 0])

    x = jnp.ones((3, 5)).at[1].set(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = curvature.top_eigenvalues(loss, 1.0, x, key=KEY)
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[::2], 1, rtol=1e-10)


def test_half_precision_is_summed_in_float32():
    found = curvature.top_eigenvalues(
        lambda p, x: jnp.sum(jnp.square(x), axis=1) / 2,
        None,
        jnp.ones((2, 30), jnp.bfloat16),
        key=KEY,
        # Products rounded to 2^-9 leave a residual of that size.
        tolerance=2e-2,
    )
    chex.assert_type(found, jnp.float32)
    np.testing.assert_allclose(found, 1, rtol=2e-2)


def test_bad_input_is_named():
    call = functools.partial(curvature.top_eigenvalues, quadratic, jnp.eye(6), key=KEY)
    x = jnp.ones((2, 6))
    with pytest.raises(ValueError, match="num_matvecs=0 must be at least 1"):
        call(x, num_matvecs=0)
    with pytest.raises(ValueError, match="max_matvecs=8 must be at least 16"):
        call(x, max_matvecs=8)
    with pytest.raises(ValueError, match="tolerance=0 must be above 0"):
        call(x, tolerance=0)
    with pytest.raises(ValueError, match="images=0 must be at least 1"):
        call(x[:0])
    # Whichever sees it first: jaxtyping, in tests, or the library.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=r"n=2|has 3 rows"):
        call(x, jnp.ones((3,)))
    with pytest.raises(ValueError, match="default implementation"):
        call(x, key=jax.random.key(0, impl="rbg"))
    for loss, told in (
        (lambda p, x: jnp.sum(x, axis=1).astype(int), "real floating-point losses"),
        (
            lambda p, x: jnp.sum((x - x.mean(0, keepdims=True)) ** 2, axis=1),
            "evaluation mode",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            curvature.top_eigenvalues(loss, None, jnp.eye(6)[:2], key=KEY)


def test_a_label_that_is_no_class_has_no_eigenvalue():
    def loss(weights, x, labels):
        logits = jax.nn.log_softmax(x @ weights)
        return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    found = curvature.top_eigenvalues(
        loss, jnp.eye(6, 3), jnp.eye(6)[:2], jnp.asarray([1, 7]), key=KEY
    )
    assert np.isfinite(found[0])
    assert np.isnan(found[1])
