"""Trains a network on real images and reads them back from its weights.

    python -m experiments.reconstruct --dataset=mnist --num_images=20 --width=1024

Each method has flags of its own: --method=kkt --help lists them.

Writes config.json, results.json, arrays.npz, curve.png and gallery.png to --workdir.
Killed at any moment and started again with the same --workdir, it goes on.
"""

import dataclasses
from typing import Any, Literal

import jax

from experiments import (
    _attacked,
    _flags,
    _network,
    _progress,
    _read_back,
    _run,
    _sweep,
    _task_images,
    _warned,
)
from experiments._groups import Run
from experiments._network import Network
from experiments._program import Asked, Program
from experiments._recovered import summary
from experiments._task_images import TaskImages
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

    Args:
      asked: of `PROGRAM`.

    Raises:
      UsageError: the folder belongs to another configuration, or the flags ask for
        what the image set does not have.
      OSError: a file is missing.
      ValueError: a file is damaged, or training or attack cannot go on.
    """
    if asked.group(ReconstructRun).sweep is not None:
        return _sweep.run(PROGRAM, asked, run)
    # Before the folder is touched: images that cannot be had leave nothing behind.
    with _run.precision(asked.group(Network).precision):
        whole = _run.is_whole(asked.group(Run).workdir)
        loaded = None if whole else _load(asked)
        return _run.resumed(
            PROGRAM,
            asked,
            lambda workdir: _work(asked, workdir, *loaded or _load(asked)),
        )


def _load(asked: Asked[Any]) -> tuple[data.Dataset, jax.Array]:
    dataset, key = _task_images.load(asked.group(TaskImages), asked.group(Run).seed)
    with _flags.usage():
        known = asked.group(_network.of(asked.method)).before(dataset)
        asked.method.check(known, asked.config)
    return dataset, key


def _work(
    asked: Asked[Any], workdir: Workdir, dataset: data.Dataset, key: jax.Array
) -> dict[str, Any]:
    flags, folder = asked.group(Run), workdir.checkpoint_folder
    network = asked.group(_network.of(asked.method))
    training, attacking = Timer(), Timer()
    stage = _progress.stage(flags, folder, training, description="train")
    victim = network.train(dataset, key, stage)
    with _warned.recorded() as told:
        stage = _progress.stage(flags, folder, attacking)
        found = _attacked.attack(asked, dataset, victim, stage)
    return {
        "warnings": told,
        "method": asked.method.name,
        "dataset": asked.group(TaskImages).dataset,
        "width": network.width,
        "num_images": len(dataset.x_train),
        "seed": flags.seed,
        **_read_back.written(workdir, dataset, victim, found, asked.method.name),
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
