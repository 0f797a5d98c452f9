"""Compares methods of distillation at one budget: image set, images per class, seconds.

    python -m experiments.compare --dataset=mnist --images_per_class=1 --seconds=120 \
        --workdir=DIR

Every method runs for --seconds, compilation apart and the training of experts included;
networks of the architecture that condensed and of others are then trained on each set,
and on random real images. Writes config.json, results.json, table.md and, per method,
its images as .npz and .png to --workdir. With --judge=attacks every set is judged by
attacks of three kinds instead: on networks trained on it, on the training images before
it is made, and on what it shows of them. Started again with the same --workdir it goes
on with the methods that are missing.
"""

import dataclasses
import functools
from typing import Any

from experiments import _compare_flags, _flags, _run
from experiments._compare_flags import Budget, Poison
from experiments._compared import Comparison
from experiments._groups import Run, Tested, dataset_field
from experiments._program import Asked, Program
from experiments._workdir import Workdir
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images
from ntk_privacy.evaluation import JUDGES, students
from ntk_privacy.method import Method, field
from ntk_privacy.poisoning import Scene, scene

Loaded = tuple[ImageSet, dict[int, Scene]]

LATER = ("methods", "num_seeds")
"""What may be asked for when a run goes on in its folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Images(Tested):
    """Images."""

    dataset: str = dataset_field("mnist")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CompareRun(Run):
    """The run."""

    workdir: str = field("runs/compare", "Folder of the results.")


def _at_budget(judge: str, **more: Any) -> Method[Any]:
    """Returns a judge, its networks trained as long with every preset."""
    record = JUDGES[judge]
    sizes = {"cpu": students.SMALL, "paper": students.SMALL | {"width": 128}}
    presets = {
        preset: functools.partial(record.config, **given, **more)
        for preset, given in sizes.items()
    }
    return dataclasses.replace(record, presets=presets)


def _groups(judge: Method[Any]) -> tuple[type, ...]:
    poison = (Poison,) if judge.name == "attacks" else ()
    return (Budget, *poison, _Images, _CompareRun)


PROGRAM = Program(
    about="Compares methods of distillation at one budget.",
    methods={
        "architectures": _at_budget("architectures"),
        "attacks": _at_budget("attacks", penalty_weight=10.0),
    },
    groups=_groups,
    default="architectures",
    passed_over=_compare_flags.passed_over,
    check=_compare_flags.check_names,
    flag="judge",
    former="attacks",
    former_names={"none": "architectures", "all": "attacks"},
)


def _load(asked: Asked[Any]) -> Loaded:
    """Returns images, and what is poisoned by seed; refuses what does not fit them."""
    budget, data = asked.group(Budget), asked.group(Tested)
    images = data.part(published=asked.preset == "paper")
    with _flags.usage():
        what = "what the sets are compared with"
        class_images.check_start(images, budget.images_per_class, what)
        for name in budget.methods:
            method = _compare_flags.method_of(name)
            try:
                method.check(images, _compare_flags.configured(asked, name))
            except ValueError as error:
                told = f"num_train={data.num_train}: {method.name}: {error}"
                raise ValueError(told) from error
        if asked.method.name != "attacks":
            return images, {}
        # All at once: a seed that cannot be is told before anything is made.
        first, poison = asked.group(Run).seed, asked.group(Poison)
        seeds = range(first, first + poison.num_seeds)
        return images, {s: scene(images, seed=s, rate=poison.rate) for s in seeds}


def _work(asked: Asked[Any], workdir: Workdir, loaded: Loaded) -> dict[str, Any]:
    images, scenes = loaded
    comparison = Comparison(asked, workdir, images)
    attacked = asked.method.name == "attacks"
    results = (
        comparison.by_attacks(scenes) if attacked else comparison.by_architectures()
    )
    workdir.write_text("table.md", results["markdown"] + "\n")
    return results


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs a comparison; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    return _run.resumed(asked, _load, _work, later=LATER)


def main(asked: Asked[Any]) -> None:
    """Runs and prints the table."""
    print(run(asked)["markdown"])
    print(f"table.md and results.json are in {asked.group(Run).workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
