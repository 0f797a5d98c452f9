"""What `experiments.kernel` does: computes, streams, follows through training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._flags import usage
from experiments._groups import Run
from experiments._job import Job
from experiments._program import Asked
from ntk_privacy import data, sharding
from ntk_privacy.data.choice import TaskImages
from ntk_privacy.evaluation import kernel_movement, spectrum
from ntk_privacy.kernels import blockwise, named
from ntk_privacy.reports import kernel_plots
from ntk_privacy.reports.workdir import Workdir
from ntk_privacy.resume import Stage

MAX_SHOWN = 2000
"""Images of which a streamed kernel is drawn and its spectrum taken."""


class Loaded(NamedTuple):
    """Images, and the kernel that is wanted of them."""

    dataset: data.Dataset
    x: jax.Array
    y: jax.Array
    kernel: named.Kernel


def load(asked: Asked[Any]) -> Loaded:
    """Returns images and kernel, before anything is written."""
    dataset, key = asked.group(TaskImages).load(asked.group(Run).seed)
    flags = asked.flat()
    dtype = jnp.dtype(flags["precision"])
    x, y = jnp.asarray(dataset.x_train, dtype), jnp.asarray(dataset.y_train, dtype)
    with usage():
        try:
            problem = named.Problem(x, y.shape[1])
            kernel = asked.method.run(problem, asked.config, key=key)
        except ImportError as error:
            raise ValueError(f"kernel={asked.method.name}: {error}") from error
        if flags["stream"]:
            blockwise.size_within(kernel.fn, x[:1], named.bytes_of(flags["budget"]))
    return Loaded(dataset, x, y, kernel)


def work(job: Job, loaded: Loaded) -> dict[str, Any]:
    """Computes, draws and writes; returns entries of results.json."""
    dataset, x, y, made = loaded
    asked, workdir, flags = job.asked, job.workdir, job.asked.flat()
    # Images of one class stand together in the picture.
    order = np.argsort(dataset.class_train, kind="stable")
    x, y = x[order], y[order]
    arrays = {"labels": y, "classes": dataset.class_train[order]}
    if flags["stream"]:
        budget = named.bytes_of(flags["budget"])
        kernel = _streamed(workdir, made, x, budget, job.stage("kernel"))
    else:
        with job.timer("kernel")():
            kernel = np.asarray(jax.jit(made.fn)(x))
        arrays["kernel"] = kernel
    shown = np.linspace(0, len(x) - 1, min(len(x), MAX_SHOWN)).round().astype(int)
    part = kernel if len(shown) == len(x) else kernel[np.ix_(shown, shown)]
    arrays["eigenvalues"] = spectrum.eigenvalues(part)
    first = "initialisation" if made.network else asked.method.name
    spectra, told = {first: arrays["eigenvalues"]}, {}
    if made.network is not None and flags["train"]:
        moved = kernel_movement.follow(
            made.network,
            x,
            y,
            kernel_0=jnp.asarray(kernel),
            stop_loss=flags["stop_loss"],
            max_steps=flags["max_train_steps"],
            stage=job.stage("train"),
        )
        after = spectrum.eigenvalues(moved.kernel_t)
        spectra[f"after {moved.steps[-1]} steps"] = after
        arrays |= {"kernel_after": moved.kernel_t, "eigenvalues_after": after}
        path = workdir.path("distance.png")
        kernel_plots.distances(moved.steps, moved.distances, moved.losses, path)
        told = kernel_movement.figures(moved)
    few = f" of {len(x)}" * (len(shown) < len(x))
    title = f"{asked.method.name}, {flags['dataset']}, {len(shown)} images{few}"
    kernel_plots.picture(part, workdir.path("kernel.png"), title=title)
    largest = max(float(values[0]) for values in spectra.values())
    kernel_plots.spectrum(
        spectra,
        workdir.path("spectrum.png"),
        title=f"Spectrum: {title}",
        rounding=float(np.finfo(x.dtype).eps) * largest,
    )
    workdir.write_arrays("arrays.npz", **arrays)
    return {
        "kernel": asked.method.name,
        "dataset": flags["dataset"],
        "num_images": len(x),
        "seed": job.seed,
        "spectrum_images": len(shown),
        **spectrum.figures(part, np.asarray(y)[shown]),
        **told,
        "seconds": job.seconds(),
    }


def _streamed(
    workdir: Workdir, made: named.Kernel, x: jax.Array, budget: int, stage: Stage
) -> np.memmap:
    """Writes kernel.npy block by block; killed and called again, it goes on."""
    size = blockwise.size_within(made.fn, x, budget)
    mesh = sharding.row_mesh() if jax.device_count() > 1 else None
    count = -(-len(x) // size)

    def go(state, done, callback):
        del done  # the file knows
        return blockwise.stream(
            made.fn,
            x,
            None,
            workdir.path("kernel.npy"),
            block_size=size,
            mesh=mesh,
            callback=lambda step, _, metrics: callback(step, state, metrics),
        )

    start = {"blocks": np.zeros((), np.int32)}
    return stage("blocks", start, go, count * (count + 1) // 2).result
