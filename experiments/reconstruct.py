"""Trains a network on real images and reads them back from its weights.

    python -m experiments.reconstruct --dataset=mnist --num_train=20 --width=1024

Each method has flags of its own: --method=kkt --help lists them.

Writes config.json, results.json, arrays.npz, curve.png and gallery.png to --workdir.
Killed at any moment and started again with the same --workdir, it goes on.
"""

import dataclasses
import re
from typing import Any, Literal

import jax

from ntk_privacy import data
from ntk_privacy.data.choice import TaskImages
from ntk_privacy.evaluation import limits
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import METHODS, Reconstruction, attacker, victims
from ntk_privacy.reports import reconstructions, summaries

from . import _flags, _run, _sweep
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked, Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructRun(Run):
    """The run."""

    sweep: Literal[*limits.STUDIES] | None = field(
        None,
        "Limits study over images, widths, dynamics, sets and tasks: all of it, what "
        "two cores finish in an hour, or a taste of it on digits.",
    )


def _defaults(method: Method[Any], preset: str) -> dict[str, Any]:
    """Returns what a preset says: published logistic runs go on for all epochs."""
    given: dict[str, Any] = {"workdir": "runs/reconstruct"}
    if "adapter" in method.wants:
        given["evidence"] = "adapter"
    if "recipe" in method.wants:
        given |= {"dynamics": "standard", "optimizer": "momentum"}
        given |= {"width": 256, "num_train": 16}
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
        known = asked.group(victims.network(asked.method)).before(dataset)
        known.needs(asked.method.name)
        asked.group(victims.network(asked.method)).trunk(dataset, asked.method.name)
        asked.method.check(known, asked.config)
    return dataset, key


def _work(job: Job, loaded: tuple[data.Dataset, jax.Array]) -> Results:
    (dataset, key), asked = loaded, job.asked
    network = asked.group(victims.network(asked.method))
    trunk = network.trunk(dataset, asked.method.name)
    victim = network.train(dataset, key, job.stage("train", description="train"))
    with _run.recorded() as warned:
        found, of_seed = attacker.attack(
            *(asked.method, asked.config, dataset, victim),
            asked.group(attacker.Told),
            seed=job.seed,
            num_seeds=network.num_seeds,
            trunk=trunk,
            stage=job.stage("attack"),
        )
    told = _naming_flags(found), asked.method.name
    return {
        "warnings": warned,
        "method": asked.method.name,
        "dataset": asked.group(TaskImages).dataset,
        "width": network.width,
        "num_images": len(dataset.x_train),
        "seed": job.seed,
        **reconstructions.written(
            job.workdir.folder, dataset, victim, *told, trunk=trunk
        ),
        **of_seed,
        "seconds": job.seconds(),
    }


def _naming_flags(found: Reconstruction) -> Reconstruction:
    """Names flags where the library names arguments and functions."""

    def named(message: str) -> str:
        message = message.replace("reconstruction.kkt.reconstruct", "--method=kkt")
        return re.sub(r"(?<![-_\w])num_images", "--known_num_images", message)

    verdict = found.verdict._replace(reason=named(found.verdict.reason))
    return found._replace(message=named(found.message), verdict=verdict)


def _told(asked: Asked[Any], results: Results) -> str:
    if "table" in results:
        return f"table.json and the figures are in {asked.group(Run).workdir}"
    return _run.placed(
        asked, summaries.reconstruction(results), "curve.png, gallery.png"
    )


def _kind(method: Method[Any]) -> Kind:
    return Kind(
        groups=(
            *(TaskImages, victims.network(method), attacker.told(method)),
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
