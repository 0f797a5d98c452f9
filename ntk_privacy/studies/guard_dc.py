"""Xue et al., Table 5, the rows of DC: a regularised loss of the images it matches.

Source: arXiv:2403.10045, appendix C. The gradient that DC matches is that of a loss
with the curvature at the real images; networks trained on the set have none.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ntk_privacy import data, distillation
from ntk_privacy.evaluation import JUDGES
from ntk_privacy.resume import Stage
from ntk_privacy.studies import figures
from ntk_privacy.studies.item import Figures, Grid, Item, Row, paired
from ntk_privacy.studies.verdict import Part, above

__all__ = ["ITEMS", "Point"]

_ATTACKED = ("pgd", "autoattack")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A condensed set, and networks trained on it and attacked.

    Attributes:
      dataset: a named image set.
      num_train, num_test: of its images; None is all.
      penalty_weight: of the curvature in the loss of real images; 0 is plain DC.
      images_per_class: of the condensed set.
      width: channels of every ConvNet.
      num_steps: of the condensation.
      batch_size: real images of each class in one of its steps.
      num_networks: trained on the set.
      num_epochs: of their training.
      learning_rate: of their training.
      num_attacked: test images under attack.
      preset: of what else DC has flags for: "cpu" or "paper".
      eps: bound of the attacks, l_inf, in 1/255.
      attack_steps: of attacks by steps; None is each one's own.
      num_queries: of the square attack; None is its own.
    """

    dataset: str
    num_train: int | None = None
    num_test: int | None = None
    penalty_weight: float
    images_per_class: int = 1
    width: int
    num_steps: int
    batch_size: int
    num_networks: int
    num_epochs: int
    learning_rate: float
    num_attacked: int
    preset: str = "cpu"
    eps: int = 1
    attack_steps: int | None = None
    num_queries: int | None = None


def run(config: Point, *, key: Array, stage: Stage) -> Figures:
    """Condenses a set, trains networks on it, and attacks one of them.

    Args:
      config: of the cell.
      key: of the condensation, the networks and the attacks.
      stage: runs the loops.

    Returns:
      accuracy (of all networks, on the test images), and of one network on the images
      under attack: clean, pgd, autoattack; all in per cent.

    Raises:
      ValueError: the loss of the condensation is not finite.
    """
    of_method, of_judge = jax.random.split(key)
    images = data.load_set(config.dataset).subset(
        num_train=config.num_train, num_test=config.num_test
    )
    dc = distillation.METHODS["dc"]
    own = dc.configured(
        config.preset,
        images_per_class=config.images_per_class,
        width=config.width,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        penalty_weight=config.penalty_weight or None,
    )
    dc.check(images, own)
    made = dc.run(images, own, key=of_method, stage=stage)
    if bool(made.nonfinite):
        raise ValueError("the loss of DC is not finite.")
    judge = JUDGES["attacks"]
    names = {entry.name for entry in dataclasses.fields(judge.config)}
    given = {
        "width": config.width,
        "num_networks": config.num_networks,
        "num_epochs": config.num_epochs,
        "train_learning_rate": config.learning_rate,
        "num_attacked": config.num_attacked,
        "eps": f"{config.eps}/255",
        "attack_steps": config.attack_steps,
        "num_queries": config.num_queries,
    }
    judging = judge.configured(
        **{k: v for k, v in given.items() if k in names and v is not None}
    )
    found = judge.run(images, made, judging, key=of_judge, stage=stage).figures
    return {
        "accuracy": 100 * float(np.mean(found["accuracies"])),
        "clean": 100 * found["accuracy_attacked"],
        **{name: 100 * found[name] for name in _ATTACKED},
    }


def _is_above(rows: Sequence[Row]) -> list[Part]:
    weights = sorted({row.config.penalty_weight for row in rows})
    parts = []
    for dataset in dict.fromkeys(row.config.dataset for row in rows):
        for name in ("accuracy", *_ATTACKED):
            more = [
                paired(
                    rows,
                    name,
                    of="penalty_weight",
                    one=weight,
                    other=0.0,
                    dataset=dataset,
                )
                for weight in weights[1:]
            ]
            told = f"{dataset}: regularised DC is above DC, {name}, points"
            parts.append(above(told, np.mean(more, axis=0)))
    return parts


def _drawn(rows: Sequence[Row], path: Path) -> None:
    shown: dict[str, dict[str, np.ndarray]] = {}
    for point in dict.fromkeys(row.config for row in rows):
        weight = point.penalty_weight
        label = f"curvature, weight {weight:g}" if weight else "plain"
        for name in ("accuracy", *_ATTACKED):
            own = [row.figures[name] for row in rows if row.config == point]
            panel = f"{point.dataset}, {name}, {point.eps}/255"
            panel = f"{point.dataset}, {name}" if name == "accuracy" else panel
            shown.setdefault(panel, {})[label] = np.asarray(own)
    title = "DC with and without curvature in the loss of real images"
    figures.bars(shown, path, y_label="test accuracy (%)", title=title)


def _grid(
    num_draws: int,
    sizes: dict[str, Any],
    *,
    weights: Sequence[float],
    places: Sequence[tuple[str, int]],
) -> Grid[Point]:
    """Returns every weight on every set, each attacked at its own bound."""
    points = [
        Point(dataset=dataset, eps=eps, penalty_weight=weight, **sizes)
        for dataset, eps in places
        for weight in weights
    ]
    return Grid(tuple(points), num_draws)


_SMOKE: dict[str, Any] = {
    "num_train": 200,
    "num_test": 60,
    "width": 4,
    "num_steps": 2,
    "batch_size": 8,
    "num_networks": 2,
    "num_epochs": 2,
    "learning_rate": 0.1,
    "num_attacked": 20,
    "attack_steps": 4,
    "num_queries": 4,
}
_CPU: dict[str, Any] = {
    "num_train": 5000,
    "num_test": 2000,
    "width": 16,
    "num_steps": 100,
    "batch_size": 32,
    "num_networks": 3,
    "num_epochs": 100,
    "learning_rate": 0.1,
    "num_attacked": 500,
    "attack_steps": 20,
    "num_queries": 200,
}
_PAPER: dict[str, Any] = {
    "preset": "paper",
    "width": 128,
    "num_steps": 1000,
    "batch_size": 256,
    "num_networks": 5,
    "num_epochs": 300,
    "learning_rate": 0.01,
    "num_attacked": 10_000,
}

ITEMS = (
    Item(
        paper="guard",
        name="table5",
        claim="Networks trained on images that DC condenses with curvature in its loss "
        "are above those of plain DC, clean and under attack.",
        about="The rows of DC at one image a class. At the scale cpu ConvNets of width "
        "16, 100 steps, three networks, 500 attacked images, attacks of 20 steps and "
        "200 queries (weaker than their standards); bounds of 1/255 on CIFAR-10, as "
        "published, and 8/255 on MNIST. The published weight for DC is not told.",
        grids={
            "smoke": _grid(2, _SMOKE, weights=(0.0, 1.0), places=(("digits", 8),)),
            "cpu": _grid(
                3, _CPU, weights=(0.0, 1.0), places=(("mnist", 8), ("cifar10", 1))
            ),
            "paper": _grid(
                5,
                _PAPER,
                weights=(0.0, 1.0, 10.0, 100.0),
                places=(("cifar10", 1),),
            ),
        },
        run=run,
        judge=_is_above,
        columns={
            "accuracy": "test accuracy, %",
            "clean": "attacked images, clean, %",
            "pgd": "PGD, %",
            "autoattack": "AutoAttack, %",
        },
        draw=_drawn,
    ),
)
