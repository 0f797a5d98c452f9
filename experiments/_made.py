"""The set of a run of `experiments.distill`: made once, then read back."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _condensed, _progress
from experiments._groups import Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.resume import Timer


class Made(NamedTuple):
    """images: normalised with classes for labels, less the mean with targets. losses:
    of every step. step_size: to train on them with, where it was learnt.
    """  # noqa: D205

    images: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    step_size: np.ndarray | None = None


def make(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    key: jax.Array,
    timer: Timer,
    **about: np.ndarray,
) -> Made:
    """Runs the method, or reads back what an earlier start of this run finished.

    Args:
      asked: the method and its config.
      workdir: keeps the checkpoints, and the set in arrays.npz.
      images: to distil.
      key: of the method.
      timer: of the distillation.
      **about: further entries of arrays.npz.

    Raises:
      ValueError: the loss is not finite, or what the method raises.
    """
    told = workdir.checkpoint_folder / "distilled.json"
    name = str(told.relative_to(workdir.folder))
    # Both: a set that was deleted, because it was damaged, is made again.
    if told.exists() and workdir.path("arrays.npz").exists():
        timer.run, timer.compile = workdir.read_json(name)["seconds"]
        stored = workdir.read_arrays("arrays.npz")
        if not {"images", "labels", "losses"} <= set(stored):
            raise ValueError(
                f"{workdir.path('arrays.npz')} holds {', '.join(stored)}, not images, "
                "labels and losses: delete it to make it again."
            )
        return Made(
            images=stored["images"],
            labels=stored["labels"],
            losses=stored["losses"],
            step_size=stored.get("step_size"),
        )
    method = asked.method
    stage = _progress.stage(
        asked.group(Run), workdir.checkpoint_folder, timer, description=method.name
    )
    found = method.run(
        images, asked.config, key=key, stage=stage, folder=workdir.path("experts")
    )
    arrays = {"images": np.asarray(found.images), "labels": np.asarray(found.labels)}
    if bool(found.nonfinite):
        workdir.write_arrays("last_good.npz", **arrays)
        steps = int(getattr(found.state, "steps", len(found.losses)))
        raise ValueError(
            f"{_condensed.lost(method.name, asked.config, steps)} The images before it "
            f"are in {workdir.path('last_good.npz')}."
        )
    if found.step_size is not None:
        arrays["step_size"] = np.asarray(found.state.step_size)
    arrays["losses"] = np.asarray(found.losses)
    workdir.write_arrays("arrays.npz", **about, **arrays)
    told.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(name, {"seconds": [timer.run, timer.compile]})
    return Made(**arrays)
