"""Trains a network on real images and reads them back from its weights.

    python -m experiments.reconstruct --dataset=mnist --num_train=20 --width=1024

Each method has flags of its own: --method=kkt --help lists them.

Writes config.json, results.json, arrays.npz, curve.png and gallery.png to --workdir.
Killed at any moment and started again with the same --workdir, it goes on.
"""

import dataclasses
from typing import Any, Literal

import jax

from experiments import _attacked, _flags, _run, _sweep
from experiments._groups import Run, TaskImages
from experiments._job import Job
from experiments._kinds import Kind, Results
from experiments._program import Asked, Program
from experiments._read_back import written
from ntk_privacy import data
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import METHODS, known_trunk
from ntk_privacy.reports import summaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructRun(Run):
    """The run."""

    sweep: Literal[*_sweep.SWEEPS] | None = field(
        None,
        "Limits study over images, widths, dynamics, sets and tasks: all of it, what "
        "two cores finish in an hour, or a taste of it on digits.",
    )


def _defaults(method: Method[Any], preset: str) -> dict[str, Any]:
    """Returns what a preset says: published logistic runs go on for all epochs."""
    given: dict[str, Any] = {"workdir": "runs/reconstruct"}
    if "logistic" in method.wants and preset == "paper":
        given["early_stop_loss"] = 0.0
    return given


def _passed_over(asked: Asked[Any]) -> dict[str, str]:
    sweep = asked.group(ReconstructRun).sweep
    if sweep is not None:
        return dict.fromkeys(_sweep.AXES, f"--sweep={sweep}")
    sized = getattr(asked.config, "num_candidates", None) is not None
    if sized and "num_images" not in asked.method.wants:
        return {"known_num_images": "--num_candidates"}
    return {}


def _load(asked: Asked[Any]) -> tuple[data.Dataset, jax.Array]:
    dataset, key = asked.group(TaskImages).load(asked.group(Run).seed)
    with _flags.usage():
        known = asked.group(_attacked.network(asked.method)).before(dataset)
        _attacked.trunk(asked, dataset)
        asked.method.check(known, asked.config)
    return dataset, key


def _work(job: Job, loaded: tuple[data.Dataset, jax.Array]) -> Results:
    (dataset, key), asked = loaded, job.asked
    network = asked.group(_attacked.network(asked.method))
    trunk, seen = _attacked.trunk(asked, dataset), dataset
    if trunk is not None:
        seen = known_trunk.embedded(dataset, trunk)
    victim = network.train(seen, key, job.stage("train", description="train"))
    with _run.recorded() as told:
        found, of_seed = _attacked.attack(asked, seen, victim, job.stage("attack"))
        if trunk is not None:
            found, of_seed = known_trunk.pictured(
                found, trunk, dataset, key=jax.random.key(job.seed),
                stage=job.stage("images"),
            )  # fmt: skip
    return {
        "warnings": told,
        "method": asked.method.name,
        "dataset": asked.group(TaskImages).dataset,
        "width": network.width,
        "num_images": len(dataset.x_train),
        "seed": job.seed,
        **written(job.workdir, dataset, victim, found, asked.method.name, seen),
        **of_seed,
        "seconds": job.seconds(),
    }


def _told(asked: Asked[Any], results: Results) -> str:
    if "table" in results:
        return f"table.json and the figures are in {asked.group(Run).workdir}"
    return _run.placed(
        asked, summaries.reconstruction(results), "curve.png, gallery.png"
    )


def _kind(method: Method[Any]) -> Kind:
    return Kind(
        groups=(
            *(TaskImages, _attacked.network(method), _attacked.told(method)),
            ReconstructRun,
        ),
        defaults=_defaults,
        passed_over=_passed_over,
        load=_load,
        work=_work,
        grid=_sweep.run,
        told=_told,
    )


PROGRAM = Program(
    about="Trains a network on real images and reconstructs them from its weights.",
    methods=METHODS,
    kind=_kind,
    default="auto",
)
run, main = _run.run, _run.main

if __name__ == "__main__":
    _flags.run(main, PROGRAM.parse)
