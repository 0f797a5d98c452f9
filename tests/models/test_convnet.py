"""The ConvNet: PyTorch's initialisation, its layers by hand, sizes, names, faults."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.models import ConvNet, convnet

KEY = jax.random.key(0)


def _normalised(h, norm, scale, bias):
    n, rows, columns, c = h.shape
    groups = {"batch": None, "layer": 1, "instance": c, "group": 4}[norm]
    if groups is None:
        parts, axes = h, (0, 1, 2)
    else:
        parts, axes = h.reshape(n, rows, columns, groups, -1), (1, 2, 4)
    mean, var = parts.mean(axes, keepdims=True), parts.var(axes, keepdims=True)
    return ((parts - mean) / np.sqrt(var + 1e-5)).reshape(h.shape) * scale + bias


def _by_hand(params, x, activation, norm, pooling):
    """The network in NumPy, one loop per pixel of the kernel."""
    h = np.asarray(x)
    for i in range(2):
        layer = {k: np.asarray(v) for k, v in params[f"Conv_{i}"].items()}
        pad = 3 if i == 0 and h.shape[-1] == 1 else 1
        h = np.pad(h, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        rows, columns = h.shape[1] - 2, h.shape[2] - 2
        h = layer["bias"] + sum(
            h[:, a : a + rows, b : b + columns] @ layer["kernel"][a, b]
            for a in range(3)
            for b in range(3)
        )
        if norm != "none":
            affine = {k: np.asarray(v) for k, v in params[f"Norm_{i}"].items()}
            h = _normalised(h, norm, affine["scale"], affine["bias"])
        h = {
            "relu": lambda h: np.maximum(h, 0),
            "leaky_relu": lambda h: np.where(h > 0, h, 0.01 * h),
            "sigmoid": lambda h: 1 / (1 + np.exp(-h)),
            "swish": lambda h: h / (1 + np.exp(-h)),
        }[activation](h)
        if pooling != "none":
            rows, columns = h.shape[1] // 2, h.shape[2] // 2
            h = h[:, : 2 * rows, : 2 * columns]
            h = h.reshape(len(h), rows, 2, columns, 2, -1)
            h = h.mean((2, 4)) if pooling == "avg" else h.max((2, 4))
    features = h.reshape(len(h), -1)
    last = params["Linear"]
    return features, features @ np.asarray(last["kernel"]) + np.asarray(last["bias"])


@pytest.mark.parametrize(
    ("activation", "norm", "pooling", "depth"),
    [
        ("relu", "instance", "avg", 3),
        ("leaky_relu", "group", "max", 1),
        ("sigmoid", "layer", "none", 3),
        ("swish", "batch", "avg", 3),
        ("relu", "none", "avg", 1),
    ],
)
def test_the_forward_pass_is_the_one_written_out(activation, norm, pooling, depth):
    model = ConvNet(3, 8, 2, activation, norm, pooling)
    shape = (10, 9, depth)  # an odd side: pooling leaves a column out
    params = model.init_params(KEY, shape, jnp.float64)
    random = np.random.default_rng(1)  # away from ones and zeros
    params = jax.tree.map(lambda a: a + 0.1 * random.normal(size=a.shape), params)
    x = jax.random.normal(jax.random.key(2), (3, *shape))
    features, logits = _by_hand(params, x, activation, norm, pooling)
    found = jax.jit(lambda p, x: (model.embed_fn(p, x), model.apply_fn(p, x)))(
        params, x
    )
    chex.assert_trees_all_close(found, (features, logits), rtol=1e-9)


def test_weights_and_biases_are_uniform_with_the_published_bound():
    params = ConvNet(10, 64, 2).init_params(KEY, (8, 8, 3))
    for name, fan_in in (("Conv_0", 27), ("Conv_1", 576), ("Linear", 256)):
        bound = fan_in**-0.5
        for leaf in params[name].values():
            chex.assert_type(leaf, jnp.float32)
            assert float(jnp.abs(leaf).max()) <= bound
        kernel = params[name]["kernel"]
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
        assert float(jnp.abs(params[name]["bias"]).max()) > bound / 2
    assert (params["Norm_0"]["scale"] == 1).all()
    assert not params["Norm_0"]["bias"].any()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((32, 32, 3), 2048), ((28, 28, 1), 2048), ((64, 64, 3), 8192)],
)
def test_published_sizes_of_features(shape, size):
    model = ConvNet()
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    params = jax.eval_shape(lambda: model.init_params(KEY, shape))
    assert jax.eval_shape(model.embed_fn, params, x).shape == (2, size)
    assert jax.eval_shape(model.apply_fn, params, x).shape == (2, 10)


def test_instance_norm_ignores_contrast():
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    model = ConvNet(2, 4, 1)
    params = model.init_params(KEY, (8, 8, 3), jnp.float64)
    params["Conv_0"]["bias"] *= 0
    embed = jax.jit(model.embed_fn)
    once, scaled = embed(params, x), embed(params, 1e3 * x)
    chex.assert_trees_all_close(once, scaled, atol=1e-3)


def test_equal_settings_are_one_model_for_the_compiler():
    assert ConvNet(10, 8) == ConvNet(10, 8)
    assert hash(ConvNet(10, 8)) == hash(ConvNet(10, 8))
    assert ConvNet(10, 8) != ConvNet(10, 16)


def test_variants_by_name():
    assert convnet.named("ConvNet") == ConvNet()
    assert convnet.named("ConvNetD4").depth == 4
    assert convnet.named("ConvNetW256", num_outputs=5) == ConvNet(5, 256)
    assert convnet.named("ConvNetASwish").activation == "swish"
    assert convnet.named("ConvNetAS").activation == "sigmoid"
    assert convnet.named("ConvNetW64BNMP") == ConvNet(
        width=64, norm="batch", pooling="max"
    )
    for wrong in ("ConvNetX", "LeNet", "ConvNetD", "ConvNetD3Q"):
        with pytest.raises(ValueError, match="is unknown"):
            convnet.named(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"activation": "tanh"}, "activation='tanh' is unknown"),
        ({"norm": "weight"}, "norm='weight' is unknown"),
        ({"pooling": "sum"}, "pooling='sum' is unknown"),
        ({"width": 6, "norm": "group"}, "width=6 does not split"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(**arguments)


def test_images_too_small_for_the_depth_are_refused():
    with pytest.raises(ValueError, match="depth=3 pools these images to nothing"):
        ConvNet(2, 4).init_params(KEY, (4, 4, 3))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("n", [12, 13, 2])
def test_features_block_by_block_are_the_features(monkeypatch, n, norm):
    model = ConvNet(3, 4, 1, norm=norm)
    params = model.init_params(KEY, (6, 6, 2), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (n, 6, 6, 2))
    monkeypatch.setattr(convnet, "_CACHED", 4 * 36 * model.width)
    found = jax.jit(lambda x: convnet.embed_in_blocks(model, params, x))
    chex.assert_trees_all_close(found(x), model.embed_fn(params, x), rtol=1e-9)

    def slope(embed_fn):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(embed_fn(x)))))(x)

    chex.assert_trees_all_close(
        slope(found), slope(lambda x: model.embed_fn(params, x)), rtol=1e-9, atol=1e-12
    )
    text = found.lower(x).as_text()
    assert ("while" in text) == (n == 12 and norm != "batch")
