"""A step of squeezing, plain, regularised and adversarial: seconds and peak memory.

    python -m benchmarks.bench_curvature --out=results/benchmarks/curvature.json
    python -m benchmarks.bench_curvature --share=0.25   # plain, and sides that see that

Each side is `steps` steps of `training.squeeze.train` in one compiled scan, in its own
process, so that the peak of memory is its own; what a process has before its first step
is told beside it. `cpu` is processor time per step, which other processes disturb less
than `run`, the time on the clock: `taskset -c 0` compares on one core. A part of
the batch: what of it the penalty sees, or PGD attacks; all of it in the papers. What
stands side by side sees the same part.
"""

import functools
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _measure
from ntk_privacy import curvature
from ntk_privacy.models import ResNet18
from ntk_privacy.training import adversarial, squeeze

SIDES = {
    "plain": None,
    "curvature": ("curvature", 1.0),
    "curvature, half of the batch": ("curvature", 0.5),
    "curvature, a quarter of the batch": ("curvature", 0.25),
    "loss_difference": ("loss_difference", 1.0),
    "loss_difference, half of the batch": ("loss_difference", 0.5),
    "loss_difference, a quarter of the batch": ("loss_difference", 0.25),
    "gradient": ("gradient", 1.0),
    "PGD-10": ("PGD-10", 1.0),
    "PGD-10, a quarter of the batch": ("PGD-10", 0.25),
}


def _loss(side):
    kind = SIDES[side]
    if kind is None:
        return squeeze.cross_entropy
    mode, share = kind
    if mode == "PGD-10":
        return adversarial.PGD((0.5,) * 3, (0.25,) * 3, num_steps=10, share=share)
    transform = functools.partial(curvature.regularize, weight=1.0, mode=mode)
    return squeeze.Regularized(transform, share)


def _side(options) -> None:
    """Times one side in this process."""
    shape = (options.batch * options.steps, options.size, options.size, 3)
    x = jax.random.normal(jax.random.key(0), shape)
    labels = jnp.arange(len(x), dtype=jnp.int32) % 10
    run = functools.partial(
        squeeze.train, x, labels, model=ResNet18(10, options.width),
        key=jax.random.key(1), num_epochs=1, batch_size=options.batch,
        learning_rate=1e-4, loss=_loss(options.side), chunk=options.steps,
    )  # fmt: skip
    state = squeeze.init(x, model=ResNet18(10, options.width), key=jax.random.key(1))
    before, times = _measure.peak_memory(), []
    for _ in range(1 + options.repeats):
        start, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(state=state).params)
        times.append([time.perf_counter() - start, time.process_time() - cpu])
    print(json.dumps([times, before, _measure.peak_memory()]))


def main() -> None:
    options = _measure.arguments(
        repeats=3, width=16, batch=64, size=32, steps=2, side="", share=0.0
    )
    if options.side:
        _side(options)
        return
    names = ("width", "batch", "size", "steps", "repeats")
    flags = [f"--{name}={getattr(options, name)}" for name in names]
    rows = []
    for side, kind in SIDES.items():
        if options.share and kind is not None and kind[1] != options.share:
            continue
        program = [sys.executable, "-m", "benchmarks.bench_curvature"]
        done = subprocess.run(
            [*program, *flags, f"--side={side}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        times, before, peak = json.loads(done.stdout)
        run, cpu = np.median(times[1:], axis=0) / options.steps
        plain = rows[0]["cpu"] if rows else cpu
        rows.append(
            {
                "side": side,
                "width": options.width,
                "batch": options.batch,
                "run": float(run),
                "cpu": float(cpu),
                "cpu_over_plain": float(cpu / plain),
                "compile": times[0][1] - float(cpu) * options.steps,
                "peak_memory_gb": peak,
                "before_gb": before,
            }
        )
        _measure.report("curvature", rows[-1:], None)
    _measure.report("curvature", rows, options.out)


if __name__ == "__main__":
    main()
