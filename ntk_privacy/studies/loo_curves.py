"""Loo et al., figures 2 to 5: how near a search comes, over N, width and training.

Source: arXiv:2302.01428, section 5. Claims of order are judged by the mean distance
over that of the mean image, so that sets and numbers of images can be averaged.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_privacy.studies import figures
from ntk_privacy.studies.item import Grid, Item, Row, by_draw, paired
from ntk_privacy.studies.loo_attacked import COLUMNS, CONVERGED, EARLY, By, Point, run
from ntk_privacy.studies.verdict import Part, above, below, spearman

__all__ = ["ITEMS"]

_ABOUT = (
    "The published search with our settings (4,000 steps with the best duals at every "
    "one, 2,000 under standard dynamics) at the scales smoke and cpu, with its own "
    "80,000 steps at the scale paper; two candidates an image."
)
_REAL = ("mnist", "cifar10")
_DYNAMICS = ("linearized", "standard")
_ERROR = "relative_error"
_MARGIN = 0.05
_VANISHED = 0.01


def _grid(
    num_draws: int,
    *,
    datasets: Sequence[str] = _REAL,
    numbers: Sequence[int],
    widths: Sequence[int],
    dynamics: Sequence[str] = _DYNAMICS,
    tasks: Sequence[str | None] = (None,),
    losses: Sequence[float] = (CONVERGED,),
    **search: object,
) -> Grid[Point]:
    """Returns every combination, the cheapest first."""
    points = [
        Point(
            dataset=dataset,
            task=task,
            num_images=number,
            width=width,
            dynamics=how,  # pyright: ignore[reportArgumentType]
            stop_loss=loss,
            **search,  # pyright: ignore[reportArgumentType]
        )
        for width, number, how, dataset, task, loss in itertools.product(
            *(widths, numbers, dynamics, datasets, tasks, losses)
        )
    ]
    return Grid(tuple(points), num_draws)


def _by_attack(
    num_draws: int, numbers: Sequence[int], widths: Sequence[int], **search: Any
) -> Grid[Point]:
    """Returns linearized networks, searched and decoded."""
    sizes = {"numbers": numbers, "widths": widths, "dynamics": ("linearized",)}
    grid = _grid(num_draws, **sizes, **search)
    both = [By(**vars(p), attack=how) for p in grid.configs for how in ("kkt", "auto")]
    return Grid(tuple(both), num_draws)


def _values(rows: Sequence[Row], field: str) -> list:
    return sorted({getattr(row.config, field) for row in rows})


def _by_order(rows: Sequence[Row]) -> list[Part]:
    """The claims of figure 2: what makes a search come nearer."""
    numbers, widths = _values(rows, "num_images"), _values(rows, "width")
    fewer = {"of": "num_images", "one": numbers[-1], "other": numbers[0]}
    wider = {"of": "width", "one": widths[0], "other": widths[-1]}
    frozen = {"of": "dynamics", "one": "standard", "other": "linearized"}
    told = "standard dynamics are farther off than linearized ones"
    parts = [above(told, paired(rows, _ERROR, **frozen))]
    for how in _values(rows, "dynamics"):
        for told, pair in (
            (f"N = {numbers[-1]} is farther off than N = {numbers[0]}", fewer),
            (f"width {widths[0]} is farther off than width {widths[-1]}", wider),
        ):
            apart = paired(rows, _ERROR, dynamics=how, **pair)
            parts.append(above(f"{told}, {how}", apart))
    return parts


def _curves(rows: Sequence[Row], path: Path) -> None:
    """Draws the distances by rank: a panel per set and dynamics."""
    shown: dict[str, dict[str, figures.Line]] = {}
    for row in rows:
        point = row.config
        panel = f"{point.dataset}, {point.dynamics}"
        label = f"N = {point.num_images}, width {point.width}"
        own = [other.figures["curve"] for other in rows if other.config == point]
        places = (np.arange(point.num_images) + 0.5) / point.num_images
        shown.setdefault(panel, {})[label] = (places.tolist(), np.asarray(own, float))
    figures.lines(
        shown,
        path,
        x_label="training images, sorted (share)",
        y_label="L2 distance (intensity)",
        title="Reconstruction curves: mean and deviation over draws",
        marks=False,
    )


def _rank_correlation(rows: Sequence[Row]) -> list[Part]:
    """The claim of figure 3, within each set and draw."""
    correlations = []
    for draw in sorted({row.draw for row in rows}):
        own = []
        for dataset in _values(rows, "dataset"):
            pairs = [
                (row.figures["kernel_distance"], row.figures[_ERROR])
                for row in rows
                if row.draw == draw and row.config.dataset == dataset
            ]
            moved, error = zip(*pairs, strict=True)
            own.append(spearman(moved, error))
        correlations.append(float(np.mean(own)))
    told = "Spearman's correlation of kernel distance and error, within set and draw"
    return [above(told, correlations)]


def _scatter(rows: Sequence[Row], path: Path) -> None:
    """Draws the error over the kernel distance, a line of N per set and width."""
    shown: dict[str, dict[str, figures.Line]] = {}
    for dataset in _values(rows, "dataset"):
        for number in _values(rows, "num_images"):
            where = {"of": "width", "dataset": dataset, "num_images": number}
            moved = figures.line(rows, "kernel_distance", **where)
            error = figures.line(rows, _ERROR, **where)
            if moved is not None and error is not None:
                line = (moved[1].mean(0).tolist(), error[1])
                shown.setdefault(dataset, {})[f"N = {number}"] = line
    if shown:
        figures.lines(
            shown,
            path,
            x_label="kernel distance (mean over draws)",
            y_label="mean error / that of the mean image",
            title="Error against kernel distance; a mark is a width",
            log_x=True,
        )


def _is_no_defence(rows: Sequence[Row]) -> list[Part]:
    pair = {"of": "stop_loss", "one": EARLY, "other": CONVERGED}
    return [
        below(
            f"an early stop adds less than {_MARGIN} of the error of the mean image, "
            f"{how} dynamics",
            paired(rows, _ERROR, dynamics=how, **pair),
            _MARGIN,
        )
        for how in _values(rows, "dynamics")
    ]


def _is_easier(rows: Sequence[Row]) -> list[Part]:
    pair = {"of": "task", "one": None, "other": "all_classes"}
    return [
        above(
            f"two classes are farther off than ten, {how} dynamics",
            paired(rows, _ERROR, dynamics=how, **pair),
        )
        for how in _values(rows, "dynamics")
    ]


def _vanishes(rows: Sequence[Row]) -> list[Part]:
    """The claim of Theorem 1, which is of the limit: the error falls to nothing."""
    widths, parts = _values(rows, "width"), []
    for dataset in _values(rows, "dataset"):
        pair = {"of": "width", "one": widths[0], "other": widths[-1]}
        where = {"dataset": dataset, "attack": "auto"}
        told = f"{dataset}: width {widths[0]} is farther off than {widths[-1]}"
        parts.append(above(told, paired(rows, _ERROR, **pair, **where)))
        told = f"{dataset}: error at width {widths[-1]} over that of the mean image"
        own = by_draw(rows, _ERROR, width=widths[-1], **where)
        parts.append(below(told, own, _VANISHED))
    return parts


def _over_width(rows: Sequence[Row], path: Path) -> None:
    shown: dict[str, dict[str, figures.Line]] = {}
    for dataset in _values(rows, "dataset"):
        for number in _values(rows, "num_images"):
            for attack in _values(rows, "attack"):
                where = {"dataset": dataset, "num_images": number, "attack": attack}
                found = figures.line(rows, _ERROR, of="width", **where)
                if found is not None:
                    shown.setdefault(dataset, {})[f"N = {number}, {attack}"] = found
    if shown:
        figures.lines(
            shown,
            path,
            x_label="width",
            y_label="mean error / that of the mean image",
            title="Linearized networks: the error over the width",
            log_x=True,
        )


def _bars(field: str, names: dict, title: str):
    """Returns what draws the error by a field: a panel per set and dynamics."""

    def draw(rows: Sequence[Row], path: Path) -> None:
        shown: dict[str, dict[str, np.ndarray]] = {}
        for point in dict.fromkeys(row.config for row in rows):
            panel = f"{point.dataset}, {point.dynamics}, width {point.width}"
            label = names[getattr(point, field)]
            if len(_values(rows, "num_images")) > 1:
                label = f"N = {point.num_images}, {label}"
            own = [row.figures[_ERROR] for row in rows if row.config == point]
            shown.setdefault(panel, {})[label] = np.asarray(own, float)
        y_label = "mean error / that of the mean image"
        figures.bars(shown, path, y_label=y_label, title=title)

    return draw


_TASTE: dict[str, Any] = {"datasets": ("digits",), "num_steps": 20}
_PAPER: dict[str, Any] = {"settings": "paper"}
_NUMBERS = (20, 50, 100, 150, 200, 300, 400, 500)
_WIDTHS = (256, 512, 1024, 2048, 4096)

ITEMS = (
    Item(
        paper="loo",
        name="theorem1",
        claim="In the limit of infinite width the training images alone explain the "
        "weights of a linearized network: what does comes ever nearer to them.",
        about="The theorem is of the minimum of the search's loss, in the limit. What "
        "is judged is `auto`, which decodes exactly what it can and searches for the "
        f"rest: its error must fall below {_VANISHED} of that of the mean image. The "
        "search alone (kkt) is shown beside it: where its steps end before the "
        "minimum, its error says nothing of the theorem.",
        grids={
            "smoke": _by_attack(2, (4,), (16, 32), **_TASTE),
            "cpu": _by_attack(3, (10,), (16, 64, 256, 1024)),
            "paper": _by_attack(3, (20, 100, 500), (256, 1024, 4096, 16384), **_PAPER),
        },
        run=run,
        judge=_vanishes,
        columns=COLUMNS,
        draw=_over_width,
    ),
    Item(
        paper="loo",
        name="figure2",
        claim="A network gives its images away the better the fewer they are, the "
        "wider it is, and the less its kernel moves (linearized dynamics).",
        about=_ABOUT,
        grids={
            "smoke": _grid(2, numbers=(2, 4), widths=(16, 32), **_TASTE),
            "cpu": _grid(3, numbers=(10, 40), widths=(128, 512)),
            "paper": _grid(3, numbers=_NUMBERS, widths=_WIDTHS, **_PAPER),
        },
        run=run,
        judge=_by_order,
        columns=COLUMNS,
        draw=_curves,
    ),
    Item(
        paper="loo",
        name="figure3",
        claim="The farther the kernel moves in training, the farther off the search "
        "ends.",
        about=f"{_ABOUT} Standard dynamics.",
        grids={
            "smoke": _grid(
                2, numbers=(2, 4), widths=(16, 32), dynamics=("standard",), **_TASTE
            ),
            "cpu": _grid(
                3,
                numbers=(10, 20),
                widths=(64, 128, 256, 512),
                dynamics=("standard",),
            ),
            "paper": _grid(
                3, numbers=_NUMBERS, widths=_WIDTHS, dynamics=("standard",), **_PAPER
            ),
        },
        run=run,
        judge=_rank_correlation,
        columns=COLUMNS,
        draw=_scatter,
    ),
    Item(
        paper="loo",
        name="figure4",
        claim="To stop the training early is no defence.",
        about=f"{_ABOUT} Trained to a mean loss of 1e-2 in place of 1e-10.",
        grids={
            "smoke": _grid(
                2, numbers=(4,), widths=(32,), losses=(CONVERGED, EARLY), **_TASTE
            ),
            "cpu": _grid(3, numbers=(20,), widths=(512,), losses=(CONVERGED, EARLY)),
            "paper": _grid(
                3,
                numbers=_NUMBERS,
                widths=_WIDTHS,
                losses=(CONVERGED, EARLY),
                **_PAPER,
            ),
        },
        run=run,
        judge=_is_no_defence,
        columns=COLUMNS,
        draw=_bars(
            "stop_loss",
            {CONVERGED: "converged", EARLY: "early"},
            "Training to the end, and stopped early",
        ),
    ),
    Item(
        paper="loo",
        name="figure5",
        claim="Ten classes make the images easier to read back than two.",
        about=f"{_ABOUT} One-hot labels less their mean, against -1 and +1.",
        grids={
            "smoke": _grid(
                2, numbers=(10,), widths=(32,), tasks=(None, "all_classes"), **_TASTE
            ),
            "cpu": _grid(3, numbers=(20,), widths=(256,), tasks=(None, "all_classes")),
            "paper": _grid(
                3,
                numbers=_NUMBERS,
                widths=_WIDTHS,
                tasks=(None, "all_classes"),
                **_PAPER,
            ),
        },
        run=run,
        judge=_is_easier,
        columns=COLUMNS,
        draw=_bars(
            "task",
            {None: "two classes", "all_classes": "ten classes"},
            "Two classes, and ten",
        ),
    ),
)
