"""Closed units on what clients really send: rounded, averaged, clipped, noised, cut.

    python -m benchmarks.bench_shared_updates --out=FILE

Needs NTK_PRIVACY_DATA. CIFAR-10, ten classes, cross-entropy, two hidden layers of width
512, at initialisation. What is sent is made by `training.shared_update`; the attacker
is told the weights that the client started from and nothing of what it did to the
gradient. Clipping per image is to the median norm of the images' gradients, so that
half of them are clipped; epsilon is that of the one release at a delta of 1e-5, by
Balle and Wang (2018). Columns as in `bench_closed_units`; recognised are those found at
25 dB. 16-bit gradients are tried on the batches of --reach, too. A first call compiles,
so that seconds are those of a warm search only where the same shapes came before. Rows
that FILE holds are kept; --picture=PNG draws it.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from benchmarks.bench_closed_units import figures
from ntk_privacy import _tree, data
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import closed_units
from ntk_privacy.reports import canvas
from ntk_privacy.training import gaussian_mechanism, shared_update

_DELTA = 1e-5
_ROUNDS = 8  # of starts: what is found is found in the first, what is not takes long
_RECOGNISED = 10.0**-2.5  # mean squared distance of a pixel: 25 dB
_RATE = 0.02
_POOL = 500  # images that a batch is drawn from
_MODEL = MLP((512, 512), 10)
_NOISES = (
    *(1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4),
    *(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
)
_SHARES = (0.9, 0.75, 0.5, 0.2, 0.1, 0.05, 0.01)


def loss_fn(params, images, labels):
    """Mean cross-entropy."""
    logits = _MODEL.apply_fn(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


_gradient = jax.jit(jax.grad(loss_fn))


@jax.jit
def _norms(params, images, labels):
    def norm(example):
        one = jax.grad(loss_fn)(params, *(part[None] for part in example))
        return jnp.sqrt(_tree.squared_norm(one))

    return jax.lax.map(norm, (images, labels))


@jax.jit
def _private(params, images, labels, clip_norm, noise_multiplier, key):
    return shared_update.clipped_mean_gradient(
        loss_fn, params, images, labels,
        clip_norm=clip_norm, noise_multiplier=noise_multiplier, key=key,
    )  # fmt: skip


@jax.jit
def _local(params, batches):
    return shared_update.client_update(loss_fn, params, batches, step_size=_RATE)


def _cast(dtype) -> Callable:
    def sent(params, x, y, key):
        del key
        return jax.tree.map(lambda g: g.astype(dtype), _gradient(params, x, y))

    return sent


def _steps(num_steps: int, batch: int | None = None) -> Callable:
    """FedAvg: so many steps, on all images or on batches, an epoch in a new order."""

    def sent(params, x, y, key):
        size = batch or len(x)
        each = len(x) // size
        keys = jax.random.split(key, -(-num_steps // each))
        orders = jax.vmap(lambda k: jax.random.permutation(k, len(x)))(keys)
        rows = orders[:, : each * size].reshape(-1, size)[:num_steps]
        return _local(params, (x[rows], y[rows]))

    return sent


def _clipped(noise_multiplier: float, share: float = 1.0) -> Callable:
    def sent(params, x, y, key):
        norm = share * jnp.median(_norms(params, x, y))
        return _private(params, x, y, norm, noise_multiplier, key)

    return sent


def _scaled(params, x, y, key):
    """The whole gradient clipped to a hundredth of its norm."""
    del key
    return _tree.scale(1e-2, _gradient(params, x, y))


def _top_k(share: float) -> Callable:
    def sent(params, x, y, key):
        del key
        return shared_update.top_k(_gradient(params, x, y), share=share)

    return sent


def _bits(bits: int, *, random: bool = False) -> Callable:
    def sent(params, x, y, key):
        key = key if random else None
        return shared_update.quantise(_gradient(params, x, y), bits=bits, key=key)

    return sent


ROWS: dict[str, Callable] = {
    **{f"dtype {d.__name__}": _cast(d) for d in (jnp.float32, jnp.float16)},
    "dtype bfloat16": _cast(jnp.bfloat16),
    **{f"steps {n}": _steps(n) for n in (1, 5, 20)},
    **{f"steps {n}, batches of 4": _steps(n, 4) for n in (5, 20, 100)},
    "clipped whole": _scaled,
    **{f"clipped each, {s:g}": _clipped(0.0, s) for s in (1.0, 0.1)},
    **{f"noise {s:g}": _clipped(s) for s in _NOISES},
    **{f"top {s:g}": _top_k(s) for s in _SHARES},
    **{f"bits {b}": _bits(b) for b in (16, 12, 8, 4)},
    "bits 8, at random": _bits(8, random=True),
}


def drawn(n: int, seed: int, model: MLP = _MODEL):
    """Weights, images and classes, which are drawn as they come."""
    found = data.load(
        "cifar10", task="all_classes", num_train=_POOL, key=jax.random.key(seed)
    )
    chosen = np.random.default_rng(seed).permutation(_POOL)[:n]
    x = jnp.asarray(found.x_train[chosen])
    params = model.init_params(jax.random.key(1000 + seed), x.shape[1:])
    return params, x, jnp.asarray(np.asarray(found.y_train)[chosen].argmax(1))


def read(name: str, params, sent, shape):
    """What closed units make of it: an update of several steps moved the gates."""
    given = {"key": jax.random.key(7), "image_shape": shape, "max_rounds": _ROUNDS}
    if name.startswith("steps"):
        after = _tree.sub(params, sent)
        return closed_units.reconstruct(params, after, **given)
    return closed_units.reconstruct_gradient(params, sent, **given)


def recognised(found, x) -> int:
    """Images that are found at 25 dB."""
    truth = np.asarray(x, np.float64).reshape(len(x), -1)
    images = np.asarray(found.images, np.float64).reshape(-1, truth.shape[1])
    if not len(images):
        return 0
    squared = ((truth[:, None] - images[None]) ** 2).mean(-1).min(1)
    return int((squared < _RECOGNISED).sum())


def measured(name: str, n: int, seed: int) -> dict[str, Any]:
    """One row: what is sent, read, and compared with the truth."""
    params, x, y = drawn(n, seed)
    sent = ROWS[name](params, x, y, jax.random.key(500 + seed))
    begin = time.perf_counter()
    found = read(name, params, sent, x.shape[1:])
    seconds = time.perf_counter() - begin
    row = {"case": name, "N": n, "seed": seed, **figures(found, x)}
    row["recognised"] = recognised(found, x)
    if name.startswith("noise"):
        sigma = float(name.split()[1])
        row["noise_multiplier"] = sigma
        row["epsilon"] = gaussian_mechanism.epsilon(sigma, delta=_DELTA)
    return row | {
        "word": found.verdict.word,
        "reason": found.verdict.reason,
        "s": seconds,
    }


_CURVES = (
    ("recognised", "recognisable (25 dB)", "s", canvas.COLOURS[2]),
    ("found", "within a squared distance of 1e-3", "o", canvas.COLOURS[0]),
    ("certified", "certified", "^", canvas.COLOURS[1]),
)
_TICKS = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)


def picture(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws shares of images over the noise multiplier, and epsilon above."""
    rows = [row for row in rows if "noise_multiplier" in row]
    sizes = sorted({row["N"] for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    with canvas.figure(path, size=(5.5 * len(sizes), 3.8), font=10) as made:
        axes = made.subplots(1, len(sizes), sharey=True, squeeze=False)
        for ax, n in zip(axes[0], sizes, strict=True):
            of_size = [row for row in rows if row["N"] == n]
            noises = sorted({row["noise_multiplier"] for row in of_size})
            for name, label, marker, colour in _CURVES:
                shares = [
                    [r[name] / n for r in of_size if r["noise_multiplier"] == noise]
                    for noise in noises
                ]
                low, high = (np.array([pick(s) for s in shares]) for pick in (min, max))
                mean = np.array([np.mean(s) for s in shares])
                ax.plot(noises, mean, marker + "-", label=label, color=colour, ms=5)
                ax.fill_between(noises, low, high, color=colour, alpha=0.15, lw=0)
            ax.set(
                xscale="log", xlabel="noise multiplier", title=f"a batch of {n}\n",
                ylim=(-0.04, 1.04), xticks=_TICKS,
            )  # fmt: skip
            above = ax.twiny()
            told = [gaussian_mechanism.epsilon(s, delta=_DELTA) for s in _TICKS]
            above.set(
                xscale="log", xlim=ax.get_xlim(), xticks=_TICKS,
                xlabel=f"epsilon of one release, delta = {_DELTA:g}",
            )  # fmt: skip
            above.set_xticklabels([f"{e:.2g}" for e in told], fontsize=8)
            above.minorticks_off()
            ax.minorticks_off()
            ax.grid()
        axes[0][0].set_ylabel("share of the batch")
        axes[0][0].legend(fontsize=8, loc="lower left")


def main() -> None:
    options = _measure.arguments(
        rows="", batches="8,20", seeds="0,1,2", reach="40,60,80,100", picture=""
    )
    # Names have commas of their own.
    prefixes = tuple(filter(None, options.rows.split(";")))
    names = [name for name in ROWS if not prefixes or name.startswith(prefixes)]
    if not names:
        raise SystemExit(f"rows={options.rows!r} begins no name: {'; '.join(ROWS)}.")
    sizes, more = (
        [int(n) for n in text.split(",") if n]
        for text in (options.batches, options.reach)
    )
    runs = [(n, name) for n in sizes for name in names]
    runs += [(n, name) for n in more for name in names if name.startswith("dtype")]
    rows = [] if options.out is None else _measure.read(options.out)
    done = {(row["N"], row["case"], row["seed"]) for row in rows}
    for n, name in runs:
        for seed in map(int, options.seeds.split(",")):
            if (n, name, seed) in done:
                continue
            rows.append(measured(name, n, seed))
            shown = {k: v for k, v in rows[-1].items() if k != "reason"}
            _measure.report("shared_updates", [shown], None)
            if options.out is not None:
                _measure.write("shared_updates", rows, options.out)
    if options.picture:
        picture(rows, pathlib.Path(options.picture))


if __name__ == "__main__":
    main()
