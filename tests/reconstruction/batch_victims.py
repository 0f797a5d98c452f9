"""One gradient of many images, and all that may be odd about images or gradient."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from broken_victims import Victim, perturbed
from odd_training import F32, Kind, _loss

from ntk_privacy import _tree
from ntk_privacy.training import shared_update

SHAPE = (10, 10, 1)
SIZE = 54
WIDTH = 384
CLASSES = 4
PLAIN = Kind(outputs=CLASSES)

Sent = tuple[dict, dict, np.ndarray]  # parameters that are known, gradient, images


@functools.partial(jax.jit, static_argnames="kind")
def gradient(kind: Kind, params, x, y, weights, kept=None):
    return jax.grad(_loss, 1)(kind, params, x, y, weights, kept)


def images(seed: int) -> np.ndarray:
    """Noise, or smoother images of a small common mean, in turn."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SIZE, *SHAPE))
    if seed % 2:
        smooth = np.exp(-(np.subtract.outer(np.arange(10), np.arange(10)) ** 2))
        x = np.einsum("ab,nbcd,ce->naed", smooth, x, smooth)
        x = 0.2 + x / x.std()
    return x.astype(np.float32)


def classes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(SIZE) % CLASSES


def params_of(seed: int, *, bias: float = 0.0, logits: float = 0.2) -> dict:
    """Weights as they are drawn; logits: scale of those of the output."""
    rng = np.random.default_rng(seed)
    sizes = ((100, WIDTH, 1.0), (WIDTH, WIDTH, 1.0), (WIDTH, CLASSES, logits))
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(scale * rng.normal(0, np.sqrt(2 / a), (a, b)), F32),
            "bias": jnp.asarray(bias * rng.standard_normal(b), F32),
        }
        for i, (a, b, scale) in enumerate(sizes)
    }


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels]


def sent(params, x, y, *, kind=PLAIN, weights=None, kept=None) -> dict:
    weights = np.ones(SIZE) if weights is None else weights
    arrays = (jnp.asarray(a, F32) for a in (x, y, weights))
    return gradient(kind, params, *arrays, kept)


def _family(make: Callable[..., Sent]) -> Callable[[int], Iterator[Victim]]:
    """Victims of `make(seed, u)`, u from 0 to 1; every third time N is told."""

    def victims(count: int, offset: int = 0) -> Iterator[Victim]:
        for k, u in enumerate(np.linspace(0, 1, count)):
            params, made, x = make(offset + k, float(u))
            told = None if k % 3 else SIZE
            yield Victim(params, made, x, told, gradient=True)

    return victims


def _drawn(seed: int, **options):
    return params_of(seed, **options), images(seed), one_hot(classes(seed))


def _between(low: float, high: float, u: float) -> float:
    return 10.0 ** (low + u * (high - low))


def _noised(made: dict, seed: int, scale: float, names=None) -> dict:
    """Noise over the root mean square of each layer."""
    out = dict(made)
    for name in names or made:
        rms = float(jnp.sqrt(jnp.mean(made[name]["kernel"] ** 2)))
        out[name] = perturbed(made[name], seed, scale * rms)
    return out


def intact(seed, u):
    params, x, y = _drawn(seed, bias=0.1 * (u > 0.5))
    return params, sent(params, x, y), x


def noise(seed, u):
    params, x, y = _drawn(seed)
    return params, _noised(sent(params, x, y), seed, _between(-7, 0, u)), x


def damaged_layer(seed, u):
    params, x, y = _drawn(seed)
    made = sent(params, x, y)
    return params, _noised(made, seed, _between(-6, 1, u), [f"Dense_{seed % 3}"]), x


def scaled_layer(seed, u):
    """One layer, or its bias alone, has another learning rate."""
    params, x, y = _drawn(seed)
    made = sent(params, x, y)
    name, size = f"Dense_{seed % 3}", 1 + _between(-5, 0.5, u)
    layer = {
        leaf: value * (size if leaf == "kernel" or seed % 2 else 1.0)
        for leaf, value in made[name].items()
    }
    return params, {**made, name: layer}, x


