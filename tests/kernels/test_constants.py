"""Arrays that a jitted function closes over are looked at by no check in its trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import kernels, kip, rkip
from ntk_privacy.evaluation import kernel_distance
from ntk_privacy.kernels import infinite, infinite_conv, regression
from ntk_privacy.training import linearized

x = jax.random.normal(jax.random.key(0), (4, 2, 2, 1), jnp.float32)
rows = x.reshape(4, -1)
y = jnp.asarray([[1.0], [-1.0]] * 2, jnp.float32)
weights = jax.random.normal(jax.random.key(1), (4, 1), jnp.float32)
mlp = infinite.mlp(depth=1)
k = rows @ rows.T


def network(params, x):
    return x @ params


def linear(x1, x2):
    return x1 @ x2.T


calls = {
    "infinite": lambda: mlp(rows),
    "infinite_conv": lambda: infinite_conv.convnet(1)(x),
    "empirical": lambda: kernels.empirical.ntk(network, weights, rows),
    "predict": lambda: regression.predict(linear, rows, y, rows),
    "kip": lambda: kip.loss(rows[:2], y[:2], rows, y, kernel_fn=mlp),
    "rkip": lambda: rkip.loss(rows[:2], y[:2], rows, y, kernel_fn=mlp),
    "terms": lambda: rkip.terms(rows[:2], y[:2], rows, y, kernel_fn=mlp).variance,
    "kernel_distance": lambda: kernel_distance.kernel_distance(k, 1.1 * k + 1),
    "linearized": lambda: linearized.loss_at(
        linearized.decompose(k[:, :, None, None], 0 * y, y),
        linearized.gradient_flow(1.0),
    ),
}


@pytest.mark.parametrize("name", calls)
def test_constants_of_a_jitted_function_need_no_tracer_among_the_arguments(name):
    traced = jax.jit(lambda: calls[name]())()
    np.testing.assert_allclose(traced, calls[name](), rtol=2e-3, atol=1e-5)
