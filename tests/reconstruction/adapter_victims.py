"""One gradient of an adapter, or a trained one, each damaged in some way.

Gradients are taken here, of networks that are written here: nothing of the attack's own
mathematics is used.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from broken_victims import copies_of, digits, strengths

from ntk_privacy.models.adapter import Adapter

PIXELS, WIDTH, RANK, SIZE = 64, 128, 12, 6
F32 = jnp.float32
Gradient = tuple[np.ndarray, ...]


class Client(NamedTuple):
    """What is shared, what is public, and the images; trained: gradient is None.

    forms: what may be read besides images.
    """

    public: dict
    adapter: Adapter
    gradient: Gradient | None
    images: np.ndarray
    forms: np.ndarray | None = None


class Kind(NamedTuple):
    """What compiles a program of its own."""

    act: str = "relu"
    depth: int = 1
    outputs: int = 1  # more: cross-entropy
    dropped: bool = False


_ACTS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "leaky": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
}


def _loss(kind: Kind, factors, public, x, shown, y):
    a, b, bias = factors
    h = x @ public["Dense_0"]["kernel"] + (shown @ a) @ b + bias[None]
    h = _ACTS[kind.act](h)
    for i in range(1, kind.depth + 1):
        layer = public[f"Dense_{i}"]
        h = h @ layer["kernel"] + layer["bias"][None]
        h = jax.nn.relu(h) if i < kind.depth else h
    if kind.outputs == 1:
        return jnp.mean((h - y) ** 2)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(h) * y, axis=1))


@functools.partial(jax.jit, static_argnames="kind")
def _gradient(kind: Kind, factors, public, x, shown, y):
    return jax.grad(_loss, 1)(kind, factors, public, x, shown, y)


@functools.partial(jax.jit, static_argnames="kind")
def _descended(kind: Kind, factors, public, x, y, rate, steps, decay):
    def step(_, f):
        slopes = jax.grad(_loss, 1)(kind, f, public, x, x, y)
        return jax.tree.map(lambda p, g: (1 - decay) * p - rate * g, f, slopes)

    return jax.lax.fori_loop(0, steps, step, factors)


def _public(seed: int, kind: Kind, bias: float) -> dict:
    rng = np.random.default_rng([seed, 1])
    sizes = [PIXELS, *(WIDTH,) * kind.depth, kind.outputs]
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(rng.normal(0, np.sqrt(2 / a), (a, b)), F32),
            "bias": jnp.asarray(bias * rng.standard_normal(b), F32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def _factors(seed: int, public: dict, rank: int, *, zero: bool):
    rng = np.random.default_rng([seed, 2])
    a = rng.normal(size=(PIXELS, rank)) / 8
    b = (0.0 if zero else 0.03) * rng.normal(size=(rank, WIDTH))
    bias = public["Dense_0"]["bias"]
    return jnp.asarray(a, F32), jnp.asarray(b, F32), bias


def _targets(kind: Kind, y: np.ndarray):
    if kind.outputs == 1:
        return jnp.asarray(y, F32)
    return jax.nn.one_hot(jnp.arange(len(y)) % kind.outputs, kind.outputs, dtype=F32)


def _adapter(factors, **told) -> Adapter:
    a, b, bias = (np.asarray(leaf) for leaf in factors)
    return Adapter(a_t=a, b_t=b, bias_t=bias, **told)


def client(
    seed: int, x=None, *, kind: Kind | None = None, size=SIZE, rank=RANK, shown=None
) -> Client:
    """One gradient at factors that were trained on, or that are random, by turns."""
    kind = kind if kind else Kind(depth=1 + seed % 2, outputs=(1, 3)[seed // 2 % 2])
    drawn, y = digits(seed, size)
    x = drawn if x is None else x
    flat = jnp.asarray(x.reshape(len(x), -1), F32)
    public = _public(seed, kind, (0.0, 0.2)[seed // 4 % 2])
    factors = _factors(seed, public, rank, zero=seed % 3 == 0)
    y = _targets(kind, y)
    if seed % 3 == 0:
        factors = _descended(
            kind, factors, public, flat, y, F32(0.02), jnp.asarray(20), F32(0)
        )
    seen = flat if shown is None else jnp.asarray(shown.reshape(len(x), -1), F32)
    gradient = _gradient(kind, factors, public, flat, seen, y)
    leaves = tuple(np.asarray(leaf) for leaf in gradient)
    return Client(public, _adapter(factors), leaves, np.asarray(flat))


def _noised(leaf: np.ndarray, scale: float, rng) -> np.ndarray:
    size = np.sqrt(np.mean(np.square(leaf)))
    return (leaf + scale * size * rng.standard_normal(leaf.shape)).astype(leaf.dtype)


def intact(count: int) -> Iterator[Client]:
    for seed in range(count):
        yield client(seed, size=2 * (1 + seed % 4))


def noise(count: int, parts=(0, 1, 2), low=-7.5, high=0.0) -> Iterator[Client]:
    """On the gradients of A, of B or of the bias, or on all."""
    for seed, scale in enumerate(strengths(count, low, high)):
        made, rng = client(seed), np.random.default_rng(seed)
        gradient = tuple(
            _noised(leaf, scale, rng) if k in parts else leaf
            for k, leaf in enumerate(made.gradient)
        )
        yield made._replace(gradient=gradient)


def wrong_factors(count: int) -> Iterator[Client]:
    """Of another moment, another seed, or with noise: A, B or the bias."""
    for seed, scale in enumerate(strengths(count, -6, 0)):
        made, rng = client(seed), np.random.default_rng(seed)
        name = ("a_t", "b_t", "bias_t")[seed % 3]
        leaf = getattr(made.adapter, name)
        other = _noised(leaf, scale, rng) if seed % 4 else rng.permutation(leaf)
        changed = {name: other.astype(leaf.dtype)}
        yield made._replace(adapter=dataclasses.replace(made.adapter, **changed))


def wrong_public(count: int) -> Iterator[Client]:
    for seed, scale in enumerate(strengths(count, -6, 0)):
        made, rng = client(seed), np.random.default_rng(seed)
        layer = made.public["Dense_0"]
        kernel = np.asarray(layer["kernel"])
        other = _noised(kernel, scale, rng)
        if seed % 5 == 0:
            other = np.asarray(_public(seed + 999, Kind(), 0.0)["Dense_0"]["kernel"])
        layer = {**layer, "kernel": jnp.asarray(other, F32)}
        yield made._replace(public={**made.public, "Dense_0": layer})


def wrong_scale(count: int) -> Iterator[Client]:
    """The product is a multiple of what it is taken for: so are all images."""
    for seed, scale in enumerate(strengths(count, -4, 1)):
        made = client(seed)
        told = dataclasses.replace(made.adapter, scale=1 + float(scale))
        yield made._replace(adapter=told, forms=made.images / (1 + float(scale)))


def shuffled(count: int) -> Iterator[Client]:
    """Columns of a gradient or of the factors, a few or all; or the pixels of A's."""
    for seed in range(count):
        made, rng = client(seed), np.random.default_rng(seed)
        gradient = list(made.gradient)
        part = seed % 4
        width = gradient[min(part, 2)].shape[-1]
        few = rng.permutation(width)[: int(rng.choice([2, 4, width]))]
        order = np.arange(width)
        order[np.sort(few)] = few
        if part < 3:
            gradient[part] = gradient[part][..., order]
        else:
            gradient[0] = gradient[0][rng.permutation(PIXELS)]
        yield made._replace(gradient=tuple(gradient))


