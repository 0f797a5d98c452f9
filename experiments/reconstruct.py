"""Trains a network on real images and reads them back from its weights.

    python -m experiments.reconstruct --dataset=mnist --num_train=20 --width=1024

Each method has flags of its own: --method=kkt --help lists them.

Writes config.json, results.json, arrays.npz, curve.png and gallery.png to --workdir.
Killed at any moment and started again with the same --workdir, it goes on.
"""

import dataclasses
from typing import Any, Literal

import jax

from experiments import _attacked, _flags, _network, _run, _sweep
from experiments._groups import Run, TaskImages
from experiments._program import Asked, Program
from experiments._read_back import summary, written
from experiments._workdir import Workdir
from ntk_privacy import data
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import METHODS
from ntk_privacy.resume import Timer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructRun(Run):
    """The run."""

    workdir: str = field("runs/reconstruct", "Folder of the results.")
    sweep: Literal[*_sweep.SWEEPS] | None = field(
        None,
        "Limits study over images, widths, dynamics, sets and tasks: all of it, what "
        "two cores finish in an hour, or a taste of it on digits.",
    )


def _groups(method: Method[Any]) -> tuple[type, ...]:
    return (TaskImages, _network.of(method), _attacked.told(method), ReconstructRun)


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    sweep = asked.group(ReconstructRun).sweep
    if sweep is not None:
        return dict.fromkeys(_sweep.AXES, f"--sweep={sweep}")
    sized = getattr(asked.config, "num_candidates", None) is not None
    if sized and "num_images" not in asked.method.wants:
        return {"known_num_images": "--num_candidates"}
    return {}


PROGRAM = Program(
    about="Trains a network on real images and reconstructs them from its weights.",
    methods=METHODS,
    groups=_groups,
    default="auto",
    passed_over=_passed_over,
)


def run(asked: Asked[Any]) -> dict[str, Any]:
    """Runs one configuration, or a sweep of them; returns what results.json holds.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or training or attack cannot go on.
    """
    if asked.group(ReconstructRun).sweep is not None:
        return _sweep.run(asked, run)
    with _run.precision(asked.group(_network.Network).precision):
        return _run.resumed(asked, _load, _work)


def _load(asked: Asked[Any]) -> tuple[data.Dataset, jax.Array]:
    dataset, key = asked.group(TaskImages).load(asked.group(Run).seed)
    with _flags.usage():
        known = asked.group(_network.of(asked.method)).before(dataset)
        asked.method.check(known, asked.config)
    return dataset, key


def _work(
    asked: Asked[Any], workdir: Workdir, loaded: tuple[data.Dataset, jax.Array]
) -> dict[str, Any]:
    flags, folder, (dataset, key) = asked.group(Run), workdir.checkpoint_folder, loaded
    network = asked.group(_network.of(asked.method))
    training, attacking = Timer(), Timer()
    stage = _run.stage(flags, folder, training, description="train")
    victim = network.train(dataset, key, stage)
    with _run.recorded() as told:
        stage = _run.stage(flags, folder, attacking)
        found = _attacked.attack(asked, dataset, victim, stage)
    return {
        "warnings": told,
        "method": asked.method.name,
        "dataset": asked.group(TaskImages).dataset,
        "width": network.width,
        "num_images": len(dataset.x_train),
        "seed": flags.seed,
        **written(workdir, dataset, victim, found, asked.method.name),
        "seconds": {
            "train": training.run,
            "compile": training.compile + attacking.compile,
            "attack": attacking.run,
        },
    }


def main(asked: Asked[Any]) -> None:
    """Runs and prints the summary."""
    results, workdir = run(asked), asked.group(Run).workdir
    if "table" in results:
        print(f"table.json and the figures are in {workdir}")
        return
    print(summary(results))
    print(f"curve.png, gallery.png and results.json are in {workdir}")


if __name__ == "__main__":
    _flags.run(main, PROGRAM)
