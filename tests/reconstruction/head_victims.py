"""Heads on frozen features, trained or one gradient of them, damaged in some way."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import broken_victims as broken
import jax
import jax.numpy as jnp
import numpy as np
from broken_victims import SHAPE, SIZE, Victim, strengths
from odd_training import (
    F32,
    PLAIN,
    RELU,
    Kind,
    Recipe,
    _loss,
    first_weights,
    numbers,
    one_gradient,
    targets,
    trainer,
)

from ntk_privacy.training import shared_update

LENGTH = int(np.prod(SHAPE))  # of a feature: what trains digits trains these


def features(seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Features of four kinds, and labels.

    After ReLU with a common part, the same and almost parallel, sparse ones of which
    some are never seen, and normalised ones.
    """
    rng = np.random.default_rng([seed, 5])
    rows = rng.standard_normal((size, LENGTH))
    common = rng.standard_normal((1, LENGTH))
    kind = seed % 4
    if kind < 2:
        rows = np.maximum(rows + (0.5, 2.0)[kind] * common, 0)
    elif kind == 2:
        rows = np.maximum(rows - 0.7, 0) * (rng.random(LENGTH) > 0.2)
    else:
        rows = np.maximum(rows + common, 0)
        rows -= rows.mean(1, keepdims=True)
        rows /= rows.std(1, keepdims=True)
    y = np.where(np.arange(size) < size // 2, -1.0, 1.0)[:, None]
    return rows.reshape(size, *SHAPE).astype(np.float32), y.astype(np.float32)


def trained(
    count: int, *, kind: Kind = RELU, size: int = SIZE, init=None, **ranges
) -> Iterator[Victim]:
    """Heads whose recipes are drawn: (low, high) of a logarithm, or values in turn."""
    rng = np.random.default_rng(1)
    for seed in range(count):
        drawn = {
            name: among[seed % len(among)]
            if isinstance(among, list)
            else float(10 ** rng.uniform(*among))
            for name, among in ranges.items()
        }
        x, y = features(seed, size)
        made = {name: among[seed % len(among)] for name, among in (init or {}).items()}
        pair = trainer(PLAIN._replace(**drawn), kind, **made)(seed, x, y)
        spread = drawn.get("jitter", 0.0) * np.sqrt(LENGTH)
        sizes = np.linalg.norm(x.reshape(size, -1), axis=1)
        if all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(pair[1])):
            yield Victim(*pair, x, None, spread=float(spread / sizes.min()))


def _one(seed: int, x, y, *, outputs: int = 3, bias: float = 0.0, **drawn):
    kind = Kind(outputs=outputs)
    # Those of another seed, 1000 further, are of the same structure.
    depth = 1 + seed % 1000 % 3
    params = first_weights(seed, depth=depth, outputs=outputs, bias=bias)
    gradient = one_gradient(
        kind, numbers(PLAIN._replace(**drawn)), params, jnp.asarray(x),
        targets(kind, y), jax.random.key(seed),
    )  # fmt: skip
    return params, gradient


def gradients(count: int, *, size=SIZE, outputs=3, **ranges) -> Iterator[Victim]:
    """Of networks of one to three hidden layers, biases of zero or random."""
    rng = np.random.default_rng(2)
    for seed in range(count):
        drawn = {name: float(10 ** rng.uniform(*r)) for name, r in ranges.items()}
        x, y = features(seed, size)
        made = _one(seed, x, y, outputs=outputs, bias=(0.0, 0.2)[seed % 2], **drawn)
        yield Victim(*made, x, None, gradient=True)


def damaged(count: int, damage: Callable) -> Iterator[Victim]:
    """Whole gradients that were damaged as weights are."""

    def train(seed, x, y):
        return _one(seed, x, y)

    for victim in damage(train, count, features):
        yield victim._replace(gradient=True)


def treated(count: int, treat: Callable, low: float, high: float) -> Iterator[Victim]:
    for seed, strength in enumerate(strengths(count, low, high)):
        x, y = features(seed)
        params, gradient = _one(seed, x, y)
        yield Victim(params, treat(gradient, strength, seed), x, None, gradient=True)


def _top_k(gradient, dropped, seed):
    del seed
    return shared_update.top_k(gradient, share=max(1 - float(dropped), 1e-3))


def _few_bits(gradient, bits, seed):
    key = jax.random.key(seed) if seed % 2 else None
    return shared_update.quantise(gradient, bits=round(float(bits)), key=key)


def _lost_units(gradient, share, seed):
    """Units of the first layer whose gradient is lost, or another's."""
    rng = np.random.default_rng(seed)
    first = {k: np.array(v) for k, v in gradient["Dense_0"].items()}
    lost = rng.random(len(first["bias"])) < share
    lost[seed % len(lost)] = True
    names = ("kernel", "bias") if seed % 3 == 0 else (("kernel",), ("bias",))[seed % 2]
    for name in names:
        other = rng.permutation(first[name].T).T if seed % 4 else 0 * first[name]
        first[name][..., lost] = other[..., lost]
    return {**gradient, "Dense_0": {k: jnp.asarray(v) for k, v in first.items()}}


@functools.partial(jax.jit, static_argnames="kind")
def _drifting(kind: Kind, params, begin, end, y, rate, steps):
    ones = jnp.ones(len(begin), F32)

    def step(t, p):
        share = t.astype(F32) / jnp.maximum(steps - 1, 1).astype(F32)
        x = begin + share * (end - begin)
        slopes = jax.grad(_loss, 1)(kind, p, x, y, ones)
        return jax.tree.map(lambda a, g: a - rate * g, p, slopes)

    return jax.lax.fori_loop(0, steps, step, params)


