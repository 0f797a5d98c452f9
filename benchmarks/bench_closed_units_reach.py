"""How many images closed units read, against width, depth, pixels and how far it moved.

    python -m benchmarks.bench_closed_units_reach --rows=width --seeds=0,1,2 \
        --out=results/benchmarks/closed_units_reach.json --picture=reach.png

Needs NTK_PRIVACY_DATA. For every row and seed the largest N of a grid all of whose
images come back within a squared distance of 1e-4; `classes` decodes the same gradients
class by class instead (`algebraic`). Every try is a row of the file, and
tries that the file has are not made again. `flips`: share of pairs of image and unit
that are on one side of zero before training and on the other one after it.
"""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from benchmarks.bench_closed_units import figures
from ntk_privacy import data
from ntk_privacy.evaluation.kernel_distance import kernel_distance
from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import algebraic, closed_units, evidence
from ntk_privacy.reports import canvas

_NEAR = 1e-4
_RATIO = 1.15  # of a number of the grid to the one before
_FIRST, _LAST = 10, 700
_BATCH, _MOMENTUM = 5, 0.9

_GRADIENT = {"set": "mnist", "width": 256, "depth": 2, "steps": 0, "rate": 0.0}
_TRAINED = {**_GRADIENT, "steps": 1000, "rate": 0.003}

ROWS: dict[str, list[dict[str, Any]]] = {
    "width": [{**_GRADIENT, "width": w} for w in (64, 128, 256, 512)],
    "classes": [
        {**_GRADIENT, "width": w, "attack": "classes"} for w in (64, 128, 256, 512)
    ],
    "wide": [{**_GRADIENT, "width": 1024}],
    "trained_width": [{**_TRAINED, "width": w} for w in (128, 256, 512)],
    "depth": [{**_GRADIENT, "depth": d} for d in (1, 2, 4, 6)],
    "set": [{**_GRADIENT, "set": s} for s in ("mnist", "cifar10", "smooth_28")],
    "pixels": [{**_GRADIENT, "set": f"smooth_{s}"} for s in (8, 12, 16, 28)],
    "moved": [{**_TRAINED, "rate": r} for r in (0.0003, 0.001, 0.003, 0.01, 0.02)],
}


def grid() -> list[int]:
    """Numbers of images that are tried, even ones."""
    found, n = [], float(_FIRST)
    while n <= _LAST:
        found.append(2 * round(n / 2))
        n *= _RATIO
    return sorted(set(found))


def _smooth(size: int, n: int, seed: int) -> np.ndarray:
    """Random images in [0, 1], of one common shape and smooth parts of their own."""
    rng = np.random.default_rng(seed)
    waves = rng.standard_normal((n + 1, 6, 6))
    at = np.pi * (np.arange(size) + 0.5) / size
    basis = np.cos(np.outer(np.arange(6), at)) / np.sqrt(1 + np.arange(6))[:, None]
    images = np.einsum("nij,ih,jw->nhw", waves, basis, basis)
    images = images[1:] + images[:1]
    fine = 0.1 * rng.standard_normal(images.shape)
    return np.clip(0.5 + 0.25 * images + fine, 0, 1)[..., None] - 0.5


