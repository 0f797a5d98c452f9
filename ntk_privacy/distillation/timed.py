"""Methods that make a set in the same seconds, to be compared."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array

from ntk_privacy import distillation, resume
from ntk_privacy._types import Callback
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import kernel_classes, squeezed
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method

__all__ = ["CHUNK", "TimedSet", "configured", "make", "methods"]

CHUNK = 1
"""Steps between looks at the clock: one of DC may take all the time there is."""

_LIMIT = 10**8


class TimedSet(NamedTuple):
    """made: the set. steps and seconds: that it took, compilation apart."""

    made: Distilled
    steps: int = 0
    seconds: float = 0.0


def methods() -> dict[str, Method[Any]]:
    """Returns those that make classes of normalised images, and no soft labels."""
    found = {
        name: method
        for name, method in distillation.METHODS.items()
        if not issubclass(method.config, TaskConfig | squeezed.Config)
    }
    return {method.name: method for method in kernel_classes.METHODS} | found


def configured(method: Method[Any], preset: str | None = None, **given: Any) -> Any:
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
    *,
    key: Array,
    seconds: float,
    folder: Path | None = None,
    timer: resume.Timer | None = None,
    watch: Callback | None = None,
) -> TimedSet:
    """Runs a method until its time is over.

    Args:
      method: of `methods`.
      config: of `configured`.
      images: to distil, poisoned or not.
      key: typed key.
      seconds: of run time, compilation apart.
      folder: of experts, for the methods that train some.
      timer: counts the seconds.
      watch: told of every step.

    Raises:
      ValueError: the loss is not finite.

    Example:
      >>> import jax
      >>> from ntk_privacy import data
      >>> from ntk_privacy.distillation import timed
      >>> images = data.load_set("digits").subset(num_train=300, num_test=50)
      >>> dm = timed.methods()["dm"]
      >>> config = timed.configured(dm, width=4, batch_size=4, images_per_class=1)
      >>> found = timed.make(dm, config, images, key=jax.random.key(0), seconds=0.01)
      >>> found.made.images.shape, found.steps > 0
      ((10, 8, 8, 1), True)
    """
    timer = timer or resume.Timer()
    stage = resume.limited(seconds, timer=timer, watch=watch)
    with timer():
        made = method.run(
            images, config, key=key, stage=stage, chunk=CHUNK, folder=folder
        )
    steps = int(getattr(made.state, "steps", len(made.losses)))
    if bool(made.nonfinite):
        raise ValueError(
            f"The loss of {method.name} is not finite after {steps} steps."
        )
    return TimedSet(made, steps, timer.run)
