"""Empirical NTK: ours against the best implementation of neural-tangents.

    python -m benchmarks.bench_empirical --output=results/benchmarks/empirical.json

Every implementation of neural-tangents (vmap_axes=0) is compiled and run once; the
fastest then takes turns with ours, and the ratio is the median over rounds. Compile
time stands apart; `temp_MiB` is what a compiled program needs beyond its inputs and
outputs, `alone_peak_GB` the largest resident size of a process that does nothing but
compile one side and run it. `--case=NAME` runs one case; `--shrink=50` divides widths
and images, to see that everything runs.
"""

import subprocess
import sys
import time

import jax
import numpy as np
from flax import linen as nn

from benchmarks import _measure
from ntk_privacy.kernels import empirical, neural_tangents
from ntk_privacy.models import MLP

LIMIT = 60.0  # seconds to compile and run once; slower ones are out


class ConvNet(nn.Module):
    """Three times 3x3 convolution, ReLU and 2x2 mean, then Dense."""

    width: int = 64
    num_outputs: int = 10

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Conv(self.width, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.num_outputs)(x.reshape(x.shape[0], -1))


def cases(shrink):
    """(module, image shape, images on either side, rounds) by name."""

    def less(n):
        return max(n // shrink, 2)

    mlps = (MLP((less(width),) * 2, 1) for width in (1024, 4096))
    return {
        "mlp1024": (next(mlps), (28, 28, 1), less(200), 15),
        "mlp4096": (next(mlps), (28, 28, 1), less(40), 9),
        "convnet64": (ConvNet(less(64)), (32, 32, 3), less(20), 7),
    }


def make(shrink, name):
    """Returns apply_fn, (x1, x2, params) and rounds of a case."""
    module, shape, n, rounds = cases(shrink)[name]
    x1, x2 = (jax.random.normal(jax.random.key(i), (n, *shape)) for i in (0, 1))
    params = module.init(jax.random.key(2), x1[:1])["params"]
    return (
        lambda p, x: module.apply({"params": p}, x),
        (x1, x2, params),
        rounds,
    )


def our_program(apply_fn, arguments):
    fn = jax.jit(lambda x1, x2, p: empirical.ntk(apply_fn, p, x1, x2))
    return fn.lower(*arguments).compile()


def their_program(nt, apply_fn, arguments, implementation):
    fn = nt.empirical_ntk_fn(
        apply_fn, trace_axes=(-1,), vmap_axes=0, implementation=implementation
    )
    return jax.jit(fn).lower(*arguments).compile()


def run_alone(options) -> None:
    """Compiles and runs one side once, and prints the peak memory of this process."""
    apply_fn, arguments, _ = make(options.shrink, options.case)
    if options.alone == "ours":
        compiled = our_program(apply_fn, arguments)
    else:
        nt = neural_tangents.load()
        implementation = nt.NtkImplementation[options.alone.upper()]
        with neural_tangents.lenient():
            compiled = their_program(nt, apply_fn, arguments, implementation)
    jax.block_until_ready(compiled(*arguments))
    print(_measure.peak_memory())


def peak_alone(options, name, side) -> float:
    """Returns the peak memory in GB of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_empirical", f"--alone={side}"]
    command += [f"--case={name}", f"--shrink={options.shrink}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def best_of_theirs(nt, apply_fn, arguments):
    """Returns the fastest compiled implementation, its name, and a time for each."""
    found, times = {}, {}
    for implementation in (
        nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        nt.NtkImplementation.JACOBIAN_CONTRACTION,
        nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
        nt.NtkImplementation.AUTO,
    ):
        name = implementation.name.lower()
        start = time.perf_counter()
        try:
            compiled = their_program(nt, apply_fn, arguments, implementation)
            jax.block_until_ready(compiled(*arguments))
        except Exception as error:
            times[name] = f"failed: {type(error).__name__}"
            continue
        if time.perf_counter() - start > LIMIT:
            times[name] = f"above {LIMIT:.0f} s"
            continue
        rounds = []
        for _ in range(2):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            rounds.append(time.perf_counter() - begin)
        found[name], times[name] = compiled, min(rounds)
    best = min(found, key=times.__getitem__)
    return found[best], best, times


def main() -> None:
    options = _measure.arguments(repeats=0, case="all", shrink=1, alone="")
    # As ours are, whatever else an accelerator would multiply in.
    jax.config.update("jax_default_matmul_precision", "highest")
    if options.alone:
        run_alone(options)
        return
    nt = neural_tangents.load()
    rows = []
    for name in cases(options.shrink):
        if options.case not in ("all", name):
            continue
        apply_fn, arguments, rounds = make(options.shrink, name)
        x1, x2, params = arguments
        n = len(x1)
        row = {"case": name, "n1": n, "n2": n}
        with neural_tangents.lenient():
            theirs, best, times = best_of_theirs(nt, apply_fn, arguments)
        row["nt_best"] = best
        row |= {f"nt_{k}_s": v for k, v in times.items()}
        row["plan"] = str(empirical.plan(apply_fn, params, x1, x2)).replace("\n", ";")
        start = time.perf_counter()
        ours = our_program(apply_fn, arguments)
        row["ours_compile_s"] = time.perf_counter() - start
        sides = {"ours": ours, "nt": theirs}
        outs = {
            side: np.asarray(fn(*arguments)).squeeze() for side, fn in sides.items()
        }
        timed = {side: [] for side in sides}
        for _ in range(options.repeats or rounds):
            for side, fn in sides.items():
                start = time.perf_counter()
                jax.block_until_ready(fn(*arguments))
                timed[side].append(time.perf_counter() - start)
        for side, fn in sides.items():
            row[f"{side}_ms"] = 1e3 * float(np.median(timed[side]))
            memory = fn.memory_analysis().temp_size_in_bytes
            row[f"{side}_temp_MiB"] = memory / 2**20
        row["times_faster"] = _measure.median_ratio(timed["nt"], timed["ours"])
        error = np.abs(outs["ours"] - outs["nt"]).max()
        row["relative_difference"] = float(error / np.abs(outs["nt"]).max())
        for side, called in (("ours", "ours"), ("nt", best)):
            row[f"{side}_alone_peak_GB"] = peak_alone(options, name, called)
        rows.append(row)
        _measure.report("empirical", [row], None)
    if options.out is not None:
        _measure.report("empirical", rows, options.out)


if __name__ == "__main__":
    main()