def halved(count: int) -> Iterator[Client]:
    """Stored in 16 bits, the factors too or not, and sent as float32 or not."""
    for seed, scale in enumerate(strengths(count, -4, 3)):
        made = client(seed)
        dtype = (jnp.bfloat16, jnp.float16)[seed % 2]

        def cast(leaf, dtype=dtype, seed=seed):
            leaf = np.asarray(leaf).astype(dtype)
            return leaf if seed % 4 < 2 else leaf.astype(np.float32)

        gradient = tuple(cast(scale * leaf) for leaf in made.gradient)
        told = made.adapter
        if seed % 3 == 0:
            names = ("a_t", "b_t", "bias_t")
            told = dataclasses.replace(
                told, **{n: cast(getattr(told, n)) for n in names}
            )
        yield made._replace(gradient=gradient, adapter=told)


def quantised(count: int) -> Iterator[Client]:
    """To steps of a share of each leaf's size; or clipped; or only signs."""
    for seed, scale in enumerate(strengths(count, -5, 0.3)):
        made = client(seed)

        def treat(leaf, scale=scale, seed=seed):
            size = np.sqrt(np.mean(np.square(leaf)))
            if seed % 3 == 0:
                return np.sign(leaf) * size * scale
            if seed % 3 == 1:
                return np.clip(leaf, -size / scale / 3, size / scale / 3)
            return np.round(leaf / (scale * size)) * scale * size

        gradient = tuple(treat(leaf).astype(np.float32) for leaf in made.gradient)
        yield made._replace(gradient=gradient)


