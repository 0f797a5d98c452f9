"""Ordinary training of small networks by hand, and all that may be odd about it."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from broken_victims import SHAPE, Train

F32 = jnp.float32
WIDTH = 192


class Kind(NamedTuple):
    """What compiles a program of its own."""

    optimizer: str = "sgd"  # adam, rmsprop
    act: str = "relu"  # tanh, leaky, gelu
    norm: str = ""  # before, after the first activation
    outputs: int = 1  # more: cross-entropy


class Recipe(NamedTuple):
    """How a network is trained; numbers, so that one program serves them all."""

    rate: float = 0.05
    steps: int = 200
    batch: int = 1000
    momentum: float = 0.0
    decay: float = 0.0  # L2, in the gradient
    kernel_decay: float = 0.0  # of the first kernel alone
    decoupled: float = 0.0
    bias_rate: float = 1.0  # over the rate of the rest
    clip: float = np.inf  # norm of a gradient
    cut: float = np.inf  # of each of its entries, over their root mean square
    steps_of: float = 0.0  # quantum of a gradient, over that
    blur: float = 0.0  # noise of a gradient, over that
    drop: float = 0.0  # of units of the first layer
    shift: int = 0  # pixels that an image moves, each step anew
    jitter: float = 0.0  # of pixels, each step anew
    wrong: float = 0.0  # deviation of label noise, each step anew


RELU, PLAIN = Kind(), Recipe()


def first_weights(
    seed, depth=2, width=WIDTH, outputs=1, bias=0.0, uniform=False
) -> dict:
    """Normal kernels, and biases of a deviation; or uniform ones, as PyTorch's are."""
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(SHAPE)), width, *(64,) * (depth - 1), outputs]

    def layer(a, b):
        if uniform:
            return rng.uniform(-1, 1, (a, b)) / a**0.5, rng.uniform(-1, 1, b) / a**0.5
        return rng.normal(0, np.sqrt(2 / a), (a, b)), bias * rng.standard_normal(b)

    made = [layer(a, b) for a, b in itertools.pairwise(sizes)]
    return {
        f"Dense_{i}": {"kernel": jnp.asarray(k, F32), "bias": jnp.asarray(b, F32)}
        for i, (k, b) in enumerate(made)
    }


_ACTS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "leaky": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
}


def _normalised(h):
    h = h - jnp.mean(h, axis=1, keepdims=True)
    return h / jnp.sqrt(jnp.mean(h**2, axis=1, keepdims=True) + 1e-5)


def _outputs(kind: Kind, params: dict, x, kept=None):
    h = x.reshape(len(x), -1)
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        h = h @ layer["kernel"] + layer["bias"][None]
        if i == 0:
            h = _normalised(h) if kind.norm == "before" else h
            h = _ACTS[kind.act](h)
            h = _normalised(h) if kind.norm == "after" else h
            h = h if kept is None else h * kept
        elif i < len(params) - 1:
            h = jax.nn.relu(h)
    return h


def _loss(kind: Kind, params: dict, x, y, weights, kept=None):
    out = _outputs(kind, params, x, kept)
    if kind.outputs == 1:
        losses = 0.5 * jnp.sum((out - y) ** 2, axis=1)
    else:
        losses = -jnp.sum(jax.nn.log_softmax(out) * y, axis=1)
    return jnp.sum(losses * weights) / jnp.sum(weights)


def _spoilt(grads: dict, recipe: Recipe, key) -> dict:
    """Gradients as clients send them: cut, noised, rounded, and of bounded norm."""
    leaves, tree = jax.tree.flatten(grads)
    keys = jax.random.split(key, len(leaves))

    def one(g, k):
        size = jnp.sqrt(jnp.mean(g**2)) + F32(1e-30)
        g = jnp.clip(g, -recipe.cut * size, recipe.cut * size)
        g = g + recipe.blur * size * jax.random.normal(k, g.shape, F32)
        quantum = jnp.maximum(recipe.steps_of * size, F32(1e-30))
        return jnp.where(recipe.steps_of > 0, jnp.round(g / quantum) * quantum, g)

    made = [one(g, k) for g, k in zip(leaves, keys, strict=True)]
    norm = jnp.sqrt(sum((jnp.sum(g**2) for g in made), F32(0)))
    share = jnp.minimum(F32(1), recipe.clip / jnp.maximum(norm, F32(1e-30)))
    return jax.tree.unflatten(tree, [g * share for g in made])


