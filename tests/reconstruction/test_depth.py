"""Many hidden layers: one wrong gate spoils nothing, and rows are found at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import algebraic, evidence, layer_inversion

SHAPE = (8, 8, 1)
CLASSES = 10


def _shared(depth, width, n, dtype):
    """A network, its images, their duals, and the gradient of their cross-entropy."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (n, *SHAPE), dtype)
    net = MLP((width,) * depth, CLASSES)
    params = net.init_params(keys[1], SHAPE, dtype)

    def loss(out):
        labels = jnp.arange(n) % CLASSES
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(out, labels))

    duals = jax.grad(loss)(net.apply_fn(params, x))
    gradient = jax.jit(jax.grad(lambda p: loss(net.apply_fn(p, x))))(params)
    return net, params, gradient, x, duals


def test_activations_too_near_to_zero_to_tell_spoil_no_image(monkeypatch):
    _, params, gradient, x, duals = _shared(4, 96, 6, jnp.float64)

    def of(tree, leaf):
        return [np.asarray(tree[name][leaf]) for name in sorted(tree)]

    layers = layer_inversion.Layers(
        of(params, "kernel"), of(params, "bias"),
        of(gradient, "kernel"), of(gradient, "bias"),
    )  # fmt: skip
    flat = np.asarray(x).reshape(len(x), -1)
    last = layer_inversion._forward(layers, flat, 4)[-1]
    rows = (last > 0) * (np.asarray(duals) @ layers.kernels[-1].T)
    wrong = []

    def coarse(a):
        floor = 0.02 * np.sqrt(np.mean(a**2, axis=1))
        wrong.append(np.sum((a > 1e-9) & (a <= floor[:, None])))
        return floor

    monkeypatch.setattr(layer_inversion, "_noise_floor", coarse)
    decoded = layer_inversion.peel(
        layers, rows, np.arange(96), span=None, dtype=np.dtype(np.float64)
    )
    assert len(wrong) == 4
    assert min(wrong[:3]) > 0
    np.testing.assert_allclose(decoded.inputs, flat, atol=1e-8)


def test_a_doubtful_unit_is_as_the_change_has_it():
    rng = np.random.default_rng(0)
    inputs, signals = rng.standard_normal((12, 3)), rng.standard_normal((3, 20))
    gates = rng.random((3, 20)) > 0.5
    change = inputs @ (gates * signals)
    doubtful = np.arange(20) < 5
    told = gates ^ (np.arange(20) % 3 == 0)
    settled = layer_inversion._settled(told, signals, inputs, change, doubtful)
    np.testing.assert_array_equal(settled[:, :5], gates[:, :5])
    np.testing.assert_array_equal(settled[:, 5:], told[:, 5:])
    none = np.zeros(20, bool)
    same = layer_inversion._settled(told, signals, inputs, change, none)
    np.testing.assert_array_equal(same, told)


def test_six_layers_are_decoded_from_one_gradient():
    n = 12
    net, params, gradient, x, _ = _shared(6, 128, n, jnp.float32)
    known = evidence.of_gradient(net, params, gradient, image_shape=SHAPE)
    found = algebraic.from_evidence(known, key=jax.random.key(1))
    assert found.verdict.num_certified == n
    far = np.sum((np.asarray(x)[:, None] - found.images[None]) ** 2, axis=(2, 3, 4))
    assert far.min(1).max() < 1e-6
