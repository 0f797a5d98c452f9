"""Zheng & Li, Tables 1 to 3 and 5: poison, condensed by DM and by robust means.

Source: the RDM-DC paper, section 5. A draw is a target, an adversarial class and the
images that become poison. Every setting has its control: the same targets, asked of
networks of sets that nobody has poisoned.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ntk_privacy import data, poisoning
from ntk_privacy.evaluation import poisoned_sets, students
from ntk_privacy.resume import Stage
from ntk_privacy.studies import figures
from ntk_privacy.studies.item import Figures, Grid, Item, Row, paired
from ntk_privacy.studies.verdict import Part, below, share_above, share_below

__all__ = ["ITEMS", "Point"]

_SUCCEEDS, _FAILS = 0.6, 0.2
"""Of DM, and of RDM-DC, as the paper has it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Poison in a training set, and a way to condense it.

    Attributes:
      dataset: a named image set.
      num_train, num_test: of its images; None is all.
      attack: of `poisoning.METHODS`.
      bound: of the attack, in 1/255.
      method: of `distillation.dm.METHODS`.
      rate: poison, as a share of the training images.
      preset: of what else the attack and the method have flags for: "cpu" or "paper".
      width: channels of every ConvNet.
      num_steps: of the condensation.
      batch_size: real images of each class in one of its steps.
      images_per_class: of the condensed set.
      num_epochs: of a network's training on it.
      num_runs: condensations, with one network each.
    """

    dataset: str = "cifar10"
    num_train: int | None = None
    num_test: int | None = None
    attack: str
    bound: int = 64
    method: str
    rate: float = 0.01
    preset: str = "cpu"
    width: int
    num_steps: int
    batch_size: int
    images_per_class: int
    num_epochs: int
    num_runs: int


def run(config: Point, *, key: Array, stage: Stage) -> Figures:
    """Poisons a set, condenses it, and asks networks what they take the target for.

    Args:
      config: of the cell.
      key: of its scene.
      stage: runs the loops.

    Returns:
      hits (networks that take the target for the adversarial class), trials, success
      (their share), accuracy (on the test images), poison_dropped (share of the poison
      that the mean drops; left out where it has no meaning).

    Raises:
      ValueError: see `evaluation.poisoned_sets`.
    """
    images = data.load_set(config.dataset).subset(
        num_train=config.num_train, num_test=config.num_test
    )
    attack = poisoning.METHODS[config.attack]
    given = {"bound": config.bound, "width": config.width}
    names = {entry.name for entry in dataclasses.fields(attack.config)}
    small = config.preset == "cpu"
    plan = poisoned_sets.plan(
        images.by_published() if not small else images,
        attack,
        attack.configured(
            config.preset if config.preset in attack.presets else None,
            **{name: value for name, value in given.items() if name in names},
        ),
        poisoned_sets.Config(
            methods=(config.method,),
            rate=config.rate,
            num_runs=config.num_runs,
            images_per_class=config.images_per_class,
            width=config.width,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            learning_rate=50.0 if small else 1.0,
        ),
        students.Config(
            width=config.width,
            num_networks=1,
            num_epochs=config.num_epochs,
            train_learning_rate=0.1 if small else 0.01,
        ),
        seeds=[int(jax.random.bits(key, (), "uint32"))],
        control=False,
        preset=config.preset,
    )

    def piece(name: str, make: Any) -> dict[str, Any]:
        # Loops of different parts have one name.
        def part(loop: str, start: Any, go: Any, num_steps: int) -> Any:
            return stage(f"{name}_{loop}", start, go, num_steps)

        return make(part)

    entries = poisoned_sets.study(plan, piece=piece)
    decided = [
        taken == entry["adversarial_class"]
        for entry in entries
        for taken in entry["target_classes"]
    ]
    accuracy = np.mean([value for entry in entries for value in entry["accuracies"]])
    found: dict[str, Any] = {
        "hits": int(np.sum(decided)),
        "trials": len(decided),
        "success": float(np.mean(decided)),
        "accuracy": 100 * float(accuracy),
    }
    dropped = entries[0]["poison_dropped"]
    return found if dropped is None else {**found, "poison_dropped": float(dropped)}


def _counted(rows: Sequence[Row], **where: Any) -> tuple[int, int]:
    own = [
        row.figures
        for row in rows
        if all(getattr(row.config, name) == value for name, value in where.items())
    ]
    return sum(one["hits"] for one in own), sum(one["trials"] for one in own)


def _settings(rows: Sequence[Row]) -> list[tuple[str, int]]:
    found = dict.fromkeys((row.config.attack, row.config.bound) for row in rows)
    return [(attack, bound) for attack, bound in found if attack != "none"]


def _control(rows: Sequence[Row]) -> list[Part]:
    hits = _counted(rows, attack="none")
    return [share_below("without an attack the target is so taken", *hits, _FAILS)]


def _breaks_dm(rows: Sequence[Row]) -> list[Part]:
    parts = [
        share_above(
            f"{attack} poison at {bound}/255 succeeds with DM",
            *_counted(rows, attack=attack, bound=bound, method="dm"),
            _SUCCEEDS,
        )
        for attack, bound in _settings(rows)
    ]
    return [*parts, *_control(rows)]


def _rdm_holds(rows: Sequence[Row]) -> list[Part]:
    """RDM-DC fails the attacker where DM and the other means do not."""
    parts = []
    others = [m for m in dict.fromkeys(r.config.method for r in rows) if m != "rdm"]
    for attack, bound in _settings(rows):
        where = {"attack": attack, "bound": bound}
        told = f"{attack} poison at {bound}/255 succeeds with"
        rdm = _counted(rows, method="rdm", **where)
        parts.append(share_below(f"{told} RDM-DC", *rdm, _FAILS))
        if "dm" in others:
            dm = _counted(rows, method="dm", **where)
            parts.append(share_above(f"{told} DM", *dm, _SUCCEEDS))
        for other in others:
            less = paired(rows, "success", of="method", one="rdm", other=other, **where)
            parts.append(
                below(f"{told} RDM-DC less than with {other}, by target", less)
            )
    return [*parts, *_control(rows)]


def _bars(title: str):
    def draw(rows: Sequence[Row], path: Path) -> None:
        shown: dict[str, dict[str, np.ndarray]] = {}
        for point in dict.fromkeys(row.config for row in rows):
            own = [100 * row.figures["success"] for row in rows if row.config == point]
            is_control = point.attack == "none"
            told = f"{point.attack}, {point.bound}/255"
            panel = "no attack" if is_control else told
            shown.setdefault(panel, {})[point.method] = np.asarray(own)
        y_label = "taken for the adversarial class (%)"
        figures.bars(shown, path, y_label=y_label, title=title)

    return draw


_SMOKE: dict[str, Any] = {
    "dataset": "digits",
    "num_train": 300,
    "num_test": 50,
    "width": 4,
    "num_steps": 3,
    "batch_size": 16,
    "images_per_class": 1,
    "num_epochs": 2,
    "num_runs": 1,
}
_CPU: dict[str, Any] = {
    "num_test": 1000,
    "width": 32,
    "num_steps": 100,
    "batch_size": 64,
    "images_per_class": 10,
    "num_epochs": 60,
    "num_runs": 3,
}
_PAPER: dict[str, Any] = {
    "preset": "paper",
    "width": 128,
    "num_steps": 20_000,
    "batch_size": 256,
    "images_per_class": 50,
    "num_epochs": 1000,
    "num_runs": 5,
}


def _grids(
    attacks: Sequence[tuple[str, int]], methods: Sequence[str]
) -> dict[Any, Grid[Point]]:
    """Returns every attack on every method, and the same without an attack."""
    points = [
        {"attack": attack, "bound": bound, "method": method}
        for attack, bound in (*attacks, ("none", 64))
        for method in methods
    ]

    def grid(num_draws: int, sizes: dict[str, Any]) -> Grid[Point]:
        return Grid(tuple(Point(**point, **sizes) for point in points), num_draws)

    return {"smoke": grid(2, _SMOKE), "cpu": grid(5, _CPU), "paper": grid(5, _PAPER)}


_ABOUT = (
    "CIFAR-10, 1% of the images are poison, all of one class. Shares have the interval "
    "of Clopper and Pearson over condensations of these targets; orders are paired by "
    "target. At the scale cpu five targets, three condensations of each with one "
    "network, 10 images a class, ConvNets of width 32."
)
_COLUMNS = {
    "success": "success of the attacker",
    "accuracy": "test accuracy, %",
    "poison_dropped": "poison dropped",
}


def _item(name: str, claim: str, attacks: Any, methods: Any, judge: Any) -> Item[Point]:
    return Item(
        paper="rdm",
        name=name,
        claim=claim,
        about=_ABOUT,
        grids=_grids(attacks, methods),
        run=run,
        judge=judge,
        columns=_COLUMNS,
        draw=_bars(claim.split(":")[0]),
    )


ITEMS = (
    _item(
        "table1",
        "Poison outlives DM: gradient matching at 128/255 and DM poisoning at 64 and "
        "128/255 make networks of the condensed set misread the target.",
        (("dm", 64), ("dm", 128), ("gradient", 128)),
        ("dm",),
        _breaks_dm,
    ),
    _item(
        "table2",
        "RDM-DC stops DM poisoning: median, trimmed and truncated means do not.",
        (("dm", 64),),
        ("dm", "rdm", "dm_truncated", "dm_trimmed", "dm_median"),
        _rdm_holds,
    ),
    _item(
        "table3",
        "RDM-DC stops poison made by gradient matching.",
        (("gradient", 64),),
        ("dm", "rdm"),
        _rdm_holds,
    ),
    _item(
        "table5",
        "RDM-DC stops the direct attack: the target itself with the wrong label, which "
        "always succeeds with DM.",
        (("direct", 64),),
        ("dm", "rdm"),
        _rdm_holds,
    ),
)
