"""Poisons a training set, condenses it by DM and by robust means, and tests the result.

    python -m experiments.poison --preset=cpu --dataset=cifar10 --attack=direct \
        --methods=dm,rdm --num_seeds=5 --workdir=DIR

Each seed draws a target among the test images, an adversarial class and the training
images of that class that become poison. Each method condenses the clean images too, and
the networks trained on that say what they take every target for: how often the attacker
gets his way without an attack. Writes config.json, results.json, losses.png and, for
each seed, pictures of its poisons and condensed sets to --workdir. Killed and started
again with the same --workdir it goes on with the first part that is not done.
"""

import dataclasses
from typing import Any

from experiments import _flags, _image_sets, _run
from experiments._groups import Folder, Source
from experiments._pieces import Pieces
from experiments._program import Asked, Program
from ntk_privacy import _checks, distillation, poisoning
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import poisoned_sets, poisoned_table, students
from ntk_privacy.method import Method, field
from ntk_privacy.reports import poisoned_plots

LATER = ("num_seeds", "methods", "control")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Source):
    """Images."""

    dataset: str = _image_sets.dataset_field("cifar10")
    num_train: int | None = field(None, "Training images; none is all.")
    num_test: int | None = field(None, "Test images; none is all.")

    def __post_init__(self):
        super().__post_init__()
        given = {"num_train": self.num_train, "num_test": self.num_test}
        _checks.at_least(1, **{k: v for k, v in given.items() if v is not None})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condensing(poisoned_sets.Config):
    """Condensation."""

    @classmethod
    def sizes(cls, preset: str, method: Method[Any]) -> dict[str, Any]:
        """Returns those of a preset: five condensations in the paper."""
        del method
        sizes = dataclasses.asdict(distillation.METHODS["dm"].configured(preset))
        return sizes | {"num_runs": 5 if preset == "paper" else 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Students(students.Config):
    """Networks trained on each condensed set; each decides about the target."""

    @classmethod
    def sizes(cls, preset: str, method: Method[Any]) -> dict[str, Any]:
        """Returns those of a preset: one decision per condensation in the paper."""
        del method
        small = dataclasses.asdict(students.small(students.Config)())
        return {"num_networks": 1} if preset == "paper" else small


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds(Folder):
    """The run."""

    num_seeds: int = field(5, "Targets, one per seed.")
    first_seed: int = field(0, "The first seed.")
    control: bool = field(
        True, "Condense the clean images, too: the attack's success without an attack."
    )
    workdir: str = field("runs/poison", "Folder of the results.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, num_seeds=self.num_seeds)
        _checks.at_least(0, first_seed=self.first_seed)


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    return {"control": "--attack=none"} if asked.method.name == "none" else {}


PROGRAM = Program(
    about="Poisons a training set, condenses it, and asks networks about a target.",
    methods=poisoning.METHODS,
    groups=lambda _: (Images, Condensing, Students, Seeds),
    default="direct",
    passed_over=_passed_over,
    flag="attack",
)


def load(asked: Asked[Any]) -> ImageSet:
    """Returns the images; with the paper's preset normalised by published constants."""
    data = asked.group(Images)
    whole = _image_sets.read(data)
    with _flags.usage(train="num_train"):
        images = whole.subset(num_train=data.num_train, num_test=data.num_test)
    return images.by_published() if asked.preset == "paper" else images


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs all seeds and methods; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or a flag does not fit
        the image set.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    if (known := _run.told(PROGRAM, asked, LATER)) is not None:
        return known
    images, seeds = load(asked), asked.group(Seeds)
    # All before the folder is touched: a seed that cannot be is told at once.
    with _flags.usage(train="num_train"):
        plan = poisoned_sets.plan(
            images,
            asked.method,
            asked.config,
            asked.group(Condensing),
            asked.group(Students),
            seeds=range(seeds.first_seed, seeds.first_seed + seeds.num_seeds),
            control=seeds.control,
            preset=asked.preset,
        )
    with _run.opened(PROGRAM, asked, LATER) as workdir:
        piece = Pieces(workdir, seeds, {"clean": "craft", "distill": "condense"})

        def show(name, scene, made, title):
            poisoned_plots.made(scene, made, workdir.path(f"{name}.png"), title=title)

        entries = poisoned_sets.study(plan, piece=piece, show=show)
        num_steps = asked.group(Condensing).num_steps
        poisoned_plots.losses(entries, workdir.path("losses.png"), num_steps=num_steps)
        results = {
            **{name: asked.flat()[name] for name in ("dataset", "attack", "preset")},
            "table": poisoned_table.table(entries, attack=asked.method.name),
            "runs": entries,
            "seconds": piece.seconds("craft", "condense", "evaluate", "compile"),
        }
        told = _run.finished(workdir, results)
        # After them: until then it is of the results that there are.
        workdir.write_json("config.json", asked.flat())
        return told


def main(asked: Asked[Any]) -> None:
    """Runs and prints the table."""
    print(poisoned_table.text(run(asked)["table"]))


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
