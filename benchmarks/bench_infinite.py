"""Infinite-width kernels: ours against neural-tangents, in one process.

    python -m benchmarks.bench_infinite --output=results/benchmarks/infinite.json

Sides take turns, and a ratio is the median over rounds; compile time stands apart;
`temp_MiB` is what the compiled program needs beyond its inputs and outputs.
`--shrink=50` divides the images, to see that everything runs.
"""

import time

import jax
import numpy as np

from benchmarks import _measure
from ntk_privacy.kernels import infinite, infinite_conv, neural_tangents


def images(n, shape, seed):
    return jax.random.normal(jax.random.key(seed), (n, *shape))


def cases(stax, shrink):
    """(name, ours, theirs, arguments, rounds)."""
    dense, relu = stax.Dense(1), stax.Relu()
    conv = [stax.Conv(1, (3, 3), padding="SAME"), relu] * 3
    fc = stax.serial(dense, relu, dense, relu, dense)[2]
    flat = stax.serial(*conv, stax.Flatten(), dense)[2]
    pooled = stax.serial(*conv, stax.GlobalAvgPool(), dense)[2]

    def value(kernel_fn):
        return lambda x1, x2: kernel_fn(x1, x2, "ntk")

    def gradient(kernel_fn):
        return jax.grad(lambda x1, x2: kernel_fn(x1, x2).sum())

    ours, theirs = infinite.mlp(2), value(fc)
    flatten, pool = (
        infinite_conv.convnet(3, head=head) for head in ("flatten", "global_pool")
    )
    x, y = images(2000 // shrink, (784,), 0), images(500 // shrink, (784,), 1)
    side = 32 if shrink == 1 else 8
    u, v = (images(100 // shrink, (side, side, 3), seed) for seed in (2, 3))
    g = gradient
    return [
        ("FC, 2 hidden, (2000, 784) x (500, 784)", ours, theirs, (x, y), 21),
        ("FC, gradient in x1, (500, 784)^2", g(ours), g(theirs), (x[: len(y)], y), 21),
        ("Conv3 + flatten, (100, 32, 32, 3)^2", flatten, value(flat), (u, v), 5),
        ("Conv3 + global pooling, 4 x 4", pool, value(pooled), (u[:4], v[:4]), 3),
    ]


def main() -> None:
    options = _measure.arguments(repeats=0, shrink=1)
    # As ours are, whatever else an accelerator would multiply in.
    jax.config.update("jax_default_matmul_precision", "highest")
    nt = neural_tangents.load()
    rows = []
    for name, ours, theirs, arguments, rounds in cases(nt.stax, options.shrink):
        compiled, row = {}, {"case": name}
        for side, fn in (("ours", ours), ("nt", theirs)):
            start = time.perf_counter()
            compiled[side] = jax.jit(fn).lower(*arguments).compile()
            row[f"{side}_compile_s"] = time.perf_counter() - start
            memory = compiled[side].memory_analysis()
            row[f"{side}_temp_MiB"] = memory.temp_size_in_bytes / 2**20
        outs = {side: np.asarray(fn(*arguments)) for side, fn in compiled.items()}
        times = {side: [] for side in compiled}
        for _ in range(options.repeats or rounds):
            for side, fn in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(fn(*arguments))
                times[side].append(time.perf_counter() - start)
        for side, seconds in times.items():
            row[f"{side}_ms"] = 1e3 * float(np.median(seconds))
        row["times_faster"] = _measure.median_ratio(times["nt"], times["ours"])
        error = np.abs(outs["ours"] - outs["nt"]).max()
        row["relative_difference"] = float(error / np.abs(outs["nt"]).max())
        rows.append(row)
    _measure.report("infinite", rows, options.out)


if __name__ == "__main__":
    main()
