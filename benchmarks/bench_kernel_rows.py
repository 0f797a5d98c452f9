"""Time per row of a streamed kernel, from 1,000 to 17,000 rows, and its memory.

    python -m benchmarks.bench_kernel_rows --output=results/benchmarks/kernel_rows.json

Every kernel has 1,000 columns and goes to a temporary .npy in blocks of 500 images.
Time is counted from the end of the first block, so that compiling stands apart.
`peak_GB` is that of the process so far, images included; sizes run upwards.
`--shrink=50` divides all of them, to see that everything runs.
"""

import pathlib
import tempfile
import time

import jax
import numpy as np

from benchmarks import _measure
from ntk_privacy.kernels import blockwise, empirical, infinite, infinite_conv
from ntk_privacy.models import MLP

BLOCK = 500


def cases():
    """(name, kernel, image shape, rows, columns)."""
    model = MLP((1024, 1024), 1)
    params = model.init_params(jax.random.key(0), (28, 28, 1))

    def ntk(x1, x2):
        return empirical.ntk(model.apply_fn, params, x1, x2, memory_budget=64 * 2**20)

    rows = (1000, 4000, 17000)
    return {
        "infinite_mlp": (infinite.mlp(2), (28, 28, 1), rows, 1000),
        "empirical_mlp1024": (ntk, (28, 28, 1), rows, 1000),
        "infinite_convnet": (infinite_conv.convnet(2), (8, 8, 3), rows, 1000),
    }


def main() -> None:
    options = _measure.arguments(case="all", shrink=1)
    rows = []
    for name, (kernel_fn, shape, counts, columns) in cases().items():
        if options.case not in ("all", name):
            continue
        rng = np.random.default_rng(0)
        counts = [n // options.shrink for n in counts]
        columns = columns // options.shrink
        block = BLOCK // options.shrink
        x = rng.normal(size=(max(counts), *shape)).astype(np.float32)
        other = rng.normal(size=(columns, *shape)).astype(np.float32)
        for n in counts:
            ends = []
            with tempfile.TemporaryDirectory() as folder:
                blockwise.stream(
                    kernel_fn,
                    x[:n],
                    other,
                    pathlib.Path(folder) / "kernel.npy",
                    block_size=block,
                    callback=lambda *_, ends=ends: ends.append(time.perf_counter()),
                )
            # Rows of all columns; the first block is no part of the time.
            done = n * (len(ends) - 1) / len(ends)
            row = {
                "case": name,
                "rows": n,
                "columns": columns,
                "us_per_row": 1e6 * (ends[-1] - ends[0]) / done,
                "peak_GB": _measure.peak_memory(),
            }
            rows.append(row)
            _measure.report("kernel_rows", [row], None)
    if options.out is not None:
        _measure.report("kernel_rows", rows, options.out)


if __name__ == "__main__":
    main()