def images_of(name: str, n: int, seed: int):
    """Images, centred, and labels of ten classes."""
    if name.startswith("smooth_"):
        return _smooth(int(name.removeprefix("smooth_")), n, seed), np.arange(n) % 10
    whole = data.load(
        name, task="all_classes", num_train=10 * -(-n // 10), key=jax.random.key(seed)
    )
    labels = np.asarray(whole.y_train).argmax(1)
    # As many of each class as n allows.
    turns = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    kept = np.argsort(turns, kind="stable")[:n]
    return np.asarray(whole.x_train)[kept], labels[kept]


def _loss(model, params, x, y):
    logits = model.apply_fn(params, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(losses)


def _trained(model, params, x, y, row, key):
    """SGD with momentum on batches drawn anew."""
    optimizer = optax.sgd(row["rate"], momentum=_MOMENTUM)

    def step(carry, k):
        params, state = carry
        kept = jax.random.choice(k, len(x), (_BATCH,), replace=False)
        grads = jax.grad(lambda p: _loss(model, p, x[kept], y[kept]))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    keys = jax.random.split(key, row["steps"])
    return jax.jit(lambda start: jax.lax.scan(step, start, keys)[0][0])(start)


def _flips(before, after, x) -> float:
    flat = np.asarray(x).reshape(len(x), -1)
    sides = [
        flat @ np.asarray(p["Dense_0"]["kernel"]) + np.asarray(p["Dense_0"]["bias"]) > 0
        for p in (before, after)
    ]
    return float(np.mean(sides[0] != sides[1]))


def attempt(row: dict[str, Any], n: int, seed: int) -> dict[str, Any]:
    """Trains, reads, and compares with the truth."""
    images, labels = images_of(row["set"], n, seed)
    x, y = jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    model = MLP((row["width"],) * row["depth"], 10)
    key_init, key_train = jax.random.split(jax.random.key(1000 + seed))
    before = model.init_params(key_init, x.shape[1:])
    told = {"flips": 0.0, "kernel_distance": 0.0}
    given = {"key": jax.random.key(7), "image_shape": x.shape[1:]}
    if row["steps"]:
        after = _trained(model, before, x, y, row, key_train)
        told["flips"] = _flips(before, after, x)
        few = x[:10]
        kernels = [
            structured.ntk(model, p, few, trace_outputs=True) for p in (before, after)
        ]
        told["kernel_distance"] = float(kernel_distance(*kernels))
        start = time.perf_counter()
        found = closed_units.reconstruct(before, after, **given)
    else:
        gradient = jax.grad(lambda p: _loss(model, p, x, y))(before)
        start = time.perf_counter()
        if row.get("attack") == "classes":
            known = evidence.of_gradient(
                model, before, gradient, image_shape=given["image_shape"]
            )
            found = algebraic.from_evidence(known, key=given["key"])
        else:
            found = closed_units.reconstruct_gradient(before, gradient, **given)
    seconds = time.perf_counter() - start
    seen = figures(found, x)
    return {
        **row,
        "N": n,
        "seed": seed,
        **told,
        **seen,
        "all": bool(len(found.images) and seen["largest"] < _NEAR),
        "s_with_compile": seconds,
    }


def _largest(row: dict[str, Any], seed: int, tried: list[dict[str, Any]]) -> None:
    """Walks up or down the grid from a guess; appends what it tries."""
    numbers, low, high = grid(), -1, len(grid())

    def success(n: int) -> bool:
        for old in tried:
            same = {**row, "N": n, "seed": seed}.items() <= old.items()
            if same and row.get("attack") == old.get("attack"):
                return old["all"]
        tried.append(attempt(row, n, seed))
        _measure.report("", tried[-1:], None)
        return tried[-1]["all"]

    # About a fifth of the units is where it ends, or the pixels; or a tenth.
    share = 10 if row.get("attack") == "classes" else 5
    guess = int(np.searchsorted(numbers, row["width"] / share))
    while high - low > 1:
        if success(numbers[guess]):
            low, guess = guess, guess + 1
        else:
            high, guess = guess, guess - 1


def reach(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest N read in full, of every setting and seed that was tried."""
    names = (*_GRADIENT, "seed")
    best: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        place = (*(row[name] for name in names), row.get("attack"))
        if row["all"] and row["N"] >= best.get(place, row)["N"]:
            best[place] = row
    return list(best.values())


def _points(ax, rows, name, label, marker):
    ax.plot(
        [row[name] for row in rows], [row["N"] for row in rows], marker,
        label=label, alpha=0.7, markersize=5,
    )  # fmt: skip


def picture(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws largest N over width, depth, pixels and the share of flips."""
    best = reach(rows)
    for row in best:
        side = row["set"].removeprefix("smooth_")
        row["pixels"] = {"mnist": 784, "cifar10": 3072}.get(row["set"]) or int(
            side
        ) ** 2
    plain = {"set": "mnist", "depth": 2, "width": 256}

    def pick(gradient: bool, attack: str | None = None, **fixed):
        return [
            row for row in best
            if fixed.items() <= row.items() and (row["steps"] == 0) == gradient
            and row.get("attack") == attack
        ]  # fmt: skip

    path.parent.mkdir(parents=True, exist_ok=True)
    with canvas.figure(path, size=(14, 3.4), font=10) as made:
        axes = made.subplots(1, 4)
        widths = np.array([64, 1024])
        axes[0].plot(widths, widths / 2, "k:", lw=1, label="half the units")
        axes[0].plot(widths, widths / 5, "k--", lw=1, label="a fifth")
        fixed = {"set": "mnist", "depth": 2}
        _points(axes[0], pick(True, **fixed), "width", "one gradient", "o")
        by_class = pick(True, "classes", **fixed)
        _points(axes[0], by_class, "width", "the same, class by class", "x")
        trained = [
            row for row in pick(False, **fixed) if row["rate"] == _TRAINED["rate"]
        ]
        _points(axes[0], trained, "width", "trained", "^")
        axes[0].set(xscale="log", yscale="log", xlabel="width of the first layer",
                    ylabel="largest N, all within 1e-4")  # fmt: skip
        depth = pick(True, set="mnist", width=256)
        _points(axes[1], depth, "depth", "one gradient, width 256", "o")
        axes[1].set(xlabel="hidden layers")
        for name, marker in (("smooth", "s"), ("mnist", "o"), ("cifar10", "D")):
            chosen = [
                r for r in pick(True, depth=2, width=256) if r["set"].startswith(name)
            ]
            label = {"smooth": "synthetic", "mnist": "MNIST", "cifar10": "CIFAR-10"}[
                name
            ]
            _points(axes[2], chosen, "pixels", label, marker)
        limit = np.array([64, 128])
        axes[2].plot(limit, limit, "k:", lw=1, label="as many as pixels")
        axes[2].set(xscale="log", xlabel="numbers in an image")
        _points(axes[3], pick(False, **plain), "flips", "trained, width 256", "^")
        axes[3].set(xlabel="share of pairs (image, unit) that flipped", xlim=(0, 0.4))
        for ax in axes:
            if ax is not axes[0]:
                ax.set_ylim(0, 1.1 * ax.dataLim.y1)
            ax.legend(fontsize=8)
            ax.grid()


def main() -> None:
    options = _measure.arguments(rows=",".join(ROWS), seeds="0,1,2", picture="")
    tried = [] if options.out is None else _measure.read(options.out)
    for name in _measure.chosen(options.rows, ROWS):
        for seed in map(int, options.seeds.split(",")):
            for row in ROWS[name]:
                _largest(row, seed, tried)
                if options.out is not None:
                    _save(tried, options.out)
    for row in reach(tried):
        print(
            {k: row[k] for k in ("set", "width", "depth", "steps", "rate", "seed", "N")}
        )
    if options.picture:
        picture(tried, pathlib.Path(options.picture))


def _save(tried: list[dict[str, Any]], out: pathlib.Path) -> None:
    # Written apart first: a crash loses no tries.
    beside = out.with_suffix(".part")
    _measure.write("closed_units_reach", tried, beside)
    beside.replace(out)


if __name__ == "__main__":
    main()
