"""Loo et al., section 6: which images are given away? Those that are hard to fit.

Source: arXiv:2302.01428. Of kernel regression with the network's own kernel, an image
that the others predict badly has a large dual and a large leave-one-out error; it is
what the weights tell most of.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.kernels import structured
from ntk_privacy.resume import Stage
from ntk_privacy.studies import figures, loo_attacked
from ntk_privacy.studies.item import Figures, Grid, Item, Row, by_draw
from ntk_privacy.studies.loo_attacked import Point
from ntk_privacy.studies.verdict import Part, below, spearman

__all__ = ["ITEMS", "left_out"]


def left_out(
    kernel: Float[np.ndarray, "n n"], residuals: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns duals of kernel regression, and its leave-one-out errors.

    Args:
      kernel: of the training images, positive definite.
      residuals: targets less what the network makes of the images before training.

    Returns:
      alpha = K^-1 r; and alpha_i / (K^-1)_ii, what is missing at image i if the
      regression knows all others.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.studies import loo_outliers
      >>> kernel, residuals = np.diag([2.0, 4.0]), np.array([1.0, -1.0])
      >>> loo_outliers.left_out(kernel, residuals)
      (array([ 0.5 , -0.25]), array([ 1., -1.]))
    """
    inverse = np.linalg.inv(np.asarray(kernel, np.float64))
    duals = inverse @ np.asarray(residuals, np.float64)
    return duals, duals / np.diag(inverse)


def run(config: Point, *, key: Array, stage: Stage) -> Figures:
    """Attacks a network, and ranks its images by error, dual and leave-one-out error.

    Args:
      config: of the cell; of a binary task.
      key: of its images, its network and its search.
      stage: runs the loops.

    Returns:
      the figures of `loo_attacked.run`; dual and left_out, Spearman's correlations of
      the error of an image with the size of its dual and of its leave-one-out error;
      duals and leave_one_out, by image.

    Raises:
      ValueError: see `loo_attacked.run`.
    """
    attacked = loo_attacked.attacked(config, key=key, stage=stage)
    trained, dataset, pairs = attacked.victim, attacked.dataset, attacked.pairs
    x = jnp.asarray(dataset.x_train)
    kernel = structured.ntk(trained.model, trained.params_0, x)
    before = trained.model.apply_fn(trained.params_0, x)
    residuals = np.asarray(dataset.y_train - before, np.float64)[:, 0]
    duals, missing = left_out(np.asarray(kernel, np.float64), residuals)
    # As the pairs stand: nearest first.
    duals, missing = (np.abs(each[pairs.train_index]) for each in (duals, missing))
    return {
        **attacked.figures,
        "dual": spearman(pairs.distances, duals),
        "left_out": spearman(pairs.distances, missing),
        "duals": duals,
        "leave_one_out": missing,
    }


def _are_outliers(rows: Sequence[Row]) -> list[Part]:
    parts = []
    for dataset in dict.fromkeys(row.config.dataset for row in rows):
        for name, told in (("dual", "dual"), ("left_out", "leave-one-out error")):
            at = (
                f"{dataset}: Spearman's correlation of an image's error with its {told}"
            )
            parts.append(below(at, by_draw(rows, name, dataset=dataset)))
    return parts


def _drawn(rows: Sequence[Row], path: Path) -> None:
    """Draws the error of fifths of the images, from the most to the least typical."""
    shown: dict[str, dict[str, figures.Line]] = {}
    for dataset in dict.fromkeys(row.config.dataset for row in rows):
        own = [row for row in rows if row.config.dataset == dataset]
        for name, label in (
            ("duals", "by dual"),
            ("leave_one_out", "by leave-one-out"),
        ):
            fifths = []
            for row in own:
                curve = np.asarray(row.figures["curve"], float)
                order = np.argsort(np.asarray(row.figures[name], float))
                fifths.append([part.mean() for part in np.array_split(curve[order], 5)])
            line = ([10.0, 30.0, 50.0, 70.0, 90.0], np.asarray(fifths))
            shown.setdefault(dataset, {})[label] = line
    figures.lines(
        shown,
        path,
        x_label="images, the most typical first (%)",
        y_label="mean L2 distance (intensity)",
        title="Fifths of the images by how badly the others predict them",
    )


def _grid(num_draws: int, *, datasets: Sequence[str], **point: object) -> Grid[Point]:
    points = [
        Point(dataset=dataset, dynamics="standard", **point)  # pyright: ignore[reportArgumentType]
        for dataset in datasets
    ]
    return Grid(tuple(points), num_draws)


_REAL = ("mnist", "cifar10")

ITEMS = (
    Item(
        paper="loo",
        name="outliers",
        claim="The images that are read back best are outliers: those that the others "
        "predict worst, whose duals are large.",
        about="Standard dynamics; duals and leave-one-out errors of kernel regression "
        "with the network's kernel at initialisation. The published search with our "
        "settings at the scales smoke and cpu.",
        grids={
            "smoke": _grid(
                2, datasets=("digits",), num_images=8, width=32, num_steps=20
            ),
            "cpu": _grid(3, datasets=_REAL, num_images=60, width=256),
            "paper": _grid(
                3, datasets=_REAL, num_images=500, width=4096, settings="paper"
            ),
        },
        run=run,
        judge=_are_outliers,
        columns={
            "dual": "correlation with the dual",
            "left_out": "with leave-one-out",
            **loo_attacked.COLUMNS,
        },
        draw=_drawn,
    ),
)
