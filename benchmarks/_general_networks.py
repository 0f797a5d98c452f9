"""Networks that begin with a dense layer, and what may stand above it.

Every one is a pair of pure functions of flattened images. `Dense_0` takes the images;
`key` is that of a training step, None where nothing is dropped.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = dict[str, dict[str, Array]]

_ABOVE = 256  # width of the layers above the first one
_TOKENS, _CHANNELS, _SIDE, _FILTERS = 16, 64, 32, 8


class Network(NamedTuple):
    """init(key, inputs, outputs) gives params; apply(params, x, key) gives outputs."""

    init: Callable[[Array, int, int], Params]
    apply: Callable[[Params, Float[Array, "n d"], Array | None], Float[Array, "n c"]]


def _dense(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _stack(key: Array, sizes: tuple[int, ...]) -> Params:
    keys = jax.random.split(key, len(sizes))
    return {
        f"Dense_{i}": _dense(keys[i], sizes[i], sizes[i + 1])
        for i in range(len(sizes) - 1)
    }


def _affine(layer: dict[str, Array], h: Array) -> Array:
    return h @ layer["kernel"] + layer["bias"]


def _normalised(h: Array, axis: int = -1) -> Array:
    h = h - jnp.mean(h, axis=axis, keepdims=True)
    return h / jnp.sqrt(jnp.mean(h**2, axis=axis, keepdims=True) + 1e-5)


def _same(h: Array, key: Array | None = None) -> Array:
    del key
    return h


def _dropped(h: Array, key: Array | None) -> Array:
    if key is None:
        return h
    return h * jax.random.bernoulli(key, 0.5, h.shape) * 2


def perceptron(
    depth: int = 2,
    *,
    width: int = 1024,
    act: Callable = jax.nn.relu,
    before: Callable = _same,
    after: Callable = _same,
    later: Callable = _same,
) -> Network:
    """Dense layers; `act` is that of the first, `later` normalises those above it."""

    def init(key, inputs, outputs):
        return _stack(key, (inputs, width, *(_ABOVE,) * (depth - 1), outputs))

    def apply(params, x, key):
        h = after(act(before(_affine(params["Dense_0"], x))), key)
        for i in range(1, depth):
            h = jax.nn.relu(later(_affine(params[f"Dense_{i}"], h)))
        return _affine(params[f"Dense_{depth}"], h)

    return Network(init, apply)


def residual(blocks: int = 3, *, width: int = 1024) -> Network:
    """Blocks of two dense layers, each added to its input."""

    def init(key, inputs, outputs):
        keys = jax.random.split(key, 2 * blocks + 2)
        made = {"Dense_0": _dense(keys[0], inputs, width)}
        for i in range(blocks):
            made[f"In_{i}"] = _dense(keys[2 * i + 1], width, _ABOVE)
            made[f"Out_{i}"] = _dense(keys[2 * i + 2], _ABOVE, width)
        return {**made, "Head": _dense(keys[-1], width, outputs)}

    def apply(params, x, key):
        del key
        h = jax.nn.relu(_affine(params["Dense_0"], x))
        for i in range(blocks):
            inner = jax.nn.relu(_affine(params[f"In_{i}"], h))
            h = h + 0.3 * _affine(params[f"Out_{i}"], inner)
        return _affine(params["Head"], _normalised(h))

    return Network(init, apply)


def attention() -> Network:
    """Self-attention over the first layer's features, taken as 16 tokens of 64."""

    def init(key, inputs, outputs):
        keys = jax.random.split(key, 6)
        made = {"Dense_0": _dense(keys[0], inputs, _TOKENS * _CHANNELS)}
        for k, name in zip(keys[1:5], ("Query", "Key", "Value", "Mixed"), strict=True):
            made[name] = _dense(k, _CHANNELS, _CHANNELS)
        return {**made, "Head": _dense(keys[5], _TOKENS * _CHANNELS, outputs)}

    def apply(params, x, key):
        del key
        h = jax.nn.relu(_affine(params["Dense_0"], x))
        h = h.reshape(len(x), _TOKENS, _CHANNELS)
        seen = _normalised(h)
        q, k, v = (_affine(params[name], seen) for name in ("Query", "Key", "Value"))
        weights = jnp.einsum("nqc,nkc->nqk", q, k) / _CHANNELS**0.5
        mixed = jnp.einsum("nqk,nkc->nqc", jax.nn.softmax(weights), v)
        h = h + _affine(params["Mixed"], mixed)
        return _affine(params["Head"], _normalised(h).reshape(len(x), -1))

    return Network(init, apply)


def convolved() -> Network:
    """A convolution of the first layer's output, taken as a picture of 32 by 32."""

    def init(key, inputs, outputs):
        keys = jax.random.split(key, 3)
        kernel = jax.random.normal(keys[1], (3, 3, 1, _FILTERS)) * (2 / 9) ** 0.5
        return {
            "Dense_0": _dense(keys[0], inputs, _SIDE**2),
            "Conv": {"kernel": kernel, "bias": jnp.zeros(_FILTERS)},
            "Head": _dense(keys[2], _FILTERS * _SIDE**2 // 4, outputs),
        }

    def apply(params, x, key):
        del key
        h = jax.nn.relu(_affine(params["Dense_0"], x))
        h = jax.lax.conv_general_dilated(
            h.reshape(len(x), _SIDE, _SIDE, 1),
            params["Conv"]["kernel"],
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.relu(h + params["Conv"]["bias"])
        return _affine(params["Head"], h.reshape(len(x), -1))

    return Network(init, apply)


def steep(act: Callable, slope: float) -> Callable:
    """The activation of `slope` times as steep a bend: nearer to ReLU."""
    return lambda z: act(slope * z) / slope


NETWORKS = {
    "plain": perceptron(),
    "trunk": perceptron(1, width=512),
    "six": perceptron(6),
    "dropout": perceptron(after=_dropped),
    "layer_norm_after": perceptron(
        3, after=lambda h, _: _normalised(h), later=_normalised
    ),
    "residual": residual(),
    "attention": attention(),
    "convolution": convolved(),
    "leaky": perceptron(act=functools.partial(jax.nn.leaky_relu, negative_slope=0.01)),
    "gelu": perceptron(act=jax.nn.gelu),
    "silu": perceptron(act=jax.nn.silu),
    "gelu_10": perceptron(act=steep(jax.nn.gelu, 10.0)),
    "silu_10": perceptron(act=steep(jax.nn.silu, 10.0)),
    "gelu_30": perceptron(act=steep(jax.nn.gelu, 30.0)),
    "silu_30": perceptron(act=steep(jax.nn.silu, 30.0)),
    "gelu_100": perceptron(act=steep(jax.nn.gelu, 100.0)),
    "silu_100": perceptron(act=steep(jax.nn.silu, 100.0)),
    "batch_norm_before": perceptron(before=functools.partial(_normalised, axis=0)),
    "layer_norm_before": perceptron(before=_normalised),
}


def outputs(network: Network) -> Callable[[Any, Array], Array]:
    """Returns the network without dropout."""
    return lambda params, x: network.apply(params, x, None)
