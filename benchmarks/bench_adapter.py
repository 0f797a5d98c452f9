"""Adapters: images read from LoRA factors, the law of identifiability, certificates.

    python -m benchmarks.bench_adapter --out=results/benchmarks/adapter.json

Needs NTK_PRIVACY_DATA. `images`: MLPs of two hidden layers on MNIST, whose first layer
is adapted by full-batch gradient descent in float32; seeds 0, 1, 2. `law`: N images of
k unknowns each, an adapted head of m units and rank r with an unknown start of A; of
five draws, how many are locally determined (rank of the equations at what is found) and
how many are found to 1e-8, from the best of three starts near the images. `damaged`:
inputs that are wrong or spoilt, on digits, and how many certificates were false.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _measure
from ntk_privacy import data
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.reconstruction import adapter, adapter_factors, adapter_replay
from ntk_privacy.training import adapter_victim

_SEEDS = (0, 1, 2)
_IMAGES = {
    "10 images, 30 steps": {"n": 10, "rank": 16, "width": 1024, "steps": 30},
    "10 images, 100 steps": {"n": 10, "rank": 16, "width": 1024, "steps": 100},
    "10 images, 500 steps": {"n": 10, "rank": 16, "width": 1024, "steps": 500},
    "20 images, 100 steps": {"n": 20, "rank": 32, "width": 2048, "steps": 100},
    "10 images, one gradient": {"n": 10, "rank": 16, "width": 1024, "steps": 100},
    "50 images, one gradient": {"n": 50, "rank": 64, "width": 2048, "steps": 100},
}
_LAW = ((4, 2, 3), (6, 3, 4), (5, 4, 6))  # r, N, m
_DRAWS, _INPUTS = 5, 24
_PLAN = adapter_replay.Schedule(num_steps=40, learning_rate=0.03)


def _errors(found, images) -> np.ndarray:
    """Relative distance of each found image to the nearest training image."""
    if not len(found):
        return np.zeros(0)
    made, true = (np.asarray(a, float).reshape(len(a), -1) for a in (found, images))
    apart = np.linalg.norm(made[:, None] - true[None], axis=2)
    return (apart / np.linalg.norm(true, axis=1)).min(axis=1)


def _alike(found, images) -> float:
    """Least cosine between a training image and the most alike found one."""
    if not len(found):
        return 0.0
    made, true = (np.asarray(a, float).reshape(len(a), -1) for a in (found, images))
    made, true = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (made, true))
    return float(np.abs(true @ made.T).max(axis=1).min())


def _gradient(victim, whole):
    """One gradient of the factors and the bias, where training left them."""
    made, public = victim.adapter, victim.params_0

    def loss(factors):
        a, b, bias = factors
        kernel = public["Dense_0"]["kernel"] + jnp.matmul(a, b, precision="highest")
        params = {**public, "Dense_0": {"kernel": kernel, "bias": bias}}
        out = victim.model.apply_fn(params, jnp.asarray(whole.x_train))
        return jnp.mean(jnp.sum((out - whole.y_train) ** 2, axis=1)) / 2

    leaves = (made.a_t, made.b_t, made.bias_t)
    return jax.jit(jax.grad(loss))(tuple(jnp.asarray(leaf) for leaf in leaves))


def images(name, row, seed) -> dict:
    """Trains an adapter, or takes its gradient, and reads the images."""
    key = jax.random.key(seed)
    whole = data.load("mnist", num_train=row["n"], key=key)
    victim = adapter_victim.train(
        whole.x_train, whole.y_train, width=row["width"], rank=row["rank"],
        num_steps=row["steps"], learning_rate=0.02, key=key,
    )  # fmt: skip
    made, given = victim.adapter, {"key": key, "image_shape": (28, 28, 1)}
    start = time.perf_counter()
    if "gradient" in name:
        now = dataclasses.replace(made, a_0=None)
        gradient = _gradient(victim, whole)
        found = adapter.reconstruct_gradient(victim.params_0, now, gradient, **given)
    else:
        found = adapter.reconstruct(victim.params_0, made, max_rounds=6, **given)
    spent = time.perf_counter() - start
    errors, sure = _errors(found.images, whole.x_train), found.certified
    moved = np.linalg.norm(made.moved_a) / np.linalg.norm(made.a_0)
    return {
        "case": name, "seed": seed, "N": row["n"], "rank": row["rank"],
        "width": row["width"], "loss": victim.loss, "way_of_A": float(moved),
        "N_read": found.estimated_num_images, "word": found.verdict.word,
        "returned": len(found.images), "certified": int(sure.sum()),
        "false": int(np.sum(errors[sure] > found.errors[sure])),
        "worst_error": float(errors.max(initial=0.0)),
        "least_cosine": _alike(found.images, whole.x_train), "s": spent,
    }  # fmt: skip


def _loss(kind, n, m):
    classes, targets = np.arange(n) % m, np.random.default_rng(9).normal(size=(n, m))
    if kind == "cross_entropy":
        return lambda z: -jnp.mean(jax.nn.log_softmax(z)[np.arange(n), classes])
    return lambda z: jnp.mean(jnp.sum((z - targets) ** 2, axis=1)) / 2


def _searched(loss, r, n, m, k, seed, *, wrong=False):
    """Best of three searches; errors against the images that are searched for."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(_INPUTS, m)) / np.sqrt(_INPUTS)
    a_0 = rng.normal(size=(_INPUTS, r)) / np.sqrt(_INPUTS)
    basis = np.linalg.qr(rng.normal(size=(_INPUTS, k)))[0] * np.sqrt(_INPUTS / k)
    offset = rng.normal(size=_INPUTS) / 2
    u, others = rng.normal(size=(2, n, k))
    truth = (others if wrong else u) @ basis.T + offset
    made = adapter_replay.trained(truth, a_0, loss, _PLAN, kernel=kernel)
    made = dataclasses.replace(made, a_0=None)
    tried = []
    for scale in (1e-3, 1e-2, 1e-1):
        found = adapter_replay.within(
            made, loss, basis, u + scale * rng.normal(size=u.shape), _PLAN,
            kernel=kernel, offset=offset, max_iterations=40,
        )  # fmt: skip
        tried.append((found.miss, scale, found))
        if found.verdict.word != "nothing found":
            break
    found = min(tried, key=lambda entry: entry[:2])[2]
    asked = _errors(found.images, u @ basis.T + offset).max()
    of_release = _errors(found.images, truth)
    false = int(np.sum(of_release[found.certified] > found.errors[found.certified]))
    return found, float(asked), false


