"""The set of a run of `experiments.distill`: made once, then read back."""

from typing import Any

import jax
import numpy as np

from experiments import _run
from experiments._groups import Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kept
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.resume import Timer


def make(
    asked: Asked[Any],
    workdir: Workdir,
    images: ImageSet,
    key: jax.Array,
    timer: Timer,
    **about: np.ndarray,
) -> Distilled:
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
        return kept.of_arrays(stored)
    method, run, folder = asked.method, asked.group(Run), workdir.checkpoint_folder
    stage = _run.stage(run, folder, timer, description=method.name)
    experts = workdir.path("experts")
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
    told.parent.mkdir(parents=True, exist_ok=True)
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
