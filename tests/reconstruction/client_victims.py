"""What clients of federated learning send of small networks, treated in their ways."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from broken_victims import SIZE, Victim, digits, strengths
from odd_training import F32, Kind, _loss, first_weights, targets

from ntk_privacy import _tree
from ntk_privacy.training import shared_update

Treat = Callable[[dict, float, int], dict]


def _fitted(kind: Kind, params, x, y):
    return _loss(kind, params, x, y, jnp.ones(len(x), F32))


@functools.partial(jax.jit, static_argnames="kind")
def _gradient(kind: Kind, params, x, y):
    return jax.grad(_fitted, 1)(kind, params, x, y)


@functools.partial(jax.jit, static_argnames="kind")
def _private(kind: Kind, params, x, y, clip_norm, noise_multiplier, key):
    return shared_update.clipped_mean_gradient(
        functools.partial(_fitted, kind), params, x, y,
        clip_norm=clip_norm, noise_multiplier=noise_multiplier, key=key,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("kind", "steps"))
def _local(kind: Kind, params, x, y, rate, key, steps):
    rows = jax.random.randint(key, (steps, 3), 0, len(x))
    return shared_update.client_update(
        functools.partial(_fitted, kind), params, (x[rows], y[rows]), step_size=rate
    )


def _drawn(seed: int, size: int, outputs: int):
    kind = Kind(outputs=outputs)
    x, y = digits(seed, size)
    params = first_weights(seed, depth=2 + seed % 2, outputs=outputs)
    return kind, params, x, targets(kind, y)


def treated(
    count: int, treat: Treat, *, low: float, high: float, size: int = SIZE, outputs=3
) -> Iterator[Victim]:
    """Gradients that were treated with a strength, of a range of logarithms."""
    for seed, strength in enumerate(strengths(count, low, high)):
        kind, params, x, y = _drawn(seed, size, outputs)
        gradient = _gradient(kind, params, jnp.asarray(x), y)
        sent = treat(gradient, float(strength), seed)
        yield Victim(params, sent, x, None, gradient=True)


def top_k(gradient: dict, dropped: float, seed: int) -> dict:
    del seed
    return shared_update.top_k(gradient, share=max(1 - dropped, 1e-3))


def quantised(gradient: dict, bits: float, seed: int) -> dict:
    key = jax.random.key(seed) if seed % 2 else None
    return shared_update.quantise(gradient, bits=round(bits), key=key)


def halved(gradient: dict, scale: float, seed: int) -> dict:
    """Stored in 16 bits, and half of the time sent as float32."""
    dtype = (jnp.bfloat16, jnp.float16)[seed % 2]
    stored = jax.tree.map(lambda g: (scale * g).astype(dtype), gradient)
    return stored if seed % 4 < 2 else jax.tree.map(lambda g: g.astype(F32), stored)


def cut_and_quantised(gradient: dict, dropped: float, seed: int) -> dict:
    return quantised(top_k(gradient, dropped, seed), 8, seed)


def private(
    count: int, *, low: float, high: float, size: int = SIZE, outputs=3
) -> Iterator[Victim]:
    """DP-SGD; every other one clips all images but the least."""
    for seed, sigma in enumerate(strengths(count, low, high)):
        kind, params, x, y = _drawn(seed, size, outputs)
        x = jnp.asarray(x)
        whole = _gradient(kind, params, x, y)
        norm = float(jnp.sqrt(_tree.squared_norm(whole))) * (0.1 if seed % 2 else 2.0)
        sent = _private(kind, params, x, y, norm, float(sigma), jax.random.key(seed))
        yield Victim(params, sent, np.asarray(x), None, gradient=True)


def averaged(
    count: int, *, low: float, high: float, size: int = SIZE, outputs=3, treat=None
) -> Iterator[Victim]:
    """FedAvg: 40 steps on batches of 3, then the weights that the server sees."""
    for seed, rate in enumerate(strengths(count, low, high)):
        kind, params, x, y = _drawn(seed, size, outputs)
        given = jnp.asarray(x), y, float(rate), jax.random.key(seed)
        sent = _local(kind, params, *given, steps=40)
        if treat is not None:
            sent = treat(sent, 8, seed)
        yield Victim(params, _tree.sub(params, sent), x, None)
