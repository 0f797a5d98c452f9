"""Networks that each break an assumption of an attack, and the truth about them.

What trains a network is an argument, `train(seed, x, y)` to the parameters before and
after, so that one family serves attacks that assume different dynamics.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import data

SHAPE = (8, 8, 1)
SIZE = 6

Train = Callable[[int, np.ndarray, np.ndarray], tuple[dict, dict]]
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]


class Victim(NamedTuple):
    """Parameters before and after training on images; what an attack is told.

    forms: what may be read besides images: augmented ones. gradient: params_t is one.
    frozen: training was linearized. spread: how far from an image, over its norm, the
    forms of it that were shown lie. scale: of the bias's rate over the kernel's.
    """

    params_0: dict
    params_t: dict
    images: np.ndarray
    num_images: int | None = SIZE
    forms: np.ndarray | None = None
    frozen: bool = False
    gradient: bool = False
    spread: float = 0.0
    scale: float = 1.0


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    loaded = data.load("digits", num_train=1000, key=jax.random.key(0))
    return np.asarray(loaded.x_train), np.asarray(loaded.y_train)


def digits(seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Digits, half of each label."""
    x, y = _digits()
    rng = np.random.default_rng(seed)
    of_label = [np.flatnonzero(y[:, 0] * sign > 0) for sign in (-1, 1)]
    rows = np.concatenate([rng.permutation(rows)[: size // 2] for rows in of_label])
    return x[rows].astype(np.float32), np.sign(y[rows]).astype(np.float32)


def perturbed(params: dict, seed: int, scale: float) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: p + jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), params
    )


def _cast(params: dict, dtype: jnp.dtype) -> dict:
    return jax.tree.map(lambda p: p.astype(dtype), params)


def strengths(count: int, low: float, high: float) -> np.ndarray:
    return 10.0 ** np.linspace(low, high, count)


def noise(train: Train, count: int, draw: Draw = digits) -> Iterator[Victim]:
    for seed, scale in enumerate(strengths(count, -8, -2)):
        x, y = draw(seed)
        params_0, params_t = train(seed, x, y)
        yield Victim(params_0, perturbed(params_t, seed, scale), x)


def damaged_layer(
    train: Train, count: int, draw: Draw = digits, layers: int = 3
) -> Iterator[Victim]:
    for seed, scale in enumerate(strengths(count, -7, -1)):
        x, y = draw(seed)
        params_0, params_t = train(seed, x, y)
        layer = f"Dense_{seed % layers}"
        params_t = {**params_t, layer: perturbed(params_t[layer], seed, scale)}
        yield Victim(params_0, params_t, x)


def wrong_initial(train: Train, count: int, draw: Draw = digits) -> Iterator[Victim]:
    for seed, scale in enumerate(strengths(count, -7, 0)):
        x, y = draw(seed)
        params_0, params_t = train(seed, x, y)
        if seed % 4:
            params_0 = perturbed(params_0, seed, scale)
        else:
            params_0 = train(seed + 1000, x, y)[0]
        yield Victim(params_0, params_t, x)


def shuffled(train: Train, count: int, draw: Draw = digits) -> Iterator[Victim]:
    for seed in range(count):
        x, y = draw(seed)
        params_0, params_t = train(seed, x, y)
        rng = np.random.default_rng(seed)
        name = f"Dense_{min(seed % 3, 1)}"
        width = params_t[name]["kernel"].shape[1]
        few = rng.permutation(width)[: int(rng.choice([2, 4, 16, width]))]
        order = np.arange(width)
        order[np.sort(few)] = few
        leaf = "bias" if seed % 3 == 2 else "kernel"
        changed = {**params_t[name], leaf: params_t[name][leaf][..., order]}
        yield Victim(params_0, {**params_t, name: changed}, x)


def rounded(train: Train, count: int, draw: Draw = digits) -> Iterator[Victim]:
    for seed in range(count):
        x, y = draw(seed)
        networks = train(seed, x, y)
        dtype = (jnp.bfloat16, jnp.float16)[seed % 2]
        keep = seed % 4 > 1  # the initial weights are known in full
        pair = [_cast(params, dtype) for params in networks]
        if keep:
            pair = [networks[0], _cast(pair[1], jnp.float32)]
        yield Victim(*pair, x)


def told_wrong(train: Train, count: int, draw: Draw = digits) -> Iterator[Victim]:
    for seed in range(count):
        x, y = draw(seed)
        told = (SIZE - 1, SIZE + 1, SIZE - 2, SIZE + 3)[seed % 4]
        yield Victim(*train(seed, x, y), x, told)


def copies_of(seed: int, x: np.ndarray) -> np.ndarray:
    """A copy, a near copy of the same or the other label, or a positive multiple."""
    rng, x = np.random.default_rng(seed), x.copy()
    kind = seed % 5
    other = SIZE - 1 if seed % 2 else 1  # of the other label, or of the same
    if kind == 0:
        x[other] = x[0]
    elif kind in (1, 2):
        far = 10.0 ** rng.uniform(-4, -1)
        step = rng.standard_normal(x.shape[1:])
        step *= far * np.linalg.norm(x[0]) / np.linalg.norm(step)
        x[other] = x[0] + step
    elif kind == 3:
        x[other] = (0.5, 0.9, 1.01, 1.1, 1.5, 2.0)[seed // 5 % 6] * x[0]
    else:
        x[0], x[other] = 0.2, (0.0, -0.1, 0.3, 0.7)[seed // 5 % 4]
    return x


def copies(train: Train, count: int, draw: Draw = digits) -> Iterator[Victim]:
    """Sets of which two images are alike."""
    for seed in range(count):
        x, y = draw(seed)
        x = copies_of(seed, x)
        yield Victim(*train(seed, x, y), x, None)
