"""The set of a run of `experiments.distill`: made once, then read back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._groups import Run
from experiments._program import Asked
from experiments._workdir import Workdir
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled, Kept
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
        return _whole(stored)
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
            f"{lost(method.name, asked.config, steps)} The images before it "
            f"are in {workdir.path('last_good.npz')}."
        )
    if found.step_size is not None:
        arrays["step_size"] = np.asarray(found.state.step_size)
    arrays["losses"] = np.asarray(found.losses)
    workdir.write_arrays("arrays.npz", **about, **arrays)
    told.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(name, {"seconds": [timer.run, timer.compile]})
    return _whole(arrays)


def _whole(arrays: dict[str, np.ndarray]) -> Distilled:
    return Distilled(
        images=jnp.asarray(arrays["images"]),
        labels=jnp.asarray(arrays["labels"]),
        losses=arrays["losses"],
        state=Kept(step_size=arrays.get("step_size")),
        nonfinite=jnp.asarray(False),
    )


def lost(method: str, config: object, steps: int) -> str:
    """Returns what to do about a loss that is not finite.

    Args:
      method: its name.
      config: of the method.
      steps: that were done.
    """
    names = ("learning_rate", "step_size", "diag_reg")
    told = {name: f"{name}={getattr(config, name, None)}" for name in names}
    has = [name for name in names if hasattr(config, name)]
    rates = " or ".join(told[name] for name in has if name != "diag_reg")
    ridge = f", or raise {told['diag_reg']}" if "diag_reg" in has else ""
    return (
        f"The loss of {method} is not finite after {steps} steps: lower "
        f"{rates}{ridge}, in another --workdir."
    )
