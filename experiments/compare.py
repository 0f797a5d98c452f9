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
from experiments._groups import Run
from experiments._job import Job
from experiments._kinds import Kind, Results
from experiments._program import Asked, Program
from ntk_privacy.data.choice import Tested
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images
from ntk_privacy.evaluation import JUDGES, students
from ntk_privacy.method import Method
from ntk_privacy.poisoning import Scene, scene

Loaded = tuple[ImageSet, dict[int, Scene]]


def _at_budget(judge: str, **more: Any) -> Method[Any]:
    """Returns a judge, its networks trained as long with every preset."""
    record = JUDGES[judge]
    sizes = {"cpu": students.SMALL, "paper": students.SMALL | {"width": 128}}
    presets = {
        preset: functools.partial(record.config, **given, **more)
        for preset, given in sizes.items()
    }
    return dataclasses.replace(record, presets=presets)


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


def _work(job: Job, loaded: Loaded) -> Results:
    images, scenes = loaded
    comparison = Comparison(job, images)
    attacked = job.asked.method.name == "attacks"
    results = (
        comparison.by_attacks(scenes) if attacked else comparison.by_architectures()
    )
    job.workdir.write_text("table.md", results["markdown"] + "\n")
    return results


def _kind(judge: Method[Any]) -> Kind:
    poison = (Poison,) if judge.name == "attacks" else ()
    return Kind(
        groups=(Budget, *poison, Tested, Run),
        defaults=lambda *_: {"dataset": "mnist", "workdir": "runs/compare"},
        passed_over=_compare_flags.passed_over,
        check=_compare_flags.check_names,
        load=_load,
        work=_work,
        told=lambda asked, results: _run.placed(asked, results["markdown"], "table.md"),
        later=lambda _: ("methods", "num_seeds"),
    )


PROGRAM = Program(
    about="Compares methods of distillation at one budget.",
    methods={
        "architectures": _at_budget("architectures"),
        "attacks": _at_budget("attacks", penalty_weight=10.0),
    },
    kind=_kind,
    default="architectures",
    flag="judge",
    former={("attacks", "none"): "architectures", ("attacks", "all"): "attacks"},
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
