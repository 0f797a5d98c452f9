"""Compares methods of distillation at one budget: image set, images per class, seconds.

    python -m experiments.compare --dataset=mnist --images_per_class=1 --seconds=120 \
        --workdir=DIR

Every method runs for --seconds, compilation apart and the training of experts included;
networks of the architecture that condensed and of others are then trained on each set,
and on random real images. Writes config.json, results.json, table.md and, per method,
its images as .npz and .png to --workdir. With --attacks=all every set is judged by
attacks of three kinds instead: on networks trained on it, on the training images before
it is made, and on what it shows of them. Started again with the same --workdir it goes
on with the methods that are missing.
"""

import dataclasses
import functools
from typing import Any

from experiments import (
    _compare_flags,
    _compared,
    _compared_attacks,
    _flags,
    _image_sets,
    _run,
)
from experiments._compare_flags import Budget, Poison
from experiments._groups import Run, Tested
from experiments._program import Asked, Program
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images
from ntk_privacy.evaluation import JUDGES
from ntk_privacy.method import Method, field
from ntk_privacy.poisoning import scene


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Images(Tested):
    """Images."""

    dataset: str = _image_sets.dataset_field("mnist")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CompareRun(Run):
    """The run."""

    workdir: str = field("runs/compare", "Folder of the results.")


def _at_budget(name: str, judge: str, **more: Any) -> Method[Any]:
    """Returns a judge, its networks trained as long with every preset."""
    record = JUDGES[judge]
    sizes = {"num_networks": 3, "num_epochs": 100, "train_learning_rate": 0.1, **more}
    presets = {
        preset: functools.partial(record.config, width=width, **sizes)
        for preset, width in (("cpu", 32), ("paper", 128))
    }
    return dataclasses.replace(record, name=name, presets=presets)


def _groups(judge: Method[Any]) -> tuple[type, ...]:
    poison = (Poison,) if judge.name == "all" else ()
    return (Budget, *poison, _Images, _CompareRun)


def _known(asked: Asked[Any]) -> None:
    _compare_flags.check_names(
        asked.group(Budget).methods, curved=asked.method.name == "all"
    )


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    asked_for = [_compare_flags.method_of(name) for name in asked.group(Budget).methods]
    out = {}
    if not any(hasattr(method.config, "num_targets") for method in asked_for):
        out["num_targets"] = "--methods that make no kernel"
    if not any(_compare_flags.is_curved(name) for name in asked.group(Budget).methods):
        flat = "--methods without _curvature"
        out |= dict.fromkeys(("penalty_weight", "penalty_step"), flat)
    return out


PROGRAM = Program(
    about="Compares methods of distillation at one budget.",
    methods={
        "none": _at_budget("none", "architectures"),
        "all": _at_budget("all", "attacks", penalty_weight=10.0),
    },
    groups=_groups,
    default="none",
    passed_over=_passed_over,
    check=_known,
    flag="attacks",
)


LATER = ("methods", "num_seeds")
"""What may be asked for when a run goes on in its folder."""


def _later(asked: Asked[Any]) -> tuple[str, ...]:
    return tuple(name for name in LATER if name in asked.flat())


def _check(asked: Asked[Any], images: ImageSet) -> None:
    """Refuses what does not fit the images, before the folder is touched."""
    budget = asked.group(Budget)
    with _flags.usage():
        what = "what the sets are compared with"
        class_images.check_start(images, budget.images_per_class, what)
    for name in budget.methods:
        method = _compare_flags.method_of(name)
        try:
            method.check(images, _compare_flags.configured(asked, name))
        except ValueError as error:
            told = f"num_images={asked.group(Tested).num_images}: {method.name}"
            raise _flags.UsageError(f"{told}: {error}") from error


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs a comparison; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or a loss is not finite.
    """
    if (known := _run.told(PROGRAM, asked, _later(asked))) is not None:
        return known
    data, attacked = asked.group(Tested), asked.method.name == "all"
    images = _image_sets.part(
        data,
        num_train=data.num_images,
        num_test=data.num_test,
        published=asked.preset == "paper",
    )
    _check(asked, images)
    first = asked.group(Run).seed
    scenes = {}
    if attacked:
        # All at once: a seed that cannot be is told before anything is made.
        poison = asked.group(Poison)
        seeds = range(first, first + poison.num_seeds)
        with _flags.usage():
            scenes = {
                seed: scene(images, seed=seed, rate=poison.rate) for seed in seeds
            }
    with _run.opened(PROGRAM, asked, LATER) as workdir:
        if attacked:
            results = _compared_attacks.by_attacks(asked, workdir, images, scenes)
        else:
            results = _compared.by_architectures(asked, workdir, images)
        workdir.write_text("table.md", results["markdown"] + "\n")
        told = _run.finished(workdir, results)
        # After them: until then it is of the results that there are.
        workdir.write_json("config.json", asked.flat())
        return told


def main(asked: Asked[Any]) -> None:
    """Runs and prints the table."""
    print(run(asked)["markdown"])
    print(f"table.md and results.json are in {asked.group(Run).workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
