"""RKIP: Theorems 1 and 2, and the loss against slow twins."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy import rkip
from ntk_privacy.kernels import infinite, stationarity, structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import kkt

KERNEL = infinite.mlp(depth=2)


def _set(key, n, c=1, shape=(4, 4, 1), dtype=jnp.float64):
    key_x, key_y = jax.random.split(jax.random.key(key))
    x = jax.random.normal(key_x, (n, *shape), dtype)
    y = jax.random.normal(key_y, (n, c), dtype)
    return x, y


def _relu_ntk(x1, x2):
    """Two hidden layers, entry by entry, from the text of FC kernels."""
    x1, x2 = (np.asarray(x).reshape(len(x), -1) for x in (x1, x2))
    out = np.zeros((len(x1), len(x2)))
    for i, u in enumerate(x1):
        for j, v in enumerate(x2):
            q, r, k = u @ u / len(u), v @ v / len(v), u @ v / len(u)
            t = k
            for _ in range(2):
                cosine = np.clip(k / np.sqrt(q * r), -1, 1)
                angle = np.arccos(cosine)
                slope = (np.pi - angle) / (2 * np.pi)
                k = np.sqrt(q * r) * (np.sin(angle) / (2 * np.pi) + slope * cosine)
                q, r = q / 2, r / 2
                t = k + slope * t
            out[i, j] = t
    return out


def _slow_loss(s, y_s, t, y_t, diag_reg):
    k_ss, k_ts, k_tt = _relu_ntk(s, s), _relu_ntk(t, s), _relu_ntk(t, t)

    def duals(k, y):
        ridge = diag_reg * np.trace(k) / len(k) * np.eye(len(k))
        return np.linalg.inv(k + ridge) @ np.asarray(y)

    a, b = duals(k_ss, y_s), duals(k_tt, y_t)
    total = 0.0
    for c in range(a.shape[1]):
        u, v = a[:, c], b[:, c]
        total += 0.5 * (u @ k_ss @ u - 2 * v @ k_ts @ u + v @ k_tt @ v)
    return total


@pytest.mark.parametrize(("c", "diag_reg"), [(1, 0.0), (3, 1e-5), (3, 1e-1)])
def test_loss_equals_its_slow_twin(c, diag_reg):
    (s, y_s), (t, y_t) = _set(0, 4, c), _set(1, 9, c)
    fast = rkip.loss(s, y_s, t, y_t, kernel_fn=KERNEL, diag_reg=diag_reg)
    np.testing.assert_allclose(fast, _slow_loss(s, y_s, t, y_t, diag_reg), rtol=1e-6)


@pytest.mark.parametrize(("c", "diag_reg"), [(1, 0.0), (3, 1e-5), (3, 1e-1)])
def test_theorem_2_the_two_terms_add_up_to_the_loss(c, diag_reg):
    (s, y_s), (t, y_t) = _set(2, 5, c), _set(3, 11, c)
    kwargs = {"kernel_fn": KERNEL, "diag_reg": diag_reg}
    whole = rkip.loss(s, y_s, t, y_t, **kwargs)
    parts = rkip.terms(s, y_s, t, y_t, **kwargs)
    assert float(parts.label_matching) > 0
    assert float(parts.variance) > 0
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=1e-8 * float(whole))


def test_theorem_2_without_a_ridge_is_the_published_form():
    (s, y_s), (t, y_t) = _set(2, 5), _set(3, 11)
    k_ss, k_ts, k_tt = _relu_ntk(s, s), _relu_ntk(t, s), _relu_ntk(t, t)
    a = np.linalg.solve(k_ss, y_s)
    error = np.asarray(y_t) - k_ts @ a
    spread = k_ss - k_ts.T @ np.linalg.inv(k_tt) @ k_ts
    parts = rkip.terms(s, y_s, t, y_t, kernel_fn=KERNEL, diag_reg=0.0)
    expected = 0.5 * (error.T @ np.linalg.solve(k_tt, error)).item()
    np.testing.assert_allclose(parts.label_matching, expected, rtol=1e-6)
    np.testing.assert_allclose(
        parts.variance, 0.5 * (a.T @ spread @ a).item(), rtol=1e-6
    )


@pytest.mark.parametrize("diag_reg", [0.0, 1e-5])
def test_loss_and_its_terms_vanish_at_the_target_itself(diag_reg):
    t, y = _set(4, 8, 2)
    kwargs = {"kernel_fn": KERNEL, "diag_reg": diag_reg}
    scale = rkip.loss(0.5 * t, y, t, y, **kwargs)
    parts = rkip.terms(t, y, t, y, **kwargs)
    for value in (rkip.loss(t, y, t, y, **kwargs), *parts):
        np.testing.assert_allclose(value, 0, atol=2e-8 * float(scale))


def test_a_permuted_subset_has_no_variance_term():
    t, y = _set(5, 8)
    rows = jnp.asarray([6, 1, 3])
    parts = rkip.terms(t[rows], y[rows], t, y, kernel_fn=KERNEL)
    assert abs(float(parts.variance)) < 1e-8 * float(parts.label_matching)


def test_gradients_agree_with_finite_differences():
    (s, y_s), (t, y_t) = _set(6, 3, 2), _set(7, 6, 2)

    def fn(images, labels):
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        return rkip.loss(images, labels, t, y_t, kernel_fn=KERNEL)

    jax.test_util.check_grads(fn, (s, y_s), order=1, modes=["rev"], rtol=1e-4)


def test_theorem_1_the_finite_attack_tends_to_the_distance_of_regressors():
    # Change of parameters made by T, explained by S: at infinite width the squared
    # distance between two signed measures under the NTK.
    (s, b), (t, a) = _set(8, 3), _set(9, 6)
    quadratic = [
        jnp.sum(u * (KERNEL(x, z) @ v))
        for u, x, z, v in ((a, t, t, a), (a, t, s, b), (b, s, s, b))
    ]
    limit = quadratic[0] - 2 * quadratic[1] + quadratic[2]

    def error(width):
        model = MLP((width, width), use_bias=False, parametrization="ntk")

        def one(key):
            params = model.init_params(key, (4, 4, 1), jnp.float64)
            change = jax.grad(lambda p: jnp.sum(a * model.apply_fn(p, t)))(params)
            return stationarity.parameter_form(
                model.apply_fn, (params,), change, s, b[None]
            )

        keys = jax.random.split(jax.random.key(0), 32)
        losses = np.asarray(jax.jit(lambda: jax.lax.map(one, keys))())
        return float(np.sqrt(np.mean((losses / float(limit) - 1) ** 2)))

    errors = [error(width) for width in (16, 64, 256)]
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2]
    assert errors[2] < 0.2


def test_solved_labels_are_the_best_ones():
    (s, y_s), (t, y_t) = _set(10, 4, 2), _set(11, 9, 2)
    labels = rkip.label_solve(s, t, y_t, kernel_fn=KERNEL)

    def fn(labels):
        return rkip.loss(s, labels, t, y_t, kernel_fn=KERNEL)

    best = fn(labels)
    np.testing.assert_allclose(jax.grad(fn)(labels), 0, atol=1e-8)
    assert best < fn(y_s)
    assert best < fn(labels + 1e-3 * y_s)
    known = rkip.TargetDuals(
        jnp.linalg.solve(KERNEL(t) + 1e-5 * jnp.trace(KERNEL(t)) / 9 * jnp.eye(9), y_t),
        jnp.zeros(()),
    )
    again = rkip.label_solve(s, t, y_t, kernel_fn=KERNEL, target=known)
    chex.assert_trees_all_close(again, labels, rtol=1e-8)


def test_solved_labels_of_duplicates_name_a_remedy_that_helps():
    t, y_t = _set(11, 9, 1)
    twice = t[jnp.asarray([0, 0])]
    with pytest.raises(ValueError, match="images 0 and 1 coincide") as error:
        rkip.label_solve(twice, t, y_t, kernel_fn=KERNEL, diag_reg=1e-5)
    assert "remove duplicate images" in str(error.value)
    assert "raise" not in str(error.value)


def test_batches_give_the_loss_of_all_targets_on_average():
    t, _ = _set(13, 10)
    y = jnp.where(jnp.arange(10) < 4, -1.0, 1.0)[:, None]
    kwargs = {"kernel_fn": KERNEL, "key": jax.random.key(0), "images_per_class": 2}
    still = {"optimizer": optax.set_to_zero()}
    whole = rkip.distill(t, y, num_steps=1, **kwargs, **still).losses[0]
    batched = rkip.distill(t, y, num_steps=1000, batch_size=4, **kwargs, **still).losses
    error = float(jnp.std(batched)) / 1000**0.5
    assert error > 0
    assert abs(float(jnp.mean(batched) - whole)) < 4 * error


@pytest.fixture(scope="module")
def trained():
    """A small linearized network: its change of parameters is known exactly."""
    model = MLP((24, 24), num_outputs=2)
    params = model.init_params(jax.random.key(0), (4, 4, 1), jnp.float64)
    x, duals = _set(14, 6, 2)
    change = jax.grad(lambda p: jnp.sum(duals * model.apply_fn(p, x)))(params)
    return model, params, jax.tree.map(jnp.add, params, change), x, duals


def test_finite_labels_are_the_change_of_outputs_when_the_attack_is_right(trained):
    model, params_0, params_t, x, duals = trained

    class Found:
        images, state, nonfinite = x, None, False
        losses = jnp.zeros(0)

    Found.duals = duals[None]
    kernel_fn = functools.partial(structured.ntk, model, params_0, trace_outputs=False)
    out = rkip.distill_finite(
        lambda num_images: Found, kernel_fn=kernel_fn, num_images=6
    )
    change = jax.tree.map(jnp.subtract, params_t, params_0)
    _, moved = jax.jvp(lambda p: model.apply_fn(p, x), (params_0,), (change,))
    chex.assert_trees_all_close(out.labels, moved, rtol=1e-8)
    with pytest.raises(ValueError, match="trace over outputs"):
        rkip.distill_finite(
            lambda num_images: Found,
            kernel_fn=functools.partial(structured.ntk, model, params_0),
            num_images=6,
        )


def test_finite_distillation_runs_the_attack_of_reconstruction(trained):
    model, params_0, params_t, *_ = trained
    attack = functools.partial(
        kkt.reconstruct, model, params_0, params_t, key=jax.random.key(1),
        image_shape=(4, 4, 1), bounds=(-3.0, 3.0), points="init",
        settings=kkt.Settings(num_steps=50),
    )  # fmt: skip
    kernel_fn = functools.partial(structured.ntk, model, params_0, trace_outputs=False)
    with jax.numpy_dtype_promotion("standard"):
        out = rkip.distill_finite(attack, kernel_fn=kernel_fn, num_images=3)
    chex.assert_shape(out.images, (3, 4, 4, 1))
    chex.assert_shape(out.labels, (3, 2))
    assert out.losses[-1] < out.losses[0]
    with pytest.raises(ValueError, match="num_images=0 must be at least 1"):
        rkip.distill_finite(attack, kernel_fn=kernel_fn, num_images=0)
    both = functools.partial(attack, points="both")
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, pytest.raises(ValueError, match="2 points"):
        rkip.distill_finite(both, kernel_fn=kernel_fn, num_images=3)
