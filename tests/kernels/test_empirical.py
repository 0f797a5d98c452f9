"""The Jacobian contraction, the slow and obvious NTK, against loops of gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import _platform
from ntk_privacy.kernels import empirical
from ntk_privacy.models import MLP, ConvNet


def _setup(num_outputs):
    model = MLP((6,), num_outputs)
    params = model.init_params(jax.random.key(0), (2, 2, 1), jnp.float64)
    x1 = jax.random.normal(jax.random.key(1), (3, 2, 2, 1))
    x2 = jax.random.normal(jax.random.key(2), (4, 2, 2, 1))
    return model, params, x1, x2


def _gradient(model, params, image, output):
    grads = jax.grad(lambda p: model.apply_fn(p, image[None])[0, output])(params)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_kernel_is_the_product_of_gradients_one_by_one(num_outputs):
    model, params, x1, x2 = _setup(num_outputs)
    rows1 = [[_gradient(model, params, x, c) for c in range(num_outputs)] for x in x1]
    rows2 = [[_gradient(model, params, x, c) for c in range(num_outputs)] for x in x2]
    chex.assert_trees_all_close(
        empirical.jacobian(model.apply_fn, params, x1), np.asarray(rows1), rtol=1e-12
    )
    full = np.asarray([[[[g @ h for h in b] for g in a] for b in rows2] for a in rows1])
    got = empirical.ntk(model.apply_fn, params, x1, x2, trace_outputs=False)
    chex.assert_trees_all_close(got, full, rtol=1e-10, atol=1e-12)
    traced = empirical.ntk(model.apply_fn, params, x1, x2)
    mean_of_blocks = np.einsum("nmcc->nm", full) / num_outputs
    chex.assert_trees_all_close(traced, mean_of_blocks, rtol=1e-10, atol=1e-12)


def test_any_apply_fn_and_any_pytree_will_do():
    def apply_fn(params, x):
        scale, (matrix,) = params
        return scale * x.reshape(len(x), -1) @ matrix

    params = (jnp.asarray(2.0), [jnp.ones((4, 2))])
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    flat = np.asarray(x).reshape(3, 4)
    # d/dscale = sum of the pixels; d/dmatrix[:, c] = 2 x.
    want = 4 * flat @ flat.T + np.outer(flat.sum(1), flat.sum(1))
    chex.assert_trees_all_close(empirical.ntk(apply_fn, params, x), want, rtol=1e-12)


def test_float32_stays_float32():
    model = MLP((6,), 2)
    params = model.init_params(jax.random.key(0), (2, 2, 1))
    x = jax.random.normal(jax.random.key(1), (3, 2, 2, 1), jnp.float32)
    chex.assert_type(empirical.ntk(model.apply_fn, params, x), jnp.float32)


def test_what_was_planned_on_one_device_is_not_taken_on_another(monkeypatch):
    # A ConvNet convolves in our own primitive on processors alone.
    model = ConvNet(2, 3, 1)
    params = model.init_params(jax.random.key(0), (4, 4, 1), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    kernels = []
    for platform in ("gpu", "cpu"):
        monkeypatch.setattr(_platform, "name", lambda name=platform: name)
        # As JAX does where another device is chosen.
        jax.clear_caches()
        kernels.append(empirical.ntk(model.apply_fn, params, x))
    chex.assert_trees_all_close(*kernels, rtol=1e-10)
