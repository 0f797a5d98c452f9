"""`experiments.distill` with sre2l and cda: a student of soft labels, attacked."""

import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _eigenvalues, _run, _squeezed
from experiments._groups import Run
from experiments._kinds import Kind
from experiments._program import Asked
from experiments._soft_flags import Images, StagedRun, Students
from experiments._workdir import Workdir
from ntk_privacy.data import ImageSet
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.squeezed import Config
from ntk_privacy.evaluation import soft_students
from ntk_privacy.evasion import threat_model
from ntk_privacy.resume import Timer

_JUDGING = ("eps", "attack_steps", "num_queries", "attacks", "judged_on", "num_test")


class Loaded(NamedTuple):
    """Images, and eigenvalues to draw beside those of the student."""

    images: ImageSet
    beside: np.ndarray | None


def _load(asked: Asked[Config]) -> Loaded:
    """Returns what flags name; raises UsageError, OSError or ValueError."""
    # First: hours later it might be gone.
    beside = _eigenvalues.baseline(asked.group(Students).baseline)
    data, published = asked.group(Images), asked.preset == "paper"
    return Loaded(data.part(published=published, judged_on=data.judged_on), beside)


def _judging(asked: Asked[Config]) -> dict[str, Any]:
    flat = asked.flat()
    flat |= {"eps": threat_model.bound(flat["eps"]), "attacks": [*flat["attacks"]]}
    return {name: flat[name] for name in _JUDGING}


def _covers(asked: Asked[Config], results: Mapping[str, Any]) -> bool:
    """Other attacks are other results."""
    judging = results.get("judging") == _judging(asked)
    return judging or not asked.group(Students).evaluate


def _again(asked: Asked[Config], workdir: Workdir) -> None:
    """Draws the eigenvalues beside a baseline's."""
    beside = _eigenvalues.baseline(asked.group(Students).baseline)
    known = workdir.read_json("results.json")
    if "accuracy" in known and beside is not None:
        _eigenvalues.draw(workdir, beside, known)
        stored = workdir.read_json("config.json")
        stored["baseline"] = asked.group(Students).baseline
        workdir.write_json("config.json", stored)


def _judged(
    asked: Asked[Config], workdir: Workdir, loaded: Loaded, earlier: dict[str, Any]
) -> dict[str, Any]:
    """Makes the set, trains on it and attacks; returns what results.json holds."""
    config, students, (images, beside) = asked.config, asked.group(Students), loaded
    run, evaluating = asked.group(Run), Timer()
    timers = {name: Timer() for name in _squeezed.LOOPS}
    made = _squeezed.kept(asked, workdir, images) if earlier else None
    seconds = earlier.get("seconds", {})
    if made is None:
        made = _squeezed.make(asked, workdir, images, timers)
        seconds = {name: timer.run for name, timer in timers.items()}
        seconds["compile"] = sum(timer.compile for timer in timers.values())
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
        "seed": run.seed,
        "judging": _judging(asked),
        "accuracy_squeezed": soft_students.accuracy(images, model, made.squeezed),
    }
    if students.evaluate:
        key = squeezed.keys(jax.random.key(run.seed)).evaluate
        stage = _run.stage(run, workdir.checkpoint_folder, evaluating)
        found = soft_students.attacked(
            images, model, made.student, students, key=key, stage=stage
        )
        networks = {"squeezed": made.squeezed, "student": made.student}
        with evaluating():
            values = _eigenvalues.measured(workdir, images, model, networks, key)
        results |= {
            "accuracy": found.accuracy,
            "autoattack_left": found.left,
            "top_hessian_eigenvalue": {k: float(np.mean(v)) for k, v in values.items()},
        }
        _eigenvalues.draw(workdir, beside, results)
    seconds |= {"evaluate": evaluating.run}
    seconds["compile"] += evaluating.compile
    # The largest of the checkpoints, made again in a moment.
    shutil.rmtree(workdir.checkpoint_folder / "relabel", ignore_errors=True)
    return results | {"seconds": seconds}


def _rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of a short table for the terminal."""
    told = [
        ("judged on", f"{results['num_test']} {results['judging']['judged_on']} images")
    ]
    shares = {"squeezed network, clean": results["accuracy_squeezed"]}
    shares |= {f"student, {k}": v for k, v in results.get("accuracy", {}).items()}
    told += [(name, f"{100 * share:.2f}%") for name, share in shares.items()]
    top = results.get("top_hessian_eigenvalue", {})
    return told + [(f"top eigenvalue, {name}", f"{v:.3g}") for name, v in top.items()]


KIND = Kind(
    groups=(Images, Students, StagedRun),
    stages={"evaluate": "accuracy"},
    sizes=("baseline", *_JUDGING),
    load=_load,
    judged=_judged,
    rows=_rows,
    covers=_covers,
    again=_again,
)
