"""What an accelerator computes, beside the processor of the same machine.

    python -m benchmarks.bench_accelerator --out=results/benchmarks/accelerator.json

Every case is computed on JAX's default device and on the processor, from the same
arrays and keys. `difference`: largest absolute one over the largest value.
`times_faster`: of medians of calls after the first. Without an accelerator both sides
are the processor, and the differences 0. `--shrink=8` is a run to see that all is well.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from ntk_privacy import curvature, kip, rkip
from ntk_privacy.distillation import (
    distribution_matching,
    gradient_matching,
    robust_mean,
)
from ntk_privacy.evasion import ThreatModel, apgd, fab, mim, pgd, square
from ntk_privacy.kernels import empirical, infinite, infinite_conv, structured
from ntk_privacy.models import MLP, ConvNet
from ntk_privacy.reconstruction import algebraic, closed_units, kkt
from ntk_privacy.training import linearized

KEY = jax.random.key(0)
PIXELS, COLOURS = (28, 28, 1), (32, 32, 3)


def _images(n: int, shape: tuple[int, ...], seed: int) -> jax.Array:
    """Noise, as sparse as digits and of their norm."""
    noise = jax.random.normal(jax.random.key(seed), (n, *shape))
    return 0.6 * jax.nn.relu(noise - 0.5) - 0.1


def _signs(n: int) -> jax.Array:
    return jnp.where(jnp.arange(n) < n // 2, -1.0, 1.0)[:, None]


def _losses(model: Any) -> Callable[..., jax.Array]:
    def losses(params, x, classes):
        logits = model.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes)

    return losses


def kernels(shrink: int) -> dict[str, Callable[[], Any]]:
    """Kernels of infinite and finite networks."""
    x, z = _images(1000 // shrink, PIXELS, 1), _images(200 // shrink, PIXELS, 2)
    u = _images(64 // shrink, COLOURS, 3)
    fc, conv = infinite.mlp(2), infinite_conv.convnet(3)
    pooled = infinite_conv.convnet(2, head="global_pool")
    mlp, net = MLP((1024 // shrink,) * 2), ConvNet(10, 64 // shrink)
    of_mlp, of_net = mlp.init_params(KEY, PIXELS), net.init_params(KEY, COLOURS)
    few = u[: max(2, 16 // shrink)]
    return {
        "infinite FC kernel": lambda: fc(x, z),
        "its gradient": lambda: jax.grad(lambda a: fc(a, z).sum())(z + 0.01),
        "infinite Conv3 kernel": lambda: conv(u),
        "infinite Conv2 kernel, pooled": lambda: pooled(few[:4]),
        "empirical NTK, MLP": lambda: structured.ntk(mlp, of_mlp, z),
        "empirical NTK, ConvNet": lambda: empirical.ntk(net.apply_fn, of_net, few),
    }


def attacks_on_weights(shrink: int) -> dict[str, Callable[[], Any]]:
    """Linearized training, decoding and the search; closed units of a gradient."""
    model, x = MLP((1024 // shrink,) * 2), _images(20, PIXELS, 4)
    params_0, y = model.init_params(KEY, PIXELS), _signs(20)

    def trained():
        kernel = structured.ntk(model, params_0, x, trace_outputs=False)
        spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
        flow = linearized.gradient_flow(linearized.time_at_loss(spectrum, 1e-10))
        duals = linearized.duals(spectrum, flow)
        return linearized.params_at(model.apply_fn, params_0, x, duals)

    params_t = trained()
    sent = jax.grad(lambda p: jnp.mean((model.apply_fn(p, x) - y) ** 2))(params_0)
    read = {"key": KEY, "image_shape": PIXELS}

    def searched():
        short = kkt.Settings(num_steps=100)
        return kkt.reconstruct(
            model, params_0, params_t, num_images=40, bounds=(-0.1, 2.0),
            settings=short, **read,
        ).images  # fmt: skip

    def in_order(images):
        flat = np.asarray(images).reshape(len(images), -1)
        return flat[np.argsort(flat @ np.linspace(1.0, 2.0, flat.shape[1]))]

    return {
        "linearized training": trained,
        "100 steps of the search": searched,
        "exact decoding": lambda: in_order(
            algebraic.reconstruct(params_0, params_t, **read).images
        ),
        "closed units of a gradient": lambda: in_order(
            closed_units.reconstruct_gradient(params_0, sent, **read).images
        ),
    }


def distillation(shrink: int) -> dict[str, Callable[[], Any]]:
    """A few steps of each, all on one set."""
    n = 1000 // shrink
    x, model = _images(n, COLOURS, 5), ConvNet(10, 64 // shrink)
    classes = jnp.arange(n, dtype=jnp.int32) % 10
    rows = jnp.eye(10)[classes] - 0.1
    common = {"key": KEY, "num_steps": 10}
    kernel = {"kernel_fn": infinite.mlp(2), "images_per_class": 2, **common}
    network = {"model": model, "images_per_class": 5, "batch_size": n // 20, **common}
    sets = {
        "10 steps of KIP": (kip, rows, kernel),
        "10 steps of RKIP": (rkip, rows, kernel),
        "10 steps of DM": (distribution_matching, classes, network),
        "10 steps of RDM-DC": (
            distribution_matching,
            classes,
            {**network, "mean_fn": robust_mean.calibrated(rate=0.1)},
        ),
        "1 step of DC": (
            gradient_matching,
            classes,
            {**network, "num_steps": 1, "outer_steps": 2, "inner_epochs": 1},
        ),
    }

    def images(module, target, options):
        return module.distill(x, target, **options).images

    return {
        name: functools.partial(images, *arguments) for name, arguments in sets.items()
    }


def robustness(shrink: int) -> dict[str, Callable[[], Any]]:
    """Attacks on a network of random weights, and the curvature of its loss."""
    n, model = max(4, 100 // shrink), ConvNet(10, 32)
    params = model.init_params(KEY, COLOURS)
    x = jax.random.uniform(jax.random.key(6), (n, *COLOURS))
    logits_fn = jax.tree_util.Partial(model.apply_fn, params)
    y = jnp.asarray(logits_fn(x).argmax(1), jnp.int32)
    bound = {"key": KEY, "threat_model": ThreatModel("linf", 2 / 255)}
    penalty = curvature.penalty(_losses(model))

    def left(attack, **options):
        # How many it breaks, not where it goes: a step's sign amplifies rounding.
        return attack(logits_fn, x, y, **bound, **options).success.mean()

    return {
        "PGD, 20 steps": lambda: left(pgd.attack, num_steps=20),
        "MIM, 10 steps": lambda: left(mim.attack, num_steps=10),
        "APGD, 20 steps": lambda: left(apgd.attack, num_steps=20),
        "FAB, 20 steps": lambda: left(fab.attack, num_steps=20, num_targets=4),
        "Square, 200 queries": lambda: left(square.attack, num_queries=200),
        "curvature penalty": lambda: penalty(params, x, y),
        "its gradient": lambda: jax.grad(lambda p: penalty(p, x, y).sum())(params),
    }


def _timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    took = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(function())
        took.append(time.perf_counter() - start)
    return out, took[0], float(np.median(took[1:]))


def compared(name: str, make: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Computes on both devices; the arrays are made on each from the same keys."""
    row: dict[str, Any] = {"case": name}
    outs, seconds = {}, {}
    for side, device in (
        ("device", jax.devices()[0]),
        ("processor", jax.local_devices(backend="cpu")[0]),
    ):
        with jax.default_device(device):
            found, row[f"{side}_first_s"], seconds[side] = _timed(make(), repeats)
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]
        outs[side] = np.concatenate([leaf.ravel() for leaf in leaves])
        row[f"{side}_ms"] = 1e3 * seconds[side]
    row["times_faster"] = seconds["processor"] / seconds["device"]
    if outs["device"].shape == outs["processor"].shape:
        gap = np.abs(outs["device"] - outs["processor"]).max()
        row["difference"] = float(gap / max(np.abs(outs["processor"]).max(), 1e-30))
    else:
        row["sizes"] = [len(out) for out in outs.values()]
    return row


def main() -> None:
    options = _measure.arguments(repeats=5, shrink=1, only="")
    every = (kernels, attacks_on_weights, distillation, robustness)
    groups = {group.__name__: group for group in every}
    rows = []
    for kind in _measure.chosen(options.only or ",".join(groups), groups):
        group = groups[kind]
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            names = list(group(options.shrink))
        for name in names:

            def make(group=group, name=name):
                return group(options.shrink)[name]

            try:
                row = compared(f"{group.__name__}: {name}", make, options.repeats)
            except Exception as error:  # told, and the others go on
                row = {"case": name, "failed": " ".join(str(error).split())[:300]}
            rows.append(row)
            _measure.report("accelerator", [row], None)
            if options.out is not None:
                _measure.write("accelerator", rows, options.out)
    if any("failed" in row or "sizes" in row for row in rows):
        raise SystemExit("Some cases failed, or returned results of two sizes.")


if __name__ == "__main__":
    main()
