"""How near kernels and attacks come to what their matrix products alone would take.

    python -m benchmarks.bench_limits --out=results/benchmarks/limits.json

Every product and convolution of a program is found in its trace and run alone, in a
program of its own, on random numbers of the same shapes, types and precision; a copy
reads what the program reads and writes what it writes. In turn, in one run; medians.

`of_products`: seconds of all products, one after the other, over those of the program;
`of_copy`: those of the copy over those of the program; `of_limit`: the larger of both,
since no program that computes these products is faster than either. `gflops`: achieved
by the program, and `plain_gflops` by the products alone.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from benchmarks import _measure, bench_empirical, bench_infinite, bench_kkt
from ntk_privacy.kernels import infinite
from ntk_privacy.reconstruction import kkt

_PRODUCTS = ("dot_general", "conv_general_dilated")


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yields every product of a trace and how often it is run; of branches the first.

    A loop of unknown length counts once.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PRODUCTS:
            yield equation, times
            continue
        inner = list(core.jaxprs_in_params(equation.params))
        length = equation.params.get("length", 1)
        if equation.primitive.name == "cond":
            inner = inner[:1]
        for each in inner:
            yield from products(each, times * length)


def flops(equation: Any) -> int:
    """Returns the multiplications and additions of one product."""
    left, right = (each.aval for each in equation.invars)
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(left.shape[axis] for axis in contracted)
    out = equation.params["dimension_numbers"].rhs_spec[0]
    return 2 * size * math.prod(right.shape) // right.shape[out]


def _random(aval: Any, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), aval.shape, aval.dtype)


def alone(equation: Any) -> Callable[[], jax.Array]:
    """Returns a call of one product by itself, compiled."""
    inputs = [_random(each.aval, k) for k, each in enumerate(equation.invars)]
    params = equation.params
    run = jax.jit(lambda *args: equation.primitive.bind(*args, **params))
    return functools.partial(run, *inputs)


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def copied(num_bytes: int) -> Callable[[], jax.Array]:
    """Returns a call that reads and writes so many bytes together."""
    values = jnp.zeros(max(num_bytes // 8, 1), jnp.float32)
    return functools.partial(jax.jit(lambda x: x + 1), values)


def measure(name: str, fn, arguments, repeats: int) -> dict[str, Any]:
    """Returns the row of one program.

    Args:
      name: of the case.
      fn: pure; it is compiled here.
      arguments: of it, arrays.
      repeats: rounds.
    """
    found = collections.Counter()
    kept: dict[Any, Any] = {}
    for equation, times in products(jax.make_jaxpr(fn)(*arguments).jaxpr):
        avals = tuple(str(each.aval) for each in equation.invars)
        key = equation.primitive.name, avals, str(equation.params)
        found[key] += times
        kept[key] = equation
    run = functools.partial(jax.jit(fn), *arguments)
    moved = _size(arguments) + _size(jax.eval_shape(fn, *arguments))
    sides = {"program": run, "copy": copied(moved)}
    sides |= {key: alone(equation) for key, equation in kept.items()}
    seconds = _measure.interleaved(sides, repeats=repeats)
    taken = {side: value["run"] for side, value in seconds.items()}
    plain = sum(times * taken[key] for key, times in found.items())
    work = sum(times * flops(kept[key]) for key, times in found.items())
    shares = plain / taken["program"], taken["copy"] / taken["program"]
    return {
        "case": name,
        "ms": 1e3 * taken["program"],
        "products_ms": 1e3 * plain,
        "copy_ms": 1e3 * taken["copy"],
        "gflops": work / taken["program"] / 1e9,
        "plain_gflops": work / max(plain, 1e-12) / 1e9,
        "of_products": shares[0],
        "of_copy": shares[1],
        "of_limit": max(shares),
    }


def _empirical(name: str, shrink: int):
    apply_fn, arguments, _ = bench_empirical.make(shrink, name)

    def fn(x1, x2, params):
        return bench_empirical.empirical.ntk(apply_fn, params, x1, x2)

    return fn, arguments


def _kkt(width: int):
    model, params_0, params_t, _ = bench_kkt.trained(width, 20)
    attack = bench_kkt.prepared(model, params_0, params_t, kkt.FAST)
    first = jnp.asarray(0)
    return lambda state, problem: attack.step(state, first, problem), (
        attack.state,
        attack.problem,
    )


def cases(shrink: int) -> dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]]:
    """Programs and their arguments, made when they are asked for."""
    x, y = (
        bench_infinite.images(max(n // shrink, 2), (784,), seed)
        for n, seed in ((2000, 0), (500, 1))
    )
    fc = infinite.mlp(2)
    gradient = jax.grad(lambda x1, x2: fc(x1, x2).sum())
    return {
        "empirical, MLP 1024-1024, 200 x 200": lambda: _empirical("mlp1024", shrink),
        "empirical, MLP 4096-4096, 40 x 40": lambda: _empirical("mlp4096", shrink),
        "empirical, ConvNet 64, 20 x 20": lambda: _empirical("convnet64", shrink),
        "infinite FC, 2 hidden, 2000 x 500": lambda: (fc, (x, y)),
        "its gradient in x1, 500 x 500": lambda: (gradient, (x[: len(y)], y)),
        "KKT step, width 1024, 40 candidates": lambda: _kkt(max(1024 // shrink, 32)),
    }


def main() -> None:
    """Prints and writes a row for each program."""
    options = _measure.arguments(repeats=15, shrink=1, only="")
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = []
    for name, make in cases(options.shrink).items():
        if options.only in name:
            rows.append(measure(name, *make(), options.repeats))
            _measure.report("limits", rows[-1:], None)
    if not rows:
        raise SystemExit(f"only={options.only!r} is in none of the cases.")
    assert all(np.isfinite(row["ms"]) for row in rows)
    _measure.report("limits", rows, options.out)


if __name__ == "__main__":
    main()
