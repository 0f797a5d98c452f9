"""Sets for `experiments.compare`: every method distils for the same seconds."""

import dataclasses
import math
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._groups import Run
from experiments._progress import Progress
from experiments._workdir import Workdir
from ntk_privacy import distillation, resume
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kernel_classes, real, squeezed
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.distillation.search import Distilled, Kept
from ntk_privacy.method import Method

# A step of DC at many images per class may take all the time there is.
CHUNK = 1
_LIMIT = 10**8


class TimedSet(NamedTuple):
    """made: the set. steps and seconds: that it took, compilation apart."""

    made: Distilled
    steps: int = 0
    seconds: float = 0.0


def methods() -> dict[str, Method[Any]]:
    """Returns the methods that make classes of normalised images, no soft ones."""
    found = {
        name: method
        for name, method in distillation.METHODS.items()
        if not issubclass(method.config, TaskConfig | squeezed.Config)
    }
    return {method.name: method for method in kernel_classes.METHODS} | found


def configured(method: Method[Any], preset: str, **given: Any) -> Any:
    """Returns a method's config, but for its steps, of which there is no end.

    Args:
      method: of `methods`.
      preset: of what is not given.
      **given: flags, of which a method takes those that it has.
    """
    names = {entry.name for entry in dataclasses.fields(method.config)}
    own = {name: value for name, value in given.items() if name in names}
    return method.configured(preset, **own, num_steps=_LIMIT)


def make(
    method: Method[Any],
    config: object,
    images: ImageSet,
    key: jax.Array,
    *,
    seconds: float,
    run: Run,
    folder: pathlib.Path,
) -> TimedSet:
    """Runs a method until its time is over.

    Args:
      method: of `methods`.
      config: of `configured`.
      images: to distil, poisoned or not.
      key: typed key.
      seconds: of run time.
      run: whether to show progress.
      folder: of experts, for the methods that train some.

    Raises:
      ValueError: the loss is not finite.
    """
    timer, experts, total = resume.Timer(), folder / "experts", math.ceil(seconds)
    # Experts of a run that was killed would be free.
    shutil.rmtree(experts, ignore_errors=True)
    told = f"{method.name}, seconds"
    with timer(), Progress(total, description=told, show=run.progress or None) as bar:

        def watch(step, state, metrics):
            del step
            spent = timer.elapsed()
            bar(total if spent >= seconds else int(spent), state, metrics)

        stage = resume.limited(seconds, timer=timer, watch=watch)
        options = {"chunk": CHUNK, "folder": experts}
        made = method.run(images, config, key=key, stage=stage, **options)
    steps = int(getattr(made.state, "steps", len(made.losses)))
    if bool(made.nonfinite):
        raise ValueError(
            f"The loss of {method.name} is not finite after {steps} steps."
        )
    return TimedSet(made, steps, timer.run)


def drawn(images: ImageSet, images_per_class: int, key: jax.Array) -> TimedSet:
    """Returns as many real images, drawn blindly.

    Args:
      images: to draw from.
      images_per_class: of each class.
      key: typed key.
    """
    return TimedSet(real.of_classes(images, images_per_class=images_per_class, key=key))


def write(workdir: Workdir, name: str, one: TimedSet) -> None:
    """Keeps a set in a file.

    Args:
      workdir: of the run.
      name: of the file.
      one: the set.
    """
    noise = {} if one.made.noise is None else {"noise": one.made.noise}
    workdir.write_arrays(
        name,
        images=np.asarray(one.made.images),
        labels=np.asarray(one.made.labels),
        steps=one.steps,
        seconds=one.seconds,
        **noise,
    )


def read(workdir: Workdir, name: str) -> TimedSet:
    """Returns what `write` kept.

    Args:
      workdir: of the run.
      name: of the file.
    """
    stored = workdir.read_arrays(name)
    made = Distilled(
        images=jnp.asarray(stored["images"]),
        labels=jnp.asarray(stored["labels"]),
        losses=np.zeros(0),
        state=Kept(noise=stored.get("noise")),
        nonfinite=jnp.asarray(False),
    )
    return TimedSet(made, int(stored["steps"]), float(stored["seconds"]))
