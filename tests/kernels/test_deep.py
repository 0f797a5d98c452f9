"""Deep infinite networks are one loop, whose program does not grow with the depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.kernels import infinite, infinite_conv, layers, repeated

X = jax.random.normal(jax.random.key(0), (4, 6, 6, 1))
DENSE, RELU = infinite.Dense(1.2, 0.1), infinite.relu
BLOCK = infinite.residual(RELU, infinite.Dense(0.5, 0.1))
NETWORKS = {
    "relu": lambda k: infinite.mlp_layers(k, weight_std=2**0.5),
    "standard": lambda k: infinite.mlp_layers(
        k, parametrization="standard", width=64, activation="erf"
    ),
    "residual": lambda k: (DENSE, *(BLOCK,) * k, RELU, DENSE),
    "two parts": lambda k: (DENSE, RELU) * k + (BLOCK,) * k + (DENSE,),
}


def _unrolled(monkeypatch):
    monkeypatch.setattr(layers, "_MANY", 10**6)
    jax.clear_caches()


def _kernels_and_gradient(network):
    kernel_fn = infinite.nngp_and_ntk(network)

    def loss(x):
        return sum(jnp.sum(jnp.sin(k)) for k in kernel_fn(x, 0.7 * x[:3]))

    return kernel_fn(X), jax.jit(jax.grad(loss))(X)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_is_its_layers_in_turn(name, monkeypatch):
    monkeypatch.setattr(layers, "_MANY", 3)
    network = NETWORKS[name](3)
    calls = []
    once = repeated.loop
    monkeypatch.setattr(repeated, "loop", lambda *a: calls.append(a[1]) or once(*a))
    looped = _kernels_and_gradient(network)
    assert set(calls) == {2}
    _unrolled(monkeypatch)
    in_turn = _kernels_and_gradient(network)
    for a, b in zip(jax.tree.leaves(looped), jax.tree.leaves(in_turn), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_program_does_not_grow_with_the_depth():
    sizes = [
        len(jax.jit(infinite.mlp(depth)).lower(X).as_text()) for depth in (20, 200)
    ]
    assert sizes[1] < 1.01 * sizes[0]


def test_what_changes_a_pair_is_not_looped(monkeypatch):
    # Without padding every convolution leaves fewer positions.
    conv = infinite_conv.Conv(padding="VALID")
    network = (conv,) * 5 + (infinite_conv.Flatten(), DENSE)
    monkeypatch.setattr(layers, "_MANY", 3)
    x = X[:2]
    wide = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    found = infinite_conv.kernel(network)(wide)
    _unrolled(monkeypatch)
    np.testing.assert_allclose(found, infinite_conv.kernel(network)(wide), rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "found"),
    [("", (0, 1, 1)), ("ab", (0, 1, 1)), ("xababab", (1, 2, 3)), ("abbbbc", (1, 1, 4))],
)
def test_blocks_are_found(given, found):
    assert repeated.blocks(given) == found
