"""Figures of kernels: as a picture, their spectrum, their distance over training."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ntk_privacy import _checks
from ntk_privacy.evaluation.kernel_study import Studied
from ntk_privacy.reports.canvas import COLOURS, STYLES, drawn, figure

__all__ = ["distances", "picture", "spectrum", "study"]

_MAX_CLASSES, _LONGEST, _CHARACTERS = 30, 18, 30
_MAX_MARKED = 60  # points beyond which a line says more than markers


def picture(
    kernel: Float[Array | np.ndarray, "n n"],
    path: str | pathlib.Path,
    *,
    title: str,
    classes: Sequence[str] = (),
) -> None:
    """Draws a kernel, row by row from the top.

    Args:
      kernel: entries of any scale; the colours span them from 1st to 99th percentile,
        so that a large diagonal does not hide the rest.
      path: the PNG to write.
      title: above the axes.
      classes: the name of each image's class, those of one class together: the axes
        say it; images are numbered without, and beyond 30 classes.

    Raises:
      ValueError: the kernel has no finite entry, or not as many rows as classes.
    """
    if classes:
        _checks.same_length(kernel=kernel, classes=classes)
    kernel = np.asarray(kernel, np.float64)
    finite = kernel[np.isfinite(kernel)]
    _checks.at_least(1, num_finite_entries=finite.size)
    low, high = np.percentile(finite, (1, 99))
    with figure(path, size=(6.0, 5.0)) as made:
        axes = made.add_subplot()
        shown = axes.imshow(
            kernel,
            cmap="viridis",
            vmin=low,
            vmax=max(high, low + 1e-12 * max(abs(low), 1.0)),
            # One pixel may stand for several entries: their mean.
            interpolation="antialiased",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        runs = [(name, len(list(same))) for name, same in itertools.groupby(classes)]
        if 0 < len(runs) <= _MAX_CLASSES:
            _name_classes(axes, runs)
        else:
            axes.set_xlabel("image")
            axes.set_ylabel("image")
        axes.set_title(title, fontsize=12)
        bar = made.colorbar(shown, ax=axes, extend="both", shrink=0.9)
        bar.set_label("kernel (colours: 1st to 99th percentile)")


def _name_classes(axes: Axes, runs: Sequence[tuple[str, int]]) -> None:
    """Labels both axes by class, with marks from one to the next."""
    sizes = np.asarray([size for _, size in runs])
    ends = np.cumsum(sizes) - 0.5
    names = [name for name, _ in runs]
    names = [n if len(n) <= _LONGEST else f"{n[:_LONGEST]}…" for n in names]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ends - sizes / 2, names, fontsize=9)
        axis.set_ticks(ends[:-1], minor=True)
        axis.set_tick_params(which="major", length=0)
        axis.set_tick_params(which="minor", length=5)
    if max(map(len, names)) * len(names) > _CHARACTERS:
        axes.tick_params("x", rotation=90)
    axes.set_xlabel("class of the image")
    axes.set_ylabel("class of the image")


def spectrum(
    spectra: Mapping[str, Float[Array | np.ndarray, " k"]],
    path: str | pathlib.Path,
    *,
    title: str = "Spectrum of the kernel",
    rounding: float | None = None,
) -> None:
    """Draws eigenvalues against rank on two logarithmic axes.

    Args:
      spectra: label to eigenvalues in any order; those that are not positive are left
        out, and the legend says how many.
      path: the PNG to write.
      title: above the axes.
      rounding: a level below which eigenvalues are rounding, shaded; None for no such.

    Raises:
      ValueError: there is no spectrum.
    """
    _checks.at_least(1, num_spectra=len(spectra))
    lowest = np.inf
    with drawn(path, title=title) as axes:
        for i, (label, values) in enumerate(spectra.items()):
            values = np.sort(np.asarray(values, np.float64))[::-1]
            positive = values > 0
            dropped = int((~positive).sum())
            note = f" ({dropped} of {len(values)} not positive)" if dropped else ""
            lowest = min([lowest, *values[positive][-1:]])
            axes.plot(
                np.arange(1, len(values) + 1)[positive],
                values[positive],
                STYLES[i % len(STYLES)],
                color=COLOURS[i % len(COLOURS)],
                linewidth=1.6,
                marker="o" if len(values) <= _MAX_MARKED else None,
                markersize=3.5,
                label=label + note,
            )
        if rounding is not None and rounding > lowest:
            axes.axhspan(
                lowest / 2, rounding, color="0.5", alpha=0.15, linewidth=0,
                label="below the rounding of the largest",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log" if np.isfinite(lowest) else "linear")
        axes.set_xlabel("eigenvalue, sorted by size (rank)")
        axes.set_ylabel("eigenvalue (unit of the kernel)")
        axes.grid(which="major")
        axes.legend(fontsize=10)


def distances(
    steps: Int[Array | np.ndarray, " k"],
    distance: Float[Array | np.ndarray, " k"],
    loss: Float[Array | np.ndarray, " k"],
    path: str | pathlib.Path,
    *,
    title: str = "Distance of the kernel from initialisation",
) -> None:
    """Draws the kernel distance and the training loss against steps.

    Args:
      steps: of training, ascending; step 0 is drawn at the left edge.
      distance: 1 - cosine of the kernels at that step and at step 0; zeros are left
        out.
      loss: training loss at that step.
      path: the PNG to write.
      title: above the axes.

    Raises:
      ValueError: lengths differ, or there is no step.
    """
    _checks.same_length(steps=steps, distance=distance, loss=loss)
    _checks.at_least(1, num_steps=len(steps))
    steps = np.asarray(steps, np.float64)
    after = steps[steps > 0]
    edge = after[0] / 2 if len(after) else 1.0
    steps = np.maximum(steps, edge)
    with figure(path, size=(7.2, 5.2)) as made:
        upper, lower = made.subplots(2, 1, sharex=True)
        rows = (
            (upper, distance, "kernel distance\n(1 - cosine)", COLOURS[0]),
            (lower, loss, "training loss\n(mean of squares / 2)", COLOURS[1]),
        )
        for axes, values, label, colour in rows:
            values = np.asarray(values, np.float64)
            drawn = np.isfinite(values) & (values > 0)
            axes.plot(
                steps[drawn], values[drawn], "o-", color=colour, linewidth=1.6,
                markersize=4,
            )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log" if drawn.any() else "linear")
            axes.set_ylabel(label)
            axes.grid(which="major")
        upper.set_title(title, fontsize=12)
        lower.set_xlabel("training step (step 0 at the left edge)")


def study(
    found: Studied,
    folder: pathlib.Path,
    *,
    called: str,
    class_names: Sequence[str] = (),
) -> None:
    """Draws a kernel, its spectrum and, where it was trained, its distances.

    Args:
      found: of `evaluation.kernel_study`.
      folder: of kernel.png, spectrum.png and distance.png.
      called: kernel and images, for the titles.
      class_names: of the images' classes, which are numbers without.
    """
    moved, shown = found.moved, len(found.part)
    if moved is not None:
        path = folder / "distance.png"
        distances(moved.steps, moved.distances, moved.losses, path)
    few = f" of {found.num_images}" * (shown < found.num_images)
    title = f"{called}, {shown} images{few}"
    names = dict(enumerate(class_names))
    classes = [names.get(c, str(c)) for c in found.part_classes.tolist()]
    picture(found.part, folder / "kernel.png", title=title, classes=classes)
    largest = max(float(values[0]) for values in found.spectra.values())
    spectrum(
        found.spectra,
        folder / "spectrum.png",
        title=f"Spectrum: {title}",
        rounding=float(np.finfo(found.arrays["labels"].dtype).eps) * largest,
    )
