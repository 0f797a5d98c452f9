"""A step of the KKT attack against the parameter-sized residual; memory; training.

    python -m benchmarks.bench_kkt --out=results/benchmarks/kkt.json

Both sides take Adam steps in one jitted scan on MNIST-sized images with 40 candidates.
The slow side is the published formula: the squared norm of a residual as large as the
parameters, differentiated through the network, over all pixels. The default leaves the
first layer's equations out: it is compared with the residual of the same equations too.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from benchmarks import _measure
from ntk_privacy import _loop
from ntk_privacy.kernels import structured
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import kkt
from ntk_privacy.training import linearized

SHAPE = (28, 28, 1)


def trained(width: int, num_images: int):
    """A linearized network trained on digits-like noise; returns seconds too."""
    model = MLP((width, width))
    params_0 = model.init_params(jax.random.key(0), SHAPE)
    # Non-negative, sparse and of the norm of a digit: the loops see real magnitudes.
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (num_images, *SHAPE)) - 0.5)
    x = 0.6 * x - 0.1
    y = jnp.where(jnp.arange(num_images) < num_images // 2, -1.0, 1.0)[:, None]

    def train():
        kernel = structured.ntk(model, params_0, x, trace_outputs=False)
        spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
        time_ = linearized.time_at_loss(spectrum, 1e-10)
        duals = linearized.duals(spectrum, linearized.gradient_flow(time_))
        return linearized.params_at(model.apply_fn, params_0, x, duals)

    start = time.perf_counter()
    params_t = jax.block_until_ready(train())
    return model, params_0, params_t, time.perf_counter() - start


def prepared(model, params_0, params_t, settings) -> kkt.Attack:
    """The search of 40 candidates, before its first step."""
    return kkt.prepare(
        model,
        params_0,
        params_t,
        key=jax.random.key(2),
        image_shape=SHAPE,
        num_images=40,
        bounds=(-0.1, 0.9),
        points="init",
        settings=settings,
    )


def stepper(model, params_0, params_t, settings, steps):
    """Runs `steps` Adam steps in one jitted scan."""
    attack = prepared(model, params_0, params_t, settings)
    return lambda: _loop.run(
        attack.step, attack.state, attack.problem, num_steps=steps, chunk=steps
    )


def main() -> None:
    options = _measure.arguments(repeats=9, steps=20)
    rows = []
    model, params_0, params_t, _ = trained(1024, 20)
    explicit = dataclasses.replace(kkt.PAPER, num_steps=2000)
    settings = {
        "default": kkt.FAST,
        "default, as a parameter-sized residual": dataclasses.replace(
            explicit, first_layer=False
        ),
        "all layers": dataclasses.replace(kkt.FAST, first_layer=True),
        "all layers, all pixels, Adam duals": dataclasses.replace(
            kkt.FAST, first_layer=True, project=False, duals="adam"
        ),
        "published, parameter-sized residual": explicit,
    }
    sides = {
        name: stepper(model, params_0, params_t, chosen, options.steps)
        for name, chosen in settings.items()
    }
    times = _measure.interleaved(sides, repeats=options.repeats)
    same, published = (times[n]["run"] for n in sides if "parameter-sized" in n)
    for name, t in times.items():
        row = {
            "case": f"step, width 1024, 40 candidates: {name}",
            "ms": 1e3 * t["run"] / options.steps,
            "compile_s": t["compile"],
            "times_faster_than_published": published / t["run"],
        }
        if name == "default":
            row["times_faster_than_same_equations_parameter_sized"] = same / t["run"]
        rows.append(row)
    model, params_0, params_t, first = trained(4096, 20)
    *_, second = trained(4096, 20)
    rows.append(
        {
            "case": "linearized training, 20 images, width 4096",
            "s_with_compile": first,
            "s": second,
        }
    )
    step = stepper(model, params_0, params_t, kkt.FAST, options.steps)
    times = _measure.interleaved({"default": step}, repeats=3)["default"]
    rows.append(
        {
            "case": "step, width 4096, 40 candidates: default",
            "ms": 1e3 * times["run"] / options.steps,
            "compile_s": times["compile"],
            "peak_GB_of_the_process": _measure.peak_memory(),
        }
    )
    _measure.report("kkt", rows, options.out)


if __name__ == "__main__":
    main()