def moving(count: int) -> Iterator[Victim]:
    """The trunk is trained too: features move along a line."""
    for seed, far in enumerate(strengths(count, -7, 0)):
        kind = Kind(outputs=(1, 3)[seed % 2])
        x, y = features(seed)
        step = np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
        end = x + np.float32(far) * x.std() * step
        params = first_weights(seed, depth=1 + seed % 3, outputs=kind.outputs)
        after = _drifting(
            kind, params, jnp.asarray(x), jnp.asarray(end), targets(kind, y),
            F32((0.003, 0.03)[seed % 2]), jnp.asarray((5, 50)[seed // 2 % 2]),
        )  # fmt: skip
        forms = np.concatenate([x + s * (end - x) for s in np.linspace(0, 1, 41)])
        yield Victim(params, after, x, None, forms=forms)


def masked(count: int) -> Iterator[Victim]:
    """Dropout between trunk and head: of one gradient, what was left of each."""
    for seed, share in enumerate(strengths(count, -2, -0.2)):
        x, y = features(seed)
        kept = np.random.default_rng(seed).random(x.shape) > share
        shown = (x * kept / (1 - share)).astype(np.float32)
        yield Victim(*_one(seed, shown, y), x, None, forms=shown, gradient=True)


def unbiased(count: int) -> Iterator[Victim]:
    """A head without a bias: embeddings up to their size."""
    for seed in range(count):
        x, y = features(seed)
        both = _one(seed, x, y)
        pair = [{**p, "Dense_0": {"kernel": p["Dense_0"]["kernel"]}} for p in both]
        flat = x.reshape(len(x), -1)
        forms = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        yield Victim(*pair, x, None, forms=forms.reshape(x.shape), gradient=True)


class Family(NamedTuple):
    """How many heads, and what makes so many; intact: all should be certified."""

    count: int
    make: Callable[[int], Iterator[Victim]]
    intact: bool = False


def _family(count: int, make: Callable = trained, *, intact=False, **options) -> Family:
    return Family(count, functools.partial(make, **options), intact)


def _broken(count: int, damage: Callable) -> Family:
    train = trainer(Recipe(rate=0.02, steps=50), Kind(outputs=3), depth=1)
    return Family(count, lambda most: damage(train, most, features))


_RATES = {"rate": (-3.5, -2), "steps": [5, 50, 200]}
_DEPTHS = {"depth": [1, 2, 3]}

FAMILIES: dict[str, Family] = {
    "gradients": _family(60, gradients, intact=True),
    "trained": _family(60, kind=Kind(outputs=3), init=_DEPTHS, **_RATES),
    "minibatches and momentum": _family(
        40,
        kind=Kind(outputs=3),
        init=_DEPTHS,
        batch=[2, 3],
        momentum=[0.5, 0.9],
        rate=(-3.5, -1.5),
    ),
    "noise": _broken(40, broken.noise),
    "a damaged layer": _broken(
        30, lambda train, most, draw: broken.damaged_layer(train, most, draw, layers=2)
    ),
    "wrong initial weights": _broken(40, broken.wrong_initial),
    "shuffled rows": _broken(40, broken.shuffled),
    "half precision": _broken(40, broken.rounded),
    "another number of embeddings": _broken(20, broken.told_wrong),
    "copies": _broken(50, broken.copies),
    "weight decay": _family(
        30, kind=Kind(outputs=3), init=_DEPTHS, decay=(-5, -1), rate=(-3, -1.5)
    ),
    "decay of the kernel": _family(
        20, kind=Kind(outputs=3), kernel_decay=(-5, -0.5), rate=(-3, -1.5)
    ),
    "adam": _family(20, kind=Kind("adam", outputs=3), rate=(-4, -1)),
    "features that move": _family(60, moving),
    "noised features": _family(30, jitter=(-7, -1), rate=(-4, -2)),
    "dropout of units": _family(20, drop=[0.1, 0.5], rate=(-4, -2)),
    "masked features": _family(40, masked),
    "gelu": _family(10, kind=Kind(act="gelu"), rate=(-4, -2)),
    "leaky": _family(10, kind=Kind(act="leaky"), rate=(-4, -2)),
    "normalised before": _family(10, kind=Kind(norm="before"), rate=(-4, -1)),
    "narrow": _family(
        40, size=8, init={"width": [16, 24, 32, 48, 64, 80], "depth": [1]}, **_RATES
    ),
    "noised gradients": _family(40, gradients, blur=(-6, 0)),
    "clipped gradients": _family(20, gradients, cut=(-0.5, 1)),
    "quantised gradients": _family(20, gradients, steps_of=(-5, 0)),
    "damaged gradients": _family(40, damaged, damage=broken.noise),
    "shuffled gradients": _family(40, damaged, damage=broken.shuffled),
    "gradients at other weights": _family(40, damaged, damage=broken.wrong_initial),
    "gradients in 16 bits": _family(30, damaged, damage=broken.rounded),
    "gradients of copies": _family(50, damaged, damage=broken.copies),
    "gradients of another number": _family(10, damaged, damage=broken.told_wrong),
    "top-k": _family(20, treated, treat=_top_k, low=-4, high=-0.01),
    "few bits": _family(30, treated, treat=_few_bits, low=0.4, high=1.2),
    "lost units": _family(40, treated, treat=_lost_units, low=-3, high=-0.2),
    "without a bias": _family(10, unbiased),
}
