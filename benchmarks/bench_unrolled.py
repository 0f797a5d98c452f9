"""Unrolled training: how many images come back of networks that were trained by it.

    python -m benchmarks.bench_unrolled --rows=momentum --seeds=0 \
        --out=results/benchmarks/unrolled.json

Sixteen embedded digits, odd against even, two hidden layers of width 256, squares, all
images at every step, 500 steps; labels, optimizer and number of steps are told.
`plain` is the same search without smoothed ReLUs. Recovered: a PSNR of at least 25 dB
of the candidate that is nearest; `left`: what a training on the candidates leaves of
the squared change of the weights. Seconds with compilation.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from ntk_privacy import data
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import unrolled

_N, _WIDTH, _STEPS = 16, 256, 500
_RECOVERED = 25.0  # dB

ROWS = {
    "momentum": optax.sgd(0.02, momentum=0.9),
    "adamw": optax.adamw(1e-3, weight_decay=1e-4, eps_root=1e-14),
}


def attempt(name: str, seed: int, steps: int, smoothed: bool) -> dict[str, Any]:
    """Trains, searches, and compares with the truth."""
    digits = data.load("digits", num_train=_N, key=jax.random.key(seed))
    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
    model = MLP((_WIDTH, _WIDTH))
    before = model.init_params(jax.random.key(1000 + seed), x.shape[1:])
    training = unrolled.Training(optimizer=ROWS[name], num_steps=_STEPS)
    after = unrolled.simulate(model.apply_fn, training, before, x, y)
    settings = unrolled.Settings(num_steps=steps)
    if not smoothed:  # as many steps in one stage
        whole = steps * len(settings.sharpnesses)
        settings = unrolled.Settings(sharpnesses=(1.0,), num_steps=whole)
    start = time.perf_counter()
    found = unrolled.reconstruct(
        model if smoothed else model.apply_fn, before, after,
        training=training, labels=y, key=jax.random.key(seed),
        image_shape=x.shape[1:], bounds=digits.bounds, settings=settings,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    squared = ((np.asarray(x)[:, None] - found.images[None]) ** 2).mean((2, 3, 4))
    psnr = -10 * np.log10(np.maximum(squared.min(1), 1e-15))
    return {
        "case": name if smoothed else f"{name}, plain",
        "seed": seed,
        "N": _N,
        "recovered": int(np.sum(psnr >= _RECOVERED)),
        "median_psnr": float(np.median(psnr)),
        "least_psnr": float(psnr.min()),
        "left": found.replay_misses[0] ** 2,
        "word": found.verdict.word,
        "steps": len(found.losses),
        "s_with_compile": seconds,
        "peak_GB_of_the_process": _measure.peak_memory(),
    }


def main() -> None:
    """Prints and writes a row for each training and search."""
    options = _measure.arguments(rows="momentum,adamw", seeds="0", steps=120, plain=1)
    rows = [] if options.out is None else _measure.read(options.out)
    for name in _measure.chosen(options.rows, ROWS):
        for seed in map(int, options.seeds.split(",")):
            for smoothed in (True, False)[: 1 + bool(options.plain)]:
                rows.append(attempt(name, seed, options.steps, smoothed))
                _measure.report("unrolled", rows[-1:], None)
                if options.out is not None:
                    _measure.write("unrolled", rows, options.out)


if __name__ == "__main__":
    main()
