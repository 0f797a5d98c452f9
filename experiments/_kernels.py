"""What `experiments.kernel` does: computes, streams, follows through training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kernel_drawn, _kernel_flags, _progress, _task_images
from experiments._flags import UsageError
from experiments._groups import Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy import data, sharding
from ntk_privacy.evaluation import kernel_movement, spectrum
from ntk_privacy.kernels import blockwise, named
from ntk_privacy.resume import Stage, Timer

MAX_SHOWN = 2000
"""Images of which a streamed kernel is drawn and its spectrum taken."""


class Loaded(NamedTuple):
    """Images, and the kernel that is wanted of them."""

    dataset: data.Dataset
    x: jax.Array
    y: jax.Array
    kernel: named.Kernel


def load(asked: Asked[Any]) -> Loaded:
    """Returns images and kernel, before anything is written.

    Args:
      asked: of `experiments.kernel`.

    Raises:
      UsageError: a flag does not fit the image set, the budget is too small, or
        neural-tangents is not installed.
      OSError, ValueError: a file is missing or damaged.
    """
    images, run = asked.group(_task_images.TaskImages), asked.group(Run)
    dataset, key = _task_images.load(images, run.seed)
    dtype = jnp.dtype(asked.group(_kernel_flags.KernelRun).precision)
    x, y = jnp.asarray(dataset.x_train, dtype), jnp.asarray(dataset.y_train, dtype)
    blocks = asked.group(_kernel_flags.Blocks)
    try:
        problem = named.Problem(x, y.shape[1])
        kernel = asked.method.run(problem, asked.config, key=key)
        if blocks.stream:
            blockwise.size_within(kernel.fn, x[:1], blocks.bytes)
    except ImportError as error:
        raise UsageError(f"kernel={asked.method.name}: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Loaded(dataset, x, y, kernel)


def work(asked: Asked[Any], workdir: Workdir, loaded: Loaded) -> dict[str, Any]:
    """Computes, draws and writes; returns entries of results.json.

    Args:
      asked: of `experiments.kernel`.
      workdir: of the run.
      loaded: of `load`.
    """
    dataset, x, y, made = loaded
    images, flags = asked.group(_task_images.TaskImages), asked.group(Run)
    computing, following = (Timer(), Timer())
    # Images of one class stand together in the picture.
    order = np.argsort(dataset.class_train, kind="stable")
    x, y = x[order], y[order]
    arrays = {"labels": y, "classes": dataset.class_train[order]}
    folder, blocks = workdir.checkpoint_folder, asked.group(_kernel_flags.Blocks)
    if blocks.stream:
        stage = _progress.stage(flags, folder, computing)
        kernel = _streamed(workdir, made, x, blocks.bytes, stage)
    else:
        with computing():
            kernel = np.asarray(jax.jit(made.fn)(x))
        arrays["kernel"] = kernel
    shown = np.linspace(0, len(x) - 1, min(len(x), MAX_SHOWN)).round().astype(int)
    part = kernel if len(shown) == len(x) else kernel[np.ix_(shown, shown)]
    arrays["eigenvalues"] = spectrum.eigenvalues(part)
    first = "initialisation" if made.network else asked.method.name
    spectra, told = {first: arrays["eigenvalues"]}, {}
    training = _kernel_flags.training(asked)
    if made.network is not None and training is not None:
        moved = kernel_movement.follow(
            made.network,
            x,
            y,
            kernel_0=jnp.asarray(kernel),
            stop_loss=training.stop_loss,
            max_steps=training.max_train_steps,
            stage=_progress.stage(flags, folder, following),
        )
        after = spectrum.eigenvalues(moved.kernel_t)
        spectra[f"after {moved.steps[-1]} steps"] = after
        arrays |= {"kernel_after": moved.kernel_t, "eigenvalues_after": after}
        told = _kernel_drawn.followed(workdir, moved)
    few = f" of {len(x)}" * (len(shown) < len(x))
    title = f"{asked.method.name}, {images.dataset}, {len(shown)} images{few}"
    _kernel_drawn.draw(workdir, part, spectra, title, np.finfo(x.dtype))
    workdir.write_arrays("arrays.npz", **arrays)
    return {
        "kernel": asked.method.name,
        "dataset": images.dataset,
        "num_images": len(x),
        "seed": flags.seed,
        "spectrum_images": len(shown),
        **spectrum.figures(part, np.asarray(y)[shown]),
        **told,
        "seconds": {
            "compile": computing.compile + following.compile,
            "kernel": computing.run,
            "train": following.run,
        },
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
