"""Where float32 leads a search for images, a person is told; elsewhere nothing is."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import _linalg, _versions
from ntk_privacy.distillation import kip, rkip, rounding
from ntk_privacy.kernels import infinite, infinite_conv

mlp = infinite.mlp(depth=1)
f32 = jnp.float32
labels = jnp.asarray([[1.0], [-1.0]] * 2, f32)
targets = jax.random.normal(jax.random.key(2), (6, 6), f32)
target_labels = jnp.asarray([[1.0], [-1.0]] * 3, f32)


def images_at(distance, *, shape=(6,)):
    """Four images, of which the second is `distance` from the first in each pixel."""
    x = jax.random.normal(jax.random.key(0), (4, *shape), f32)
    step = jax.random.normal(jax.random.key(1), shape, f32)
    return x.at[1].set(x[0] + distance * step)


def blunt(x1, x2=None):
    """A one-layer NTK by the arccos of rounded correlations, as others compute it."""
    second = x1 if x2 is None else x2
    length = (
        jnp.linalg.norm(x1, axis=1)[:, None] * jnp.linalg.norm(second, axis=1)[None]
    )
    # Always what rounding leaves, whichever way a processor rounds.
    most = 1 - 4 * jnp.finfo(x1.dtype).eps
    cosine = jnp.clip(x1 @ second.T / length, -most, most)
    angle = jnp.arccos(cosine)
    k = length * (jnp.sin(angle) + 2 * (jnp.pi - angle) * cosine) / jnp.pi
    if x2 is not None:
        return k
    return jnp.where(jnp.eye(len(x1), dtype=bool), 2 * length, k)


def moving_to(goal):
    return optax.GradientTransformation(
        lambda _: (), lambda _, state, params: ((goal - params[0],), state)
    )


def test_an_accurate_kernel_keeps_its_gradient():
    assert rounding.gradient_error(mlp, images_at(1e-4), labels, diag_reg=1e-3) < 0.05


def test_a_blunt_kernel_loses_its_gradient_near_copies_only():
    near = rounding.gradient_error(blunt, images_at(1e-4), labels, diag_reg=1e-2)
    far = rounding.gradient_error(blunt, images_at(1.0), labels, diag_reg=1e-2)
    assert near > 0.3
    assert far < 1e-3


def test_it_is_the_error_of_the_gradient_itself():
    x = images_at(1e-3)

    def energy(x):
        k = blunt(x, x) + 1e-2 * jnp.mean(jnp.diagonal(blunt(x, x))) * jnp.eye(
            4, dtype=x.dtype
        )
        y = labels.astype(k.dtype)
        return 0.5 * jnp.sum(y * jnp.linalg.solve(k, y))

    with _versions.enable_x64(True):
        exact = np.asarray(jax.grad(energy)(jnp.asarray(np.asarray(x, np.float64))))
    own = np.asarray(jax.grad(energy)(x), np.float64)
    expected = np.linalg.norm(own - exact) / np.linalg.norm(exact)
    off = rounding.gradient_error(blunt, x, labels, diag_reg=1e-2)
    np.testing.assert_allclose(off, expected, rtol=0.3)


def test_pooled_convolutions_warn_of_images_all_but_one():
    kernel_fn = infinite_conv.convnet(2, weight_std=2**0.5, bias_std=0.1, pooling="avg")
    x = images_at(1e-4, shape=(4, 4, 1))
    with pytest.warns(UserWarning, match="images 0 and 1 all but coinciding"):
        rounding.check_start(kernel_fn, x, labels, diag_reg=1e-2)


@pytest.mark.parametrize("method", [kip, rkip])
def test_a_search_that_starts_blurred_is_told(method):
    with pytest.warns(UserWarning, match="The search starts with images 0 and 1"):
        method.distill(
            targets,
            target_labels,
            kernel_fn=blunt,
            key=jax.random.key(0),
            num_steps=1,
            diag_reg=1e-2,
            optimizer=moving_to(images_at(1.0)),
            initial_images=images_at(1e-4),
            initial_labels=labels,
        )


@pytest.mark.parametrize("method", [kip, rkip])
def test_a_search_whose_images_meet_is_told_at_its_end(method):
    with pytest.warns(UserWarning, match="The search ends with images 0 and 1") as told:
        method.distill(
            targets,
            target_labels,
            kernel_fn=blunt,
            key=jax.random.key(0),
            num_steps=1,
            diag_reg=1e-2,
            optimizer=moving_to(images_at(1e-4)),
            initial_images=images_at(1.0),
            initial_labels=labels,
        )
    assert len(told) == 1


def test_an_ordinary_search_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kip.distill(
            targets,
            target_labels,
            kernel_fn=blunt,
            key=jax.random.key(0),
            images_per_class=2,
            num_steps=2,
        )


def test_a_ridge_below_the_error_of_the_kernel_is_refused():
    with pytest.raises(ValueError, match="images 0 and 1 coincide"):
        rounding.check_start(blunt, images_at(1e-5), labels, diag_reg=1e-5)


def test_a_kernel_without_float64_cannot_be_compared():
    def narrow(x1, x2):
        return blunt(x1.astype(jnp.float32), x2.astype(jnp.float32))

    x = images_at(1e-4)
    assert np.isnan(rounding.gradient_error(narrow, x, labels, diag_reg=1e-2))
    with pytest.warns(UserWarning, match="cannot be compared"):
        rounding.check_start(narrow, x, labels, diag_reg=1e-2)


def test_a_solve_within_rounding_of_singular_is_nan():
    k = jnp.asarray([[1.0, 1.0], [1.0, 1.0 + 2e-7]], f32)
    y = labels[:2]
    assert jnp.isnan(_linalg.solve_ridge(k, y)).all()
    assert jnp.isnan(jax.jit(_linalg.solve_ridge)(k, y)).all()
    assert jnp.isfinite(_linalg.solve_ridge(k, y, diag_reg=1e-3)).all()


def contradicting():
    """Targets with an exact copy of another label, and images to regress them on."""
    x = targets.at[1].set(targets[0])
    return x, target_labels, x[2:4] + 0.1, labels[:2]


def test_a_traced_loss_that_rounding_has_eaten_is_nan():
    x, y, images, y_s = contradicting()

    def loss(x):
        return rkip.loss(images, y_s, x, y, kernel_fn=mlp)

    traced = jax.jit(loss)
    assert jnp.isnan(traced(x))
    apart = x.at[1].set(-x[0])
    np.testing.assert_allclose(traced(apart), loss(apart), rtol=1e-2)


def test_the_losses_of_a_search_among_contradicting_copies_are_right():
    x, y, images, y_s = contradicting()
    found = rkip.distill(
        x,
        y,
        kernel_fn=mlp,
        key=jax.random.key(0),
        num_steps=1,
        initial_images=images,
        initial_labels=y_s,
    )
    expected = rkip.loss(images, y_s, x, y, kernel_fn=mlp)
    np.testing.assert_allclose(found.losses[0], expected, rtol=0.02)


def test_the_gradient_of_a_kernel_is_compiled_once():
    calls = []

    def kernel(x1, x2):
        calls.append(1)
        return x1.reshape(len(x1), -1) @ x2.reshape(len(x2), -1).T

    def error(x):
        return rounding.gradient_error(kernel, x, labels, diag_reg=0.1)

    x = jax.random.normal(jax.random.key(0), (4, 6), f32)
    first, count = error(x), len(calls)
    assert 0 < error(2 * x) < 1e-4 > first
    assert len(calls) == count
