"""A distillation step, 500 images to 20: our kernel against one of neural-tangents.

    python -m benchmarks.bench_distill --out=results/benchmarks/distill.json

All sides take the same Adam steps on the same loss, constants precomputed, in one
jitted scan: ours; the same with a kernel_fn of neural-tangents; and the loss as it is
published, K_TS by that kernel_fn. `minutes` is what 50,000 steps take.
"""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg

from benchmarks import _measure
from ntk_privacy import kip, rkip
from ntk_privacy.distillation import search
from ntk_privacy.kernels import infinite, neural_tangents


def theirs():
    """Two hidden ReLU layers, no bias, NTK parametrisation, from neural-tangents."""
    nt = neural_tangents.load()
    dense = functools.partial(nt.stax.Dense, W_std=1.0, b_std=None)
    relu = nt.stax.Relu
    layers = [nt.stax.Flatten(), dense(1), relu(), dense(1), relu(), dense(1)]
    *_, kernel_fn = nt.stax.serial(*layers)
    return neural_tangents.as_kernel_fn(kernel_fn)


def _duals(k, y):
    ridge = 1e-5 * jnp.trace(k) / len(k) * jnp.eye(len(k))
    return jax.scipy.linalg.solve(k + ridge, y, assume_a="pos")


def published(method, kernel_fn):
    """The loss as in the papers, in what a user of neural-tangents would write."""

    def rkip_loss(images, labels, rows, energy):
        x, target = rows
        k_ss, k_ts = kernel_fn(images, None), kernel_fn(x, images)
        a = _duals(k_ss, labels)
        cross = jnp.sum(target * (k_ts @ a))
        return 0.5 * (jnp.sum(a * (k_ss @ a)) - 2 * cross + energy)

    def kip_loss(images, labels, rows, _):
        x, y = rows
        a = _duals(kernel_fn(images, None), labels)
        return 0.5 * jnp.mean((y - kernel_fn(x, images) @ a) ** 2)

    return rkip_loss if method is rkip else kip_loss


def main() -> None:
    options = _measure.arguments(repeats=9, steps=500)
    # As ours are, whatever else an accelerator would multiply in.
    jax.config.update("jax_default_matmul_precision", "highest")
    # Non-negative and of the norm of a digit: the loops see real magnitudes.
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (500, 28, 28, 1)) - 0.5)
    x = 0.6 * x - 0.1
    y = jnp.where(jnp.arange(500) < 250, -1.0, 1.0)[:, None]
    key = jax.random.key(0)
    ours, other = infinite.mlp(depth=2), theirs()
    target = rkip.target_duals(x, y, kernel_fn=ours, rank=500)
    state = search.init(x, y, key=key)
    rows = []
    for method in (rkip, kip):
        constants = target.energy if method is rkip else ()
        targets = (x, target.duals if method is rkip else y)

        def side(objective, targets=targets, constants=constants):
            def run():
                return search.minimize(
                    objective, targets, constants, key=key, state=state,
                    num_steps=options.steps, chunk=options.steps,
                ).images  # fmt: skip

            return run

        sides = {
            "ours": side(method._Objective(ours, 1e-5)),
            "neural-tangents in our loss": side(method._Objective(other, 1e-5)),
            "neural-tangents as published": side(published(method, other)),
        }
        times = _measure.interleaved(sides, repeats=options.repeats)
        for name, t in times.items():
            ms = 1e3 * t["run"] / options.steps
            rows.append(
                {
                    "case": f"{method.__name__.split('.')[-1]} step: {name}",
                    "ms": ms,
                    "compile_s": t["compile"],
                    "minutes": 50_000 * ms / 6e4,
                    "speedup": t["run"] / times["ours"]["run"],
                }
            )
    _measure.report("distill", rows, options.out)


if __name__ == "__main__":
    main()
