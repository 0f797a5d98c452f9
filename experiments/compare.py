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

from ntk_privacy import _checks
from ntk_privacy.data.choice import Tested
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import timed
from ntk_privacy.distillation.timed import SUFFIX, Budget
from ntk_privacy.evaluation import JUDGES, students
from ntk_privacy.method import Method, field
from ntk_privacy.poisoning import Scene, scene
from ntk_privacy.reports.comparison import Comparison

from . import _flags, _run
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked, Program

Loaded = tuple[ImageSet, dict[str, Any], dict[int, Scene]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poison:
    """The poison."""

    rate: float = field(0.01, "Poison, as a share of the training set.")
    num_seeds: int = field(1, "Of the attacks: sets, networks and targets.")

    def __post_init__(self):
        _checks.positive(rate=self.rate)
        _checks.at_least(1, num_seeds=self.num_seeds)


def _at_budget(judge: str, **more: Any) -> Method[Any]:
    """Returns a judge, its networks trained as long with every preset."""
    record = JUDGES[judge]
    sizes = {"cpu": students.SMALL, "paper": students.SMALL | {"width": 128}}
    presets = {
        preset: functools.partial(record.config, **given, **more)
        for preset, given in sizes.items()
    }
    return dataclasses.replace(record, presets=presets)


def _check_names(asked: Asked[Any]) -> None:
    """Refuses names of no method, with a suffix or without; raises ValueError."""
    known = tuple(timed.methods())
    if asked.method.name == "attacks":
        known += tuple(name + SUFFIX for name in known)
        count = asked.group(Poison).num_seeds
        _flags.check_seeds(asked.group(Run).seed, num_seeds=count)
    for name in asked.group(Budget).methods:
        _checks.one_of(known, methods=name)


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    """Returns flags that are not read, each with the choice that makes it so."""
    names, out = asked.group(Budget).methods, {}
    if not any(hasattr(timed.method_of(name).config, "num_targets") for name in names):
        out["num_targets"] = "--methods that make no kernel"
    if not any(name.endswith(SUFFIX) for name in names):
        flat = "--methods without _curvature"
        out |= dict.fromkeys(("penalty_weight", "penalty_step"), flat)
    return out


def _load(asked: Asked[Any]) -> Loaded:
    """Returns images, configs by method, and what is poisoned by seed, all checked."""
    budget, flat = asked.group(Budget), asked.flat()
    shared = ("width", "rate", "penalty_weight", "penalty_step")
    given = {flag: flat[flag] for flag in shared if flag in flat}
    images = asked.group(Tested).part(published=asked.preset == "paper")
    with _flags.usage():
        configs = timed.at_budget(images, budget, asked.preset, **given)
        if asked.method.name != "attacks":
            return images, configs, {}
        # All at once: a seed that cannot be is told before anything is made.
        first, poison = asked.group(Run).seed, asked.group(Poison)
        seeds = range(first, first + poison.num_seeds)
        drawn = {s: scene(images, seed=s, rate=poison.rate) for s in seeds}
        return images, configs, drawn


def _work(job: Job, loaded: Loaded) -> Results:
    (images, configs, scenes), asked = loaded, job.asked
    comparison = Comparison(
        images=images,
        budget=asked.group(Budget),
        configs=configs,
        judge=asked.method,
        judging=asked.config,
        seed=job.seed,
        dataset=asked.group(Tested).dataset,
        loops=job,
        show=asked.group(Run).progress or None,
    )
    results = (
        comparison.by_attacks(scenes, rate=asked.group(Poison).rate)
        if scenes
        else comparison.by_architectures()
    )
    job.workdir.write_text("table.md", results["markdown"] + "\n")
    return results


def _kind(judge: Method[Any]) -> Kind:
    poison = (Poison,) if judge.name == "attacks" else ()
    return Kind(
        groups=(Budget, *poison, Tested, Run),
        defaults=lambda *_: {"dataset": "mnist", "workdir": "runs/compare"},
        passed_over=_passed_over,
        check=_check_names,
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
