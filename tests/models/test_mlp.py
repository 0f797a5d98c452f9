"""The MLP against its formulas written out, its initialisation, its refusals."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import MLP, softplus

SHAPE = (3, 2, 2)
PIXELS = 12


def _filled(params, key):
    """The same tree with nothing at zero, biases included."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            jax.random.normal(k, a.shape, a.dtype)
            for k, a in zip(keys, leaves, strict=True)
        ],
    )


def _by_hand(params, x, parametrization, activation):
    h = np.asarray(x).reshape(len(x), -1)
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        scale = h.shape[1] ** -0.5 if parametrization == "ntk" else 1.0
        h = scale * h @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0.0))
        if i < len(params) - 1:
            h = activation(h)
    return h


@pytest.mark.parametrize(
    ("parametrization", "widths", "use_bias"),
    [
        ("standard", (5, 7), True),
        ("standard", (5,), False),
        ("ntk", (5, 7), True),
        ("ntk", (4, 6, 3), False),
    ],
)
def test_outputs_are_the_formula(parametrization, widths, use_bias):
    model = MLP(widths, 3, use_bias, parametrization)
    params = model.init_params(jax.random.key(0), SHAPE, jnp.float64)
    params = _filled(params, jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    want = _by_hand(params, x, parametrization, lambda h: np.maximum(h, 0))
    chex.assert_trees_all_close(model.apply_fn(params, x), want, rtol=1e-12)
    want = _by_hand(params, x, parametrization, lambda h: np.log(1 + np.exp(3 * h)) / 3)
    chex.assert_trees_all_close(model.apply_fn(params, x, 3.0), want, rtol=1e-10)


def test_the_parametrisations_agree_once_the_scale_is_moved_into_the_weights():
    ntk = MLP((5, 7), 2, True, "ntk")
    params = _filled(
        ntk.init_params(jax.random.key(0), SHAPE, jnp.float64), jax.random.key(1)
    )
    moved = {
        name: {**layer, "kernel": layer["kernel"] / layer["kernel"].shape[0] ** 0.5}
        for name, layer in params.items()
    }
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    chex.assert_trees_all_close(
        ntk.apply_fn(params, x), MLP((5, 7), 2).apply_fn(moved, x), rtol=1e-12
    )


def test_standard_initialisation_is_flax_default():
    params = MLP((300, 400)).init_params(jax.random.key(0), (20, 20, 1))
    for layer in params.values():
        fan_in = layer["kernel"].shape[0]
        assert not layer["bias"].any()
        chex.assert_type([layer["kernel"], layer["bias"]], jnp.float32)
        # lecun_normal: variance 1/fan_in, a normal cut at two of its own deviations.
        cut = 2 * fan_in**-0.5 / 0.87962566
        assert float(jnp.abs(layer["kernel"]).max()) <= cut * (1 + 1e-6)
    wide = params["Dense_1"]["kernel"]
    np.testing.assert_allclose(wide.var() * 300, 1, rtol=0.02)
    np.testing.assert_allclose(wide.mean() * 300**0.5, 0, atol=0.02)
    # The very numbers that nn.Dense draws from the same stream.
    dense = nn.Dense(300, name="Dense_0")
    same = dense.init(jax.random.key(3), jnp.zeros((1, 400), jnp.float32))["params"]
    ours = MLP((), 300).init_params(jax.random.key(3), (20, 20, 1))["Dense_0"]
    np.testing.assert_allclose(ours["kernel"].std(), same["kernel"].std(), rtol=0.02)


def test_ntk_initialisation_is_standard_normal():
    params = MLP((300, 400), 1, True, "ntk").init_params(
        jax.random.key(0), (20, 20, 1), jnp.float64
    )
    for name in ("Dense_0", "Dense_1"):
        kernel = params[name]["kernel"]
        chex.assert_type(kernel, jnp.float64)
        np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1], atol=0.02)
        assert jnp.abs(kernel).max() > 3.5  # not truncated
        assert not params[name]["bias"].any()


def test_biases_and_initialisers_can_differ_by_layer():
    inits = [nn.initializers.constant(0.5), None, nn.initializers.zeros]
    model = MLP((5, 7), 2, [True, False, False], kernel_inits=inits)
    params = model.init_params(jax.random.key(0), SHAPE)
    assert [sorted(params[f"Dense_{i}"]) for i in range(3)] == [
        ["bias", "kernel"],
        ["kernel"],
        ["kernel"],
    ]
    assert (params["Dense_0"]["kernel"] == 0.5).all()
    assert params["Dense_1"]["kernel"].std() > 0.1
    assert not params["Dense_2"]["kernel"].any()


def test_softplus_tends_to_relu_from_above_at_the_known_rate():
    x = jnp.linspace(-3, 3, 101)
    for sharpness in (1.0, 10.0, 1e3, 1e6):
        gap = softplus(x, sharpness) - jax.nn.relu(x)
        assert (gap >= 0).all()
        # The gap is largest at zero, log(2)/sharpness.
        np.testing.assert_allclose(gap.max(), np.log(2) / sharpness, rtol=1e-9)
        assert jnp.isfinite(jax.vmap(jax.grad(softplus), (0, None))(x, sharpness)).all()
    chex.assert_trees_all_close(
        softplus(x, 2.0), np.log1p(np.exp(2 * np.asarray(x))) / 2, rtol=1e-12
    )


def test_softplus_keeps_float32_and_its_derivatives_are_right():
    x = jnp.asarray([-40.0, -1.0, 0.0, 1e-3, 2.0, 40.0], jnp.float32)
    chex.assert_type(softplus(x, 200.0), jnp.float32)
    y = jnp.asarray([-2.0, -0.3, 0.0, 0.1, 1.5])
    slope = jax.vmap(jax.grad(softplus), (0, None))(y, 5.0)
    chex.assert_trees_all_close(slope, jax.nn.sigmoid(5 * y), rtol=1e-12)
    curvature = jax.vmap(jax.grad(jax.grad(softplus)), (0, None))(y, 5.0)
    s = jax.nn.sigmoid(5 * y)
    chex.assert_trees_all_close(curvature, 5 * s * (1 - s), rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (16, 0)}, "width=0 must be at least 1"),
        ({"widths": (-3,)}, "width=-3 must be at least 1"),
        ({"num_outputs": 0}, "num_outputs=0 must be at least 1"),
        ({"widths": (4, 4), "use_bias": [True]}, "use_bias has 1 flags for 3 layers"),
        ({"widths": (4,), "kernel_inits": [None]}, "kernel_inits has 1 entries for 2"),
    ],
)
def test_bad_sizes_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)
