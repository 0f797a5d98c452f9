"""KIP: the loss against slow twins, and Label Solve."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import kip, rkip
from ntk_privacy.kernels import infinite

KERNEL = infinite.mlp(depth=1, weight_std=2**0.5, bias_std=0.1)


def _set(key, n, c=1):
    key_x, key_y = jax.random.split(jax.random.key(key))
    x = jax.random.normal(key_x, (n, 4, 4, 1), jnp.float64)
    return x, jax.random.normal(key_y, (n, c), jnp.float64)


def _slow_loss(s, y_s, t, y_t, diag_reg):
    k = np.asarray(KERNEL(s))
    m = len(k)
    inverse = np.linalg.inv(k + diag_reg * np.trace(k) / m * np.eye(m))
    k_ts = np.asarray(KERNEL(t, s))
    total = 0.0
    for i in range(len(t)):
        for c in range(y_t.shape[1]):
            total += (k_ts[i] @ inverse @ y_s[:, c] - y_t[i, c]) ** 2
    return 0.5 * total / y_t.size


@pytest.mark.parametrize("diag_reg", [0.0, 1e-6, 1e-1])
@pytest.mark.parametrize("c", [1, 3])
def test_loss_equals_its_slow_twin(c, diag_reg):
    (s, y_s), (t, y_t) = _set(0, 4, c), _set(1, 9, c)
    fast = kip.loss(s, y_s, t, y_t, kernel_fn=KERNEL, diag_reg=diag_reg)
    np.testing.assert_allclose(fast, _slow_loss(s, y_s, t, y_t, diag_reg), rtol=1e-9)


def test_loss_vanishes_where_the_targets_are_the_set():
    s, y = _set(2, 5, 2)
    assert kip.loss(s, y, s, y, kernel_fn=KERNEL, diag_reg=0.0) < 1e-16


def test_gradients_agree_with_finite_differences():
    (s, y_s), (t, y_t) = _set(3, 3, 2), _set(4, 6, 2)

    def fn(images, labels):
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        return kip.loss(images, labels, t, y_t, kernel_fn=KERNEL)

    jax.test_util.check_grads(fn, (s, y_s), order=1, modes=["rev"], rtol=1e-4)


@pytest.mark.parametrize("n", [3, 4, 9])
def test_solved_labels_are_the_published_pseudo_inverse(n):
    (s, _), (t, y_t) = _set(5, 4, 2), _set(6, n, 2)
    k = np.asarray(KERNEL(s))
    ridged = k + 1e-2 * np.trace(k) / 4 * np.eye(4)
    published = np.linalg.pinv(np.asarray(KERNEL(t, s)) @ np.linalg.inv(ridged)) @ y_t
    labels = kip.label_solve(s, t, y_t, kernel_fn=KERNEL, diag_reg=1e-2)
    np.testing.assert_allclose(labels, published, rtol=1e-8)


def test_solved_labels_are_the_best_ones():
    (s, y_s), (t, y_t) = _set(5, 4, 2), _set(6, 9, 2)
    labels = kip.label_solve(s, t, y_t, kernel_fn=KERNEL, diag_reg=1e-2)

    def fn(labels):
        return kip.loss(s, labels, t, y_t, kernel_fn=KERNEL, diag_reg=1e-2)

    np.testing.assert_allclose(jax.grad(fn)(labels), 0, atol=1e-10)
    assert fn(labels) < fn(y_s)
    assert fn(labels) < fn(labels + 1e-3 * y_s)


@pytest.mark.parametrize("fn", [kip.loss, rkip.loss, rkip.terms])
def test_integers_and_rows_without_columns_are_told_by_the_losses(fn, monkeypatch):
    """An integer's dtype would round the loss to 0."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    (s, y_s), (t, y_t) = _set(0, 4), _set(1, 9)

    def told(s=s, y_s=y_s, t=t, y_t=y_t, diag_reg=1e-5):
        return fn(s, y_s, t, y_t, kernel_fn=KERNEL, diag_reg=diag_reg)

    with pytest.raises(ValueError, match="y_target has dtype int"):
        told(y_t=jnp.sign(y_t).astype(int))
    with pytest.raises(ValueError, match="labels has dtype uint8"):
        told(y_s=(y_s > 0).astype(jnp.uint8))
    with pytest.raises(ValueError, match="images has dtype uint8"):
        jax.eval_shape(lambda s: told(s=s), s.astype(jnp.uint8))
    with pytest.raises(ValueError, match="x_target has dtype complex"):
        told(t=t.astype(complex))
    with pytest.raises(ValueError, match=r"labels has shape \(4,\): give one row"):
        told(y_s=y_s[:, 0], y_t=y_t[:, 0])
    with pytest.raises(ValueError, match="y_target has NaN"):
        told(y_t=y_t.at[2].set(jnp.nan))
    for wrong in (-1.0, np.nan):
        with pytest.raises(ValueError, match=r"diag_reg=.* must be at least 0"):
            told(diag_reg=wrong)


@pytest.mark.parametrize("module", [kip, rkip])
def test_targets_that_no_labels_fit_are_told(module, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    (s, _), (t, y_t) = _set(0, 4), _set(1, 9)
    for wrong, told in (
        (y_t.astype(int), "y_target has dtype int"),
        (y_t * jnp.nan, "y_target has NaN"),
        (y_t[:, 0], r"y_target has shape \(9,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            module.label_solve(s, t, wrong, kernel_fn=KERNEL)


def test_half_precision_is_no_dtype_to_distil_in(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    (_, _), (t, y_t) = _set(0, 4), _set(1, 9)
    half = (t.astype(jnp.float16), y_t.astype(jnp.float16))
    with pytest.raises(ValueError, match="x_target has dtype float16"):
        kip.distill(*half, kernel_fn=KERNEL, key=jax.random.key(0), num_steps=1)
