"""A kernel of images: computed or streamed, its spectrum, its way through training."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import resume, sharding
from ntk_privacy.evaluation import kernel_movement, spectrum
from ntk_privacy.evaluation.kernel_movement import Moved
from ntk_privacy.kernels import blockwise, named
from ntk_privacy.resume import Stage, straight

__all__ = ["MAX_SHOWN", "Studied", "study"]

MAX_SHOWN = 2000
"""Images of which a streamed kernel is drawn and its spectrum taken."""


class Studied(NamedTuple):
    """What is known of a kernel, its images of one class together.

    Attributes:
      figures: by name, as a file of results holds them.
      arrays: labels, classes, eigenvalues, the kernel unless it was streamed, and what
        training made of both.
      part: of the kernel, for up to `MAX_SHOWN` images, evenly from all.
      part_classes: of its images.
      num_images: all of them.
      spectra: eigenvalues, by what the kernel is of.
      moved: through training; None where there was none.
    """

    figures: dict[str, Any]
    arrays: dict[str, np.ndarray]
    part: Float[np.ndarray, "k k"]
    part_classes: Int[np.ndarray, " k"]
    num_images: int
    spectra: dict[str, np.ndarray]
    moved: Moved | None = None


def study(
    kernel: named.Kernel,
    x: Float[Array | np.ndarray, "n h w d"],
    y: Float[Array | np.ndarray, "n c"],
    classes: Int[np.ndarray, " n"],
    *,
    called: str = "kernel",
    path: pathlib.Path | None = None,
    budget: float = named.BUDGET,
    train: bool = False,
    stop_loss: float = 1e-3,
    max_train_steps: int = 2000,
    stage: Stage = straight,
) -> Studied:
    """Computes a kernel, its spectrum and, of a network, how training moves it.

    Args:
      kernel: of `kernels.named.KERNELS`.
      x: images.
      y: targets.
      classes: of the images.
      called: what a kernel of no network is.
      path: of the .npy that the kernel is streamed to, block by block; None keeps it
        in memory.
      budget: working memory of a block, MiB.
      train: whether to train the kernel's network, if it has one.
      stop_loss: mean of (f - y)^2 / 2 at which training ends.
      max_train_steps: limit of training.
      stage: runs the loops: kernel or blocks, and train.

    Raises:
      ValueError: a streamed kernel is of other images, or cannot be trained; or its
        entries are not finite.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.evaluation import kernel_study
      >>> from ntk_privacy.kernels import named
      >>> digits = data.load("digits", num_train=10, key=jax.random.key(0))
      >>> x, y = digits.x_train, digits.y_train
      >>> method, problem = named.KERNELS["infinite_mlp"], named.Problem(x, 1)
      >>> kernel = method.run(problem, method.configured(), key=jax.random.key(1))
      >>> found = kernel_study.study(kernel, x, y, digits.class_train)
      >>> found.part.shape, found.figures["spectrum_images"]
      ((10, 10), 10)
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    # Images of one class stand together in the picture.
    order = np.argsort(classes, kind="stable")
    x, y = x[order], y[order]
    arrays = {"labels": np.asarray(y), "classes": classes[order]}
    if path is not None:
        entries = _streamed(kernel, x, path, named.bytes_of(budget), stage)
    else:
        arrays["kernel"] = entries = resume.timed(
            stage, "kernel", lambda: _whole(kernel, x)
        )
    shown = np.linspace(0, len(x) - 1, min(len(x), MAX_SHOWN)).round().astype(int)
    part = entries if len(shown) == len(x) else entries[np.ix_(shown, shown)]
    arrays["eigenvalues"] = spectrum.eigenvalues(part)
    first = "initialisation" if kernel.network else called
    spectra, moved = {first: arrays["eigenvalues"]}, None
    figures: dict[str, Any] = {"spectrum_images": len(shown)}
    figures |= spectrum.figures(part, np.asarray(y)[shown])
    if kernel.network is not None and train:
        moved = kernel_movement.follow(
            kernel.network,
            x,
            y,
            kernel_0=jnp.asarray(entries),
            stop_loss=stop_loss,
            max_steps=max_train_steps,
            stage=stage,
        )
        after = spectrum.eigenvalues(moved.kernel_t)
        spectra[f"after {moved.steps[-1]} steps"] = after
        arrays |= {"kernel_after": moved.kernel_t, "eigenvalues_after": after}
        figures |= kernel_movement.figures(moved)
    return Studied(
        figures, arrays, np.asarray(part), classes[order][shown], len(x), spectra, moved
    )


def _whole(kernel: named.Kernel, x: Array) -> np.ndarray:
    """Returns the kernel, of which each device computes its rows."""
    mesh, n = sharding.all_devices(), len(x)
    if mesh is None:
        return np.asarray(jax.jit(kernel.fn)(x))
    rows = blockwise.evaluate(kernel.fn, x, x, block_size=n, mesh=mesh)
    entries = np.array(sharding.on_host(rows)[:n])
    # Exact where both sides are one image, as on one device.
    np.fill_diagonal(entries, np.asarray(blockwise.diagonal(kernel.fn, x)))
    return entries


def _streamed(
    kernel: named.Kernel, x: Array, path: pathlib.Path, budget: int, stage: Stage
) -> np.memmap:
    """Writes an .npy block by block; killed and called again, it goes on."""
    size = blockwise.size_within(kernel.fn, x, budget)
    mesh = sharding.all_devices()
    count = -(-len(x) // size)

    def go(state, done, callback):
        del done  # the file knows
        return blockwise.stream(
            kernel.fn,
            x,
            None,
            path,
            block_size=size,
            mesh=mesh,
            callback=lambda step, _, metrics: callback(step, state, metrics),
        )

    start = {"blocks": np.zeros((), np.int32)}
    return stage("blocks", start, go, count * (count + 1) // 2).result