def halved(seed, u):
    params, x, y = _drawn(seed)
    dtype = (jnp.bfloat16, jnp.float16)[seed % 2]
    scale = _between(-3, 2, u)
    made = jax.tree.map(
        lambda g: (scale * g).astype(dtype).astype(F32), sent(params, x, y)
    )
    return params, made, x


def cut(seed, u):
    params, x, y = _drawn(seed)
    share = max(1 - _between(-4, -0.05, u), 1e-3)
    return params, shared_update.top_k(sent(params, x, y), share=share), x


def few_bits(seed, u):
    params, x, y = _drawn(seed)
    key = jax.random.key(seed) if seed % 2 else None
    bits = 4 + round(12 * u)
    return params, shared_update.quantise(sent(params, x, y), bits=bits, key=key), x


def clipped_entries(seed, u):
    params, x, y = _drawn(seed)

    def clip(g):
        most = _between(0, 1.2, u) * jnp.sqrt(jnp.mean(g**2))
        return jnp.clip(g, -most, most)

    return params, jax.tree.map(clip, sent(params, x, y)), x


def signs(seed, u):
    """Divided by its sizes to some power: sign descent at 1; Adam's first step."""
    params, x, y = _drawn(seed)
    power = _between(-4, 0, u)
    made = jax.tree.map(
        lambda g: g / jnp.maximum(jnp.abs(g), 1e-12) ** power, sent(params, x, y)
    )
    return params, made, x


def copies(seed, u):
    """Several copies, near copies or multiples, of the same or another label."""
    del u
    params, x, y = _drawn(seed, bias=0.1 * (seed % 7 == 6))
    rng = np.random.default_rng(seed)
    rows = rng.permutation(SIZE)
    pairs = int(rng.choice([1, 2, 5]))
    for a, b in zip(rows[:pairs], rows[pairs : 2 * pairs], strict=True):
        step = rng.standard_normal(SHAPE) * 10.0 ** rng.uniform(-4, -0.5)
        size = rng.choice([0.3, 0.5, 0.9, 1.01, 1.5, 2.0, 4.0])
        x[b] = (x[a], x[a] + step, size * x[a], x[a] + 1e-3 * step)[seed % 4]
        if seed // 4 % 2:
            y[b] = y[a]
    return params, sent(params, x, y), x