def law(kind, r, n, m, over) -> dict:
    """Counts draws that are determined and found, `over` the published border."""
    k = m + r - n + over
    loss = _loss(kind, n, m)
    runs = [_searched(loss, r, n, m, k, seed) for seed in range(_DRAWS)]
    control = [_searched(loss, r, n, m, k, seed, wrong=True) for seed in range(_DRAWS)]
    return {
        "case": f"law, {kind}", "r": r, "N": n, "m": m, "k": k,
        "k_less_border": over, "draws": _DRAWS,
        "determined": sum(found.condition > 1e-11 for found, *_ in runs),
        "found": sum(error < 1e-8 for _, error, _ in runs),
        "certified": sum(bool(found.certified.all()) for found, *_ in runs),
        "false": sum(false for *_, false in [*runs, *control]),
        "wrong_release_found": sum(error < 1e-2 for _, error, _ in control),
    }  # fmt: skip


def _damaged(made, rng, kind, public, model):
    """One wrong or spoilt input of each kind."""
    a, b, bias = (np.asarray(leaf) for leaf in (made.a_t, made.b_t, made.bias_t))
    like = {"a_t": a, "b_t": b, "a_0": made.a_0, "bias_t": bias}

    def noisy(leaf, size):
        spread = size * np.sqrt(np.mean(leaf**2))
        return (leaf + spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    size = 10.0 ** rng.uniform(-6, -1)
    if kind == "noise on B":
        like["b_t"] = noisy(b, size)
    elif kind == "noise on A":
        like["a_t"] = noisy(a, size)
    elif kind == "noise on the bias":
        like["bias_t"] = noisy(bias, size)
    elif kind == "wrong start":
        like["a_0"] = rng.permuted(made.a_0, axis=0)
    elif kind == "start a little off":
        like["a_0"] = noisy(np.asarray(made.a_0), size)
    elif kind == "units permuted":
        like["b_t"] = b[:, rng.permutation(b.shape[1])]
    elif kind == "float16":
        like |= {k: v.astype(np.float16) for k, v in like.items() if k != "a_0"}
        like |= {k: like[k].astype(np.float32) for k in ("a_t", "b_t", "bias_t")}
    elif kind == "decayed":
        like |= {"a_t": a * np.float32(1 - size), "b_t": b * np.float32(1 - size)}
    elif kind == "other network":
        key = jax.random.key(int(rng.integers(2**31)))
        public = model.init_params(key, (8, 8, 1))
    return Adapter(**like), public


_KINDS = (
    *("intact", "noise on B", "noise on A", "noise on the bias", "wrong start"),
    *("start a little off", "units permuted", "float16", "decayed", "other network"),
)


def damaged(kind, count) -> dict:
    """Reads so many inputs of a kind; counts false certificates."""
    rng = np.random.default_rng(_KINDS.index(kind))
    told = {"certified": 0, "false": 0, "worst_over_bound": 0.0}
    for i in range(count):
        key = jax.random.key(100 + i)
        whole = data.load("digits", num_train=6, key=key)
        steps = (10, 25, 50, 100)[i % 4]
        victim = adapter_victim.train(
            whole.x_train, whole.y_train, width=256, rank=12, num_steps=steps,
            learning_rate=0.02, key=key,
        )  # fmt: skip
        made, public = _damaged(
            victim.adapter, rng, kind, victim.params_0, victim.model
        )
        try:
            found = adapter.reconstruct(
                public, made, key=key, image_shape=(8, 8, 1), max_rounds=2
            )
        except ValueError:
            continue  # refused in a sentence
        errors, sure = _errors(found.images, whole.x_train), found.certified
        ratios = errors[sure] / found.errors[sure]
        told["certified"] += int(sure.sum())
        told["false"] += int(np.sum(ratios > 1))
        worst = max(told["worst_over_bound"], float(ratios.max(initial=0.0)))
        told["worst_over_bound"] = worst
    return {"case": "damaged", "kind": kind, "inputs": count, **told}


def membership(seed) -> dict:
    """Residuals of the equations that need no start: of members and of others."""
    key = jax.random.key(seed)
    whole = data.load("mnist", num_train=10, key=key)
    victim = adapter_victim.train(
        whole.x_train, whole.y_train, width=1024, rank=16, learning_rate=0.02, key=key
    )
    made = dataclasses.replace(victim.adapter, a_0=None)
    others = np.asarray(whole.x_test[:1000])
    return {
        "case": "equations without the start of A", "seed": seed, "N": 10, "rank": 16,
        "N_read": adapter_factors.num_images(made).rank,
        "largest_of_members": float(
            adapter_factors.residuals(made, whole.x_train).max()
        ),
        "least_of_others": float(adapter_factors.residuals(made, others).min()),
    }  # fmt: skip


def main() -> None:
    options = _measure.arguments(inputs=24, parts="membership,images,damaged,law")
    rows = []

    def told(row):
        rows.append(row)
        _measure.report("adapter", [row], None)
        if options.out is not None:
            _measure.write("adapter", rows, options.out)

    if "membership" in options.parts:
        for seed in _SEEDS:
            told(membership(seed))
    if "images" in options.parts:
        for name, row in _IMAGES.items():
            for seed in _SEEDS:
                told(images(name, row, seed))
    if "damaged" in options.parts:
        for kind in _KINDS:
            told(damaged(kind, options.inputs))
    if "law" in options.parts:
        for kind in ("cross_entropy", "squares"):
            for r, n, m in _LAW:
                for over in (-3, -2, -1, 0, 1, 2):
                    told(law(kind, r, n, m, over))


if __name__ == "__main__":
    main()
