"""The per-layer kernel against the Jacobian contraction, for every kind of MLP."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import empirical, structured
from ntk_privacy.models import MLP

# Op by op, compiling takes ten times as long.
ntk = jax.jit(structured.ntk, static_argnums=0, static_argnames="trace_outputs")


def _noisy(params):
    return jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params
    )


@functools.cache
def _setup(depth=2, num_outputs=3, use_bias=True, parametrization="standard"):
    widths = (16, 12, 10)[:depth]
    model = MLP(widths, num_outputs, use_bias, parametrization)
    params = model.init_params(jax.random.key(0), (4, 4, 1), jnp.float64)
    # Biases at zero would hide a missing term.
    params = jax.jit(_noisy)(params)
    x1 = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    x2 = jax.random.normal(jax.random.key(2), (5, 4, 4, 1))
    return model, params, x1, x2


@pytest.mark.parametrize(
    ("depth", "num_outputs", "use_bias", "parametrization"),
    [
        (1, 1, True, "ntk"),
        (1, 3, False, "standard"),
        (2, 1, True, "standard"),
        (2, 3, True, "ntk"),
        (2, 3, (True, False, True), "standard"),
        (3, 1, False, "ntk"),
        (3, 3, True, "standard"),
    ],
)
def test_structured_is_the_jacobian_contraction(
    depth, num_outputs, use_bias, parametrization
):
    model, params, x1, x2 = _setup(depth, num_outputs, use_bias, parametrization)

    @jax.jit
    def rows(params, x):
        return empirical.jacobian(model.apply_fn, params, x)

    j = np.asarray(rows(params, jnp.concatenate([x1, x2])))
    full = np.einsum("ncp,mdp->nmcd", j[:3], j[3:])
    want = full, np.einsum("nmcc->nm", full) / num_outputs

    @jax.jit
    def fast(params, x1, x2):
        full = structured.ntk(model, params, x1, x2, trace_outputs=False)
        return full, structured.ntk(model, params, x1, x2)

    chex.assert_trees_all_close(fast(params, x1, x2), want, rtol=1e-10, atol=1e-12)


def test_kernel_is_symmetric_and_positive():
    model, params, x1, x2 = _setup()
    x = jnp.concatenate([x1, x2])
    # The second set is the first unless it is given.
    chex.assert_trees_all_close(ntk(model, params, x), ntk(model, params, x, x))
    full = ntk(model, params, x, trace_outputs=False)
    square = full.transpose(0, 2, 1, 3).reshape(24, 24)
    chex.assert_trees_all_close(square, square.T, rtol=1e-12)
    values = jnp.linalg.eigvalsh(square)
    assert values[0] > -1e-10 * values[-1]
    assert jnp.linalg.eigvalsh(ntk(model, params, x))[0] > 0
    chex.assert_trees_all_close(
        ntk(model, params, x1, x2),
        ntk(model, params, x2, x1).T,
        rtol=1e-12,
    )


@pytest.mark.parametrize("sharpness", [None, 7.0])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_forward_and_backward_are_the_network_and_its_derivative(
    sharpness, parametrization
):
    model, params, x1, _ = _setup(parametrization=parametrization)
    cotangents = jax.random.normal(jax.random.key(3), (3, 3))

    @jax.jit
    def run(params):
        trace = structured.forward(model, params, x1, sharpness)
        return trace, structured.backward(model, params, trace.slopes, cotangents)

    trace, signals = run(params)
    chex.assert_trees_all_close(
        trace.outputs, model.apply_fn(params, x1, sharpness), rtol=1e-12
    )
    grads = jax.jit(
        jax.grad(lambda p: jnp.sum(cotangents * model.apply_fn(p, x1, sharpness)))
    )(params)
    for i, (a, b) in enumerate(zip(trace.inputs, signals, strict=True)):
        want = grads[f"Dense_{i}"]
        chex.assert_trees_all_close(a.T @ b, want["kernel"], rtol=1e-10, atol=1e-12)
        chex.assert_trees_all_close(b.sum(0), want["bias"], rtol=1e-10, atol=1e-12)


@pytest.mark.optimized
def test_float32_is_close_to_float64_and_stays_float32():
    model, params, x1, _ = _setup()
    single = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    got = ntk(model, single, x1.astype(jnp.float32))
    chex.assert_type(got, jnp.float32)
    np.testing.assert_allclose(got, ntk(model, params, x1), rtol=1e-5)
