"""The set of a run of `experiments.distill`: made once, then read back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _run
from experiments._job import Job
from experiments._kinds import Results
from experiments._program import Asked
from ntk_privacy.data.choice import Data
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kept
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.reports import sets, summaries


class Loaded(NamedTuple):
    """Images; keys of the method, of networks, and of what they are set against."""

    images: ImageSet
    keys: jax.Array


def make(
    job: Job, images: ImageSet, key: jax.Array, called: str, **about: np.ndarray
) -> Distilled:
    """Runs the method, or reads back what an earlier start of this run finished.

    Args:
      job: the run, whose folder keeps the checkpoints, and the set in arrays.npz.
      images: to distil.
      key: of the method.
      called: what the seconds are called.
      **about: further entries of arrays.npz.

    Raises:
      ValueError: the loss is not finite, or what the method raises.
    """
    asked, workdir, timer = job.asked, job.workdir, job.timer(called)
    name = "checkpoints/distilled.json"
    # Both: a set that was deleted, because it was damaged, is made again.
    if workdir.path(name).exists() and workdir.path("arrays.npz").exists():
        timer.run, timer.compile = workdir.read_json(name)["seconds"]
        stored = workdir.read_arrays("arrays.npz")
        if not {"images", "labels", "losses"} <= set(stored):
            raise ValueError(
                f"{workdir.path('arrays.npz')} holds {', '.join(stored)}, not images, "
                "labels and losses: delete it to make it again."
            )
        return kept.of_arrays(stored)
    method, experts = asked.method, workdir.path("experts")
    stage = job.stage(called, description=method.name)
    found = method.run(images, asked.config, key=key, stage=stage, folder=experts)
    arrays = kept.arrays(found)
    if bool(found.nonfinite):
        workdir.write_arrays("last_good.npz", **arrays)
        steps = int(getattr(found.state, "steps", len(found.losses)))
        raise ValueError(
            f"{lost(method.name, asked.config, steps)} The images before it "
            f"are in {workdir.path('last_good.npz')}."
        )
    arrays |= {"losses": np.asarray(found.losses), **about}
    workdir.write_arrays("arrays.npz", **arrays)
    workdir.checkpoint_folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(name, {"seconds": [timer.run, timer.compile]})
    return kept.of_arrays(arrays)


def lost(method: str, config: object, steps: int) -> str:
    """Returns what to do about a loss that is not finite after so many steps."""
    names = ("learning_rate", "step_size", "diag_reg")
    told = {n: f"{n}={getattr(config, n)}" for n in names if hasattr(config, n)}
    ridge = f", or raise {told.pop('diag_reg')}" if "diag_reg" in told else ""
    return (
        f"The loss of {method} is not finite after {steps} steps: lower "
        f"{' or '.join(told.values())}{ridge}, in another --workdir."
    )


def draw(job: Job, images: ImageSet, made: Distilled, told: str) -> None:
    """Draws a set of classes, `told` what made it."""
    each, dataset = job.asked.config.images_per_class, job.asked.group(Data).dataset
    sets.draw(
        images,
        made,
        job.workdir.path("distilled.png"),
        columns=min(each, 10) if each > 1 else 5,
        title=f"{told}: {len(images.x_train)} images of {dataset} condensed to {each} "
        "of each class",
    )


def figures(job: Job, made: Distilled, nearest: Mapping[str, Any]) -> Results:
    """Returns what results.json says of every set; nearest: of the judge of copies."""
    return {
        "method": job.asked.method.name,
        "dataset": job.asked.group(Data).dataset,
        "num_distilled": len(made.images),
        "width": job.asked.flat()["width"],
        "seed": job.seed,
        "nonfinite": False,
        "nearest": nearest,
    }


def told(asked: Asked[Any], results: Results) -> str:
    """Returns a text for the terminal."""
    return _run.placed(asked, summaries.distillation(results), "distilled.png")