def sparse(count: int) -> Iterator[Client]:
    """The largest entries alone; or whole columns, rows or units are lost."""
    for seed, share in enumerate(strengths(count, -4, -0.2)):
        made, rng = client(seed), np.random.default_rng(seed)
        gradient = [leaf.copy() for leaf in made.gradient]
        part = (seed // 3) % 3
        leaf = gradient[part]
        if seed % 3 == 0:
            for each in gradient:
                each[np.abs(each) < np.quantile(np.abs(each), share)] = 0
        elif seed % 3 == 1:
            lost = rng.random(leaf.shape[-1]) < share
            lost[seed % len(lost)] = True
            leaf[..., lost] = 0
        else:
            k = seed % leaf.shape[-1]
            other = np.atleast_1d(leaf[..., (k + 1) % leaf.shape[-1]])
            leaf[..., k] = rng.permutation(other) if leaf.ndim > 1 else other[0]
        yield made._replace(gradient=tuple(gradient))


def steps(count: int) -> Iterator[Client]:
    """Several local steps as one change, with decay or not; or told as at the end."""
    for seed, rate in enumerate(strengths(count, -5, -0.5)):
        kind = Kind(depth=1 + seed % 2, outputs=(1, 3)[seed // 2 % 2])
        x, y = digits(seed, SIZE)
        x, y = jnp.asarray(x.reshape(SIZE, -1), F32), _targets(kind, y)
        public = _public(seed, kind, (0.0, 0.2)[seed // 4 % 2])
        begun = _factors(seed, public, RANK, zero=False)
        decay = F32(rate / 30 if seed % 3 == 0 else 0)
        number = jnp.asarray((1, 2, 5, 20)[seed % 4])
        after = _descended(kind, begun, public, x, y, F32(rate), number, decay)
        moved = tuple(
            np.asarray(a) - np.asarray(b) for a, b in zip(begun, after, strict=True)
        )
        at = begun if seed % 2 else after
        yield Client(public, _adapter(at), moved, np.asarray(x))


def likenesses(count: int) -> Iterator[Client]:
    for seed in range(count):
        x, _ = digits(seed, SIZE)
        yield client(seed, copies_of(seed, x))


def dropped(count: int) -> Iterator[Client]:
    """The adapter sees images of which pixels are lost; either may be read."""
    for seed, share in enumerate(strengths(count, -3, -0.3)):
        x, _ = digits(seed, SIZE)
        kept = np.random.default_rng(seed).random(x.shape) > share
        shown = (x * kept / (1 - share)).astype(np.float32)
        made = client(seed, shown=shown)
        yield made._replace(forms=shown.reshape(SIZE, -1))


def crowded(count: int) -> Iterator[Client]:
    """About as many images as the rank."""
    for seed in range(count):
        yield client(
            seed, size=(10, 12, 14, 12)[seed % 4], rank=(12, 13)[seed // 4 % 2]
        )


def other_units(count: int) -> Iterator[Client]:
    for seed in range(count):
        act = ("leaky", "gelu", "tanh")[seed % 3]
        yield client(seed, kind=Kind(act=act, depth=1 + seed // 3 % 2))


def summed(count: int) -> Iterator[Client]:
    """Two clients' gradients at the same factors, of which one is far smaller."""
    for seed, share in enumerate(strengths(count, -7, 0)):
        kind = Kind(depth=1 + seed % 2)
        x, y = digits(seed, 2 * SIZE)
        public = _public(seed, kind, 0.1)
        factors = _factors(seed, public, RANK + 4, zero=False)
        flat, y = jnp.asarray(x.reshape(len(x), -1), F32), jnp.asarray(y, F32)
        order = np.random.default_rng(seed).permutation(len(x))
        parts = [
            _gradient(kind, factors, public, flat[rows], flat[rows], y[rows])
            for rows in (order[:SIZE], order[SIZE:])
        ]
        gradient = tuple(
            np.asarray(a) + np.float32(share) * np.asarray(b)
            for a, b in zip(*parts, strict=True)
        )
        yield Client(public, _adapter(factors), gradient, np.asarray(flat))


def unbiased(count: int) -> Iterator[Client]:
    """No bias was trained, or at another rate: images up to their size."""
    for seed in range(count):
        made = client(seed)
        a, b, bias = made.gradient
        rate = (None, 2.0, 0.5)[seed % 3]
        gradient, sizes = (a, b), np.linalg.norm(made.images, axis=1, keepdims=True)
        if rate is not None:
            gradient, sizes = (a, b, np.float32(rate) * bias), rate
        yield made._replace(gradient=gradient, forms=made.images / sizes)


def trained(count: int) -> Iterator[Client]:
    for seed in range(count):
        kind = Kind(depth=1 + seed % 2, outputs=(1, 3)[seed // 2 % 2])
        x, y = digits(seed, SIZE)
        x, y = jnp.asarray(x.reshape(SIZE, -1), F32), _targets(kind, y)
        public = _public(seed, kind, (0.0, 0.2)[seed // 4 % 2])
        begun = _factors(seed, public, RANK, zero=True)
        decay = F32((0, 0, 1e-4)[seed % 3])
        number, rate = jnp.asarray((5, 30, 200)[seed % 3]), F32(0.02)
        after = _descended(kind, begun, public, x, y, rate, number, decay)
        made = _adapter(after, a_0=np.asarray(begun[0]))
        if seed % 5 == 0:
            rng = np.random.default_rng(seed)
            made = dataclasses.replace(made, b_t=_noised(made.b_t, 1e-3, rng))
        yield Client(public, made, None, np.asarray(x))


FAMILIES: dict[str, tuple[int, Callable[[int], Iterator[Client]]]] = {
    "intact": (60, intact),
    "noise": (80, noise),
    "noise of A": (60, functools.partial(noise, parts=(0,))),
    "noise of B": (60, functools.partial(noise, parts=(1,))),
    "noise of the bias": (40, functools.partial(noise, parts=(2,))),
    "wrong factors": (80, wrong_factors),
    "wrong public weights": (60, wrong_public),
    "wrong scale": (40, wrong_scale),
    "shuffled": (60, shuffled),
    "16 bits": (60, halved),
    "quantised, clipped, signs": (60, quantised),
    "sparse": (60, sparse),
    "several steps": (60, steps),
    "copies": (50, likenesses),
    "dropout": (40, dropped),
    "about the rank": (40, crowded),
    "other units": (30, other_units),
    "two clients": (40, summed),
    "another rate of the bias": (20, unbiased),
    "trained": (40, trained),
}
