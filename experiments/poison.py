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

from ntk_privacy import distillation, poisoning
from ntk_privacy.data.choice import Tested
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evaluation import poisoned_sets, poisoned_table, students
from ntk_privacy.method import Method, field
from ntk_privacy.reports import poisoned_plots
from ntk_privacy.reports.pieces import Pieces

from . import _flags, _run
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked, Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds(Run):
    """The run."""

    seed: int = field(0, "The first seed.", former=("first_seed",))
    num_seeds: int = field(5, "Targets, one per seed.")
    control: bool = field(
        True, "Condense the clean images, too: the attack's success without an attack."
    )

    def __post_init__(self):
        super().__post_init__()
        _flags.check_seeds(self.seed, num_seeds=self.num_seeds)


def _defaults(attack: Method[Any], preset: str) -> dict[str, Any]:
    """Returns those of DM; in the paper five condensations, one network for each."""
    del attack
    sizes = students.SMALL | {"num_runs": 1}
    sizes = {"num_networks": 1, "num_runs": 5} if preset == "paper" else sizes
    own = {"dataset": "cifar10", "workdir": "runs/poison"}
    return vars(distillation.METHODS["dm"].configured(preset)) | own | sizes


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    return {"control": "--attack=none"} if asked.method.name == "none" else {}


def load(asked: Asked[Any]) -> ImageSet:
    """Returns the images; with the paper's preset normalised by published constants."""
    return asked.group(Tested).part(published=asked.preset == "paper")


def _plan(asked: Asked[Any]) -> poisoned_sets.Plan:
    """Returns all that will be done: a seed that cannot be is told at once."""
    images, seeds = load(asked), asked.group(Seeds)
    with _flags.usage():
        return poisoned_sets.plan(
            images,
            asked.method,
            asked.config,
            asked.group(poisoned_sets.Config),
            asked.group(students.Config),
            seeds=range(seeds.seed, seeds.seed + seeds.num_seeds),
            control=seeds.control,
            preset=asked.preset,
        )


def _work(job: Job, plan: poisoned_sets.Plan) -> Results:
    asked, workdir = job.asked, job.workdir
    names = {"clean": "craft", "distill": "condense"}
    piece = Pieces(job, names)

    def show(name, scene, made, title):
        poisoned_plots.made(scene, made, workdir.path(f"{name}.png"), title=title)

    entries = poisoned_sets.study(plan, piece=piece, show=show)
    num_steps = asked.group(poisoned_sets.Config).num_steps
    poisoned_plots.losses(entries, workdir.path("losses.png"), num_steps=num_steps)
    return {
        **{name: asked.flat()[name] for name in ("dataset", "attack", "preset")},
        "table": poisoned_table.table(entries, attack=asked.method.name),
        "runs": entries,
        "seconds": piece.seconds("craft", "condense", "evaluate", "compile"),
    }


KIND = Kind(
    groups=(Tested, poisoned_sets.Config, students.Config, Seeds),
    defaults=_defaults,
    passed_over=_passed_over,
    load=_plan,
    work=_work,
    told=lambda _, results: poisoned_table.text(results["table"]),
    later=lambda _: ("num_seeds", "methods", "control"),
)
PROGRAM = Program(
    about="Poisons a training set, condenses it, and asks networks about a target.",
    methods=poisoning.METHODS,
    kind=lambda _: KIND,
    default="direct",
    flag="attack",
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