def three_of_a_kind(seed, u):
    """Mixtures of images on one ray, or within a region, of three labels."""
    params, x, y = _drawn(seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(SIZE)[:3]
    for row, size in zip(rows[1:], (1 + u, 2 + u), strict=True):
        x[row] = size * x[rows[0]]
        if seed % 2:
            x[row] = x[rows[0]] + _between(-5, -1, u) * rng.standard_normal(SHAPE)
    y[rows] = one_hot(np.arange(3) if seed // 2 % 2 else np.zeros(3, int))
    return params, sent(params, x, y), x


def blank(seed, u):
    params, x, y = _drawn(seed, bias=0.1 * (seed % 2))
    x[:2] = np.asarray([0.0, 10.0 * u], np.float32).reshape(2, 1, 1, 1)
    return params, sent(params, x, y), x


def wrong_params(seed, u):
    params, x, y = _drawn(seed)
    made = sent(params, x, y)
    if seed % 4 == 0:
        return params_of(seed + 1000), made, x
    names = list(params) if seed % 4 == 1 else [f"Dense_{seed % 3}"]
    wrong = {n: perturbed(params[n], seed, _between(-7, -1, u)) for n in names}
    return {**params, **wrong}, made, x


def shuffled(seed, u):
    params, x, y = _drawn(seed)
    rng = np.random.default_rng(seed)
    name, order = f"Dense_{seed % 2}", np.arange(WIDTH)
    few = rng.permutation(WIDTH)[: max(2, int(WIDTH * u**3))]
    order[np.sort(few)] = few
    made = sent(params, x, y)
    leaf = "bias" if seed % 3 == 2 else "kernel"
    layer = {**made[name], leaf: made[name][leaf][..., order]}
    return params, {**made, name: layer}, x


def two_gradients(seed, u):
    """The sum with one of other images, of these weights, of moved ones or others."""
    params, x, y = _drawn(seed)
    others, labels = images(seed + 500), one_hot(classes(seed + 500))
    share = np.ones(SIZE)
    share[max(1, int(SIZE * u)) :] = 0  # so that the rank may still show
    at = (params, perturbed(params, seed, 1e-3), params_of(seed + 500))[seed % 3]
    more = sent(at, others, labels, weights=share)
    size = (1e-3, 0.1, 1.0)[seed // 3 % 3]
    made = _tree.axpy(size, more, sent(params, x, y))
    return params, made, np.concatenate([x, others])


def several_steps(seed, u):
    """FedAvg: full batches or parts of them; or a sum with momentum."""
    params, x, y = _drawn(seed)
    rng = np.random.default_rng(seed)
    rate, at = _between(-1, 1, u), params
    for _ in range(4):
        weights = np.ones(SIZE)
        if seed % 2:
            weights[rng.permutation(SIZE)[: SIZE // 2]] = 0
        at = _tree.axpy(-rate, sent(at, x, y, weights=weights), at)
    return params, _tree.sub(params, at), x


def decayed(seed, u):
    params, x, y = _drawn(seed, bias=0.1 * (seed % 2))
    made, decay = sent(params, x, y), _between(-7, -1, u)
    names = list(params) if seed % 3 else [f"Dense_{seed // 3 % 3}"]
    return params, made | {n: _tree.axpy(decay, params[n], made[n]) for n in names}, x


def softened(seed, u):
    """Label smoothing, mixed labels, and images of very different weights."""
    params, x, y = _drawn(seed)
    y = (1 - u) * y + u / CLASSES * (1 + 0.1 * np.roll(y, 1, axis=1))
    weights = 10.0 ** np.random.default_rng(seed).uniform(-2 * (seed % 3), 0, SIZE)
    return params, sent(params, x, y, weights=weights), x


def learnt(seed, u):
    """Logits of a deviation up to 1.2, and beyond."""
    params, x, y = _drawn(seed, logits=_between(-1, 1, u))
    return params, sent(params, x, y), x


def activations(seed, u):
    del u
    params, x, y = _drawn(seed)
    kind = PLAIN._replace(act=("leaky", "gelu", "tanh")[seed % 3])
    return params, sent(params, x, y, kind=kind), x


def dropped(seed, u):
    params, x, y = _drawn(seed)
    share = _between(-3, -0.3, u)
    kept = np.random.default_rng(seed).random((SIZE, WIDTH)) > share
    kept = jnp.asarray(kept / (1 - share), F32)
    return params, sent(params, x, y, kept=kept), x


def odd_units(seed, u):
    """Units that are dead, copies of others, or of tiny weights."""
    params, x, y = _drawn(seed)
    name, few = f"Dense_{seed % 2}", int(0.7 * WIDTH * u)
    layer = params[name]
    kernel, bias = np.array(layer["kernel"]), np.array(layer["bias"])
    kind = seed // 2 % 3
    if kind == 0:
        bias[:few] = -100.0
    elif kind == 1:
        kernel[:, :few] = np.resize(kernel[:, few : few + 5].T, (few, len(kernel))).T
    else:
        kernel[:, :few] *= 1e-4
    odd = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    params = {**params, name: odd}
    return params, sent(params, x, y), x


_MAKERS = (
    intact,
    noise,
    damaged_layer,
    scaled_layer,
    halved,
    cut,
    few_bits,
    clipped_entries,
    signs,
    copies,
    three_of_a_kind,
    blank,
    wrong_params,
    shuffled,
    two_gradients,
    several_steps,
    decayed,
    softened,
    learnt,
    activations,
    dropped,
    odd_units,
)
FAMILIES = {make.__name__.replace("_", " "): _family(make) for make in _MAKERS}
