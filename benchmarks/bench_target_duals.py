"""The duals of many targets by conjugate gradients: seconds, products, peak memory.

    python -m benchmarks.bench_target_duals --out=results/benchmarks/target_duals.json

MNIST, odd against even, infinite-width kernel of two hidden layers, float32, the
defaults of `rkip.target_duals`. The solve has a process of its own, so that `peak_GB`
is its own too, images included. Compiling is part of `seconds`. `--dense=1` compares
with the duals of the whole kernel: 2,000 images, not 17,000.
"""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from benchmarks import _measure
from ntk_privacy import data, rkip
from ntk_privacy.kernels import infinite, regression


def solve(options) -> dict[str, float]:
    """Solves in this process and returns a row of the report."""
    images = data.load(
        options.dataset,
        num_train=options.num_images,
        key=jax.random.key(0),
        data_dir=options.data_dir or None,
    )
    x, y = jnp.asarray(images.x_train), jnp.asarray(images.y_train)
    kernel_fn, seen = infinite.mlp(depth=2), []

    def callback(step, state, metrics):
        del step
        seen.append((int(state.steps), float(metrics["residual"][-1])))
        print(f"{seen[-1][0]} products, residual {seen[-1][1]:.2e}", file=sys.stderr)

    before, start = _measure.peak_memory(), time.perf_counter()
    target = jax.block_until_ready(
        rkip.target_duals(
            x, y, kernel_fn=kernel_fn, rank=options.rank, callback=callback
        )
    )
    row = {
        "case": f"{options.dataset} {len(x)}",
        "num_images": len(x),
        "rank": options.rank,
        "seconds": time.perf_counter() - start,
        "steps": seen[-1][0],
        "residual": seen[-1][1],
        "energy": float(target.energy),
        "peak_GB_before": before,
        "peak_GB": _measure.peak_memory(),
        "full_kernel_GB": 4e-9 * len(x) ** 2,
    }
    if options.dense:
        duals = regression.duals(kernel_fn, x, y)
        error = jnp.linalg.norm(target.duals - duals) / jnp.linalg.norm(duals)
        row["relative_to_dense"] = float(error)
    return row


def main() -> None:
    options = _measure.arguments(
        num_images=17_000, dataset="mnist", data_dir="", rank=1000, dense=0, alone=0
    )
    if options.alone:
        print(json.dumps(solve(options)))
        return
    names = ("num_images", "dataset", "data_dir", "rank", "dense")
    command = [sys.executable, "-m", "benchmarks.bench_target_duals", "--alone=1"]
    command += [f"--{name}={getattr(options, name)}" for name in names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    _measure.report("target_duals", [row], options.out)


if __name__ == "__main__":
    main()
