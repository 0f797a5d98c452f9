"""`experiments.distill` with sre2l and cda: a student of soft labels, attacked."""

import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk_privacy.data import ImageSet
from ntk_privacy.distillation.squeezed import Config, keys
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evasion import threat_model
from ntk_privacy.reports import squeezed
from ntk_privacy.reports.workdir import Workdir

from . import _made
from ._groups import Run
from ._job import Job
from ._kinds import Kind, Results
from ._program import Asked
from ._soft_flags import Images, Students, defaults

_JUDGING = ("eps", "attack_steps", "num_queries", "attacks", "judged_on", "num_test")


class Loaded(NamedTuple):
    """Images, and eigenvalues to draw beside those of the student."""

    images: ImageSet
    beside: np.ndarray | None


def _load(asked: Asked[Config]) -> Loaded:
    """Returns what flags name; raises UsageError, OSError or ValueError."""
    # First: hours later it might be gone.
    beside = squeezed.baseline(asked.group(Students).baseline)
    data, published = asked.group(Images), asked.preset == "paper"
    return Loaded(data.part(published=published, judged_on=data.judged_on), beside)


def _judging(asked: Asked[Config]) -> dict[str, Any]:
    flat = asked.flat()
    flat |= {"eps": threat_model.bound(flat["eps"]), "attacks": [*flat["attacks"]]}
    return {name: flat[name] for name in _JUDGING}


def _covers(asked: Asked[Config], stored: Results, results: Results) -> bool:
    """Other attacks are other results."""
    del stored
    judging = results.get("judging") == _judging(asked)
    return judging or not asked.group(Students).evaluate


def _again(asked: Asked[Config], workdir: Workdir) -> None:
    """Draws the eigenvalues beside a baseline's."""
    beside = squeezed.baseline(asked.group(Students).baseline)
    known = workdir.read_json("results.json")
    if "accuracy" in known and beside is not None:
        squeezed.draw(workdir, beside, known)
        stored = workdir.read_json("config.json")
        stored["baseline"] = asked.group(Students).baseline
        workdir.write_json("config.json", stored)


def _work(job: Job, loaded: Loaded) -> Results:
    """Makes the set, trains on it and attacks."""
    (images, beside), asked, workdir = loaded, job.asked, job.workdir
    config, students, earlier = asked.config, asked.group(Students), workdir.earlier()
    made = squeezed.kept(config, workdir, images) if earlier else None
    seconds = earlier.get("seconds", {}) if made else {}
    made = made or squeezed.make(
        *(asked.method, config, images),
        key=jax.random.key(job.seed),
        loops=job,
        dataset=asked.group(Images).dataset,
    )
    model = made.model
    results: dict[str, Any] = {
        "method": asked.method.name,
        "regularizer": config.regularizer,
        "penalty_weight": config.penalty_weight,
        "preset": asked.preset,
        "num_images": len(images.x_train),
        "dataset": asked.group(Images).dataset,
        "num_test": len(images.x_test),
        "num_distilled": len(made.images),
        "width": config.width,
        "seed": job.seed,
        "judging": _judging(asked),
        "accuracy_squeezed": soft_students.accuracy(images, model, made.squeezed),
    }
    if students.evaluate:
        key = keys(jax.random.key(job.seed)).evaluate
        found = soft_students.attacked(
            *(images, model, made.student, students),
            key=key,
            stage=job.stage("evaluate"),
        )
        with job.timer("evaluate")():
            values = squeezed.eigenvalues(workdir, images, made, key)
        results |= {
            "accuracy": found.accuracy,
            "autoattack_left": found.left,
            "top_hessian_eigenvalue": {k: float(np.mean(v)) for k, v in values.items()},
        }
        squeezed.draw(workdir, beside, results)
    spent = job.seconds()
    spent["compile"] += seconds.get("compile", 0.0)
    # The largest of the checkpoints, made again in a moment.
    shutil.rmtree(workdir.checkpoint_folder / "relabel", ignore_errors=True)
    return results | {"seconds": seconds | spent}


def _later(asked: Asked[Config]) -> set[str]:
    read = {"eps"} if asked.config.eps_is_read else set()
    return {"evaluate", "baseline", *_JUDGING} - read


KIND = Kind(
    groups=(Images, Students, Run),
    defaults=defaults,
    load=_load,
    work=_work,
    timers=("evaluate",),
    told=_made.told,
    stages={"evaluate": "accuracy"},
    later=_later,
    covers=_covers,
    look=_again,
    files=("arrays.npz",),
)
