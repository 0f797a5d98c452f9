"""Infinite kernels against the mean over finite networks of width 8192."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import empirical, infinite, infinite_conv
from ntk_privacy.models import MLP

WIDTH = 8192
FLOAT32 = jnp.float32


def images(n, shape):
    return jax.random.normal(jax.random.key(0), (n, *shape), FLOAT32)


def agrees(sample, count, expected):
    """Mean over `count` networks: within 3.5 standard errors, these below 0.8%.

    Entries of one network move together; the errors are those of each entry.
    """
    kernels = np.asarray(
        jax.lax.map(sample, jax.random.split(jax.random.key(1), count)), np.float64
    )
    error = kernels.std(0, ddof=1) / np.sqrt(count)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (error / scale).max() < 8e-3
    assert np.abs((kernels.mean(0) - expected) / error).max() < 3.5
    # It would see an error of three parts in a hundred.
    assert np.abs((kernels.mean(0) - 1.03 * expected) / error).max() > 3.5


@pytest.mark.slow
@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_mlp(parametrization):
    x = images(4, (4, 4, 2))
    model = MLP((WIDTH, WIDTH), parametrization=parametrization)

    def sample(key):
        params = model.init_params(key, x.shape[1:], FLOAT32)
        return empirical.ntk(model.apply_fn, params, x, method="structured")

    kernel_fn = infinite.mlp(2, parametrization=parametrization, width=WIDTH)
    # The network has biases; in "ntk" the kernel counts them by bias_std, here 0.
    expected = np.asarray(kernel_fn(x), np.float64)
    if parametrization == "ntk":
        expected = expected + bias_kernel(x)
    agrees(sample, 24, expected)


def bias_kernel(x):
    """What trainable biases that start at zero add: products of slopes."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    k = flat @ flat.T / flat.shape[1]
    added = np.ones_like(k)
    for _ in range(2):
        q = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        rho = np.clip(k / q, -1, 1)
        angle = np.pi - np.arccos(rho)
        k = q / (2 * np.pi) * (np.sqrt(1 - rho**2) + rho * angle)
        added = 1 + added * angle / (2 * np.pi)
    return added


@pytest.mark.slow
@pytest.mark.parametrize("head", ["flatten", "global_pool"])
def test_convnet(head):
    x = images(3, (4, 4, 2))
    layers = (
        infinite_conv.Conv(),
        infinite.relu,
        infinite_conv.AvgPool(),
        infinite_conv.Flatten() if head == "flatten" else infinite_conv.GlobalAvgPool(),
        infinite.Dense(),
    )

    def apply_fn(params, x):
        first, last = params
        y = jax.lax.conv_general_dilated(
            x, first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) / np.sqrt(9 * x.shape[-1], dtype=np.float32)
        n, h, w, c = y.shape
        y = jax.nn.relu(y).reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
        y = y.reshape(n, -1) if head == "flatten" else y.mean((1, 2))
        return y @ last / np.sqrt(y.shape[1], dtype=np.float32)

    def sample(key):
        keys = jax.random.split(key)
        units = WIDTH * (4 if head == "flatten" else 1)
        shapes = ((3, 3, 2, WIDTH), (units, 1))
        params = [
            jax.random.normal(k, shape, FLOAT32)
            for k, shape in zip(keys, shapes, strict=True)
        ]
        return empirical.ntk(apply_fn, params, x, method="structured")

    expected = np.asarray(infinite_conv.kernel(layers)(x), np.float64)
    agrees(sample, 64, expected)