def _augmented(x, recipe: Recipe, key):
    by, pixels = jax.random.split(key)
    moves = jax.random.randint(by, (len(x), 2), -recipe.shift, recipe.shift + 1)
    x = jax.vmap(lambda image, move: jnp.roll(image, move, (0, 1)))(x, moves)
    return x + recipe.jitter * jax.random.normal(pixels, x.shape, F32)


@functools.partial(jax.jit, static_argnames="kind")
def _train(kind: Kind, recipe: Recipe, params: dict, x, y, key):
    def step(t, carry):
        p, v, s = carry
        keys = jax.random.split(jax.random.fold_in(key, t), 5)
        order = jax.random.permutation(keys[0], len(x))
        weights = (order < recipe.batch).astype(F32)
        width = p["Dense_0"]["bias"].shape[0]
        kept = jax.random.bernoulli(keys[1], 1 - recipe.drop, (len(x), width))
        kept = kept.astype(F32) / (1 - recipe.drop)
        labels = y + recipe.wrong * jax.random.normal(keys[2], y.shape, F32)
        images = _augmented(x, recipe, keys[3])
        g = jax.grad(_loss, 1)(kind, p, images, labels, weights, kept)
        g = _spoilt(g, recipe, keys[4])
        g = jax.tree.map(lambda a, b: a + recipe.decay * b, g, p)
        first = {**g["Dense_0"]}
        first["kernel"] = first["kernel"] + recipe.kernel_decay * p["Dense_0"]["kernel"]
        first["bias"] = first["bias"] * recipe.bias_rate
        g = {**g, "Dense_0": first}
        rate = recipe.rate
        if kind.optimizer == "sgd":
            v = jax.tree.map(lambda a, b: recipe.momentum * a + b, v, g)
            moves = v
        else:
            rate, u = 0.1 * rate, F32(0.99)
            s = jax.tree.map(lambda a, b: u * a + (1 - u) * b**2, s, g)
            since = 1 - u ** (t + 1).astype(F32)
            v = g if kind.optimizer == "rmsprop" else jax.tree.map(
                lambda a, b: F32(0.9) * a + F32(0.1) * b, v, g
            )  # fmt: skip
            moves = jax.tree.map(
                lambda a, b: a / (jnp.sqrt(b / since) + F32(1e-8)), v, s
            )
        share = 1 - rate * recipe.decoupled
        p = jax.tree.map(lambda a, b: share * a - rate * b, p, moves)
        return p, v, s

    zero = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.fori_loop(0, recipe.steps, step, (params, zero, zero))[0]


@functools.partial(jax.jit, static_argnames="kind")
def one_gradient(kind: Kind, recipe: Recipe, params: dict, x, y, key):
    ones = jnp.ones(len(x), F32)
    return _spoilt(jax.grad(_loss, 1)(kind, params, x, y, ones), recipe, key)


def numbers(recipe: Recipe) -> Recipe:
    return Recipe(*(F32(v) if isinstance(v, float) else jnp.asarray(v) for v in recipe))


def targets(kind: Kind, y: np.ndarray):
    if kind.outputs == 1:
        return jnp.asarray(y, F32)
    return jax.nn.one_hot(jnp.arange(len(y)) % kind.outputs, kind.outputs, dtype=F32)


def trainer(recipe=PLAIN, kind=RELU, **init) -> Train:
    def train(seed, x, y):
        before = first_weights(seed, outputs=kind.outputs, **init)
        after = _train(
            kind, numbers(recipe), before, jnp.asarray(x, F32), targets(kind, y),
            jax.random.key(seed),
        )  # fmt: skip
        return before, after

    return train
