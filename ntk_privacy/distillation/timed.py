"""Methods that make a set in the same seconds, to be compared."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array

from ntk_privacy import _checks, distillation, resume
from ntk_privacy._types import Callback
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, kernel_classes, search, squeezed
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method, field

__all__ = [
    "CHUNK",
    "SUFFIX",
    "Budget",
    "TimedSet",
    "at_budget",
    "configured",
    "make",
    "matches_curvature",
    "method_of",
    "methods",
]

CHUNK = 1
"""Steps between looks at the clock: one of DC may take all the time there is."""

_LIMIT = 10**8

SUFFIX = "_curvature"
"""Adds the curvature regulariser (GUARD, arXiv:2403.10045) where a method has a place
for it: dc and dsa match the gradient of the regularised loss of the real images; of all
others the set is the same, and the networks that are trained on it are regularised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The comparison."""

    methods: tuple[str, ...] = field(
        ("kip", "rkip", "dm", "rdm", "dc", "dsa", "mtt", "tesla"),
        "Between commas: methods of `experiments.distill` that match classes, kip, "
        "rkip, rkip_noise; with --judge=attacks also with _curvature behind the name.",
    )
    images_per_class: int = field(1, "Distilled images of each class.")
    seconds: float = field(120.0, "Time of each method, compilation apart.")
    num_targets: int = field(
        1000, "Images that kip and rkip see, of which a kernel is made."
    )

    def __post_init__(self):
        _checks.named(methods=self.methods)
        _checks.positive(seconds=self.seconds)
        _checks.at_least(
            1, images_per_class=self.images_per_class, num_targets=self.num_targets
        )


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


def method_of(name: str) -> Method[Any]:
    """Returns the method of a name, with `SUFFIX` or without.

    Args:
      name: of `methods`, with `SUFFIX` or without.
    """
    return methods()[name.removesuffix(SUFFIX)]


def matches_curvature(name: str) -> bool:
    """Returns whether the method itself regularises: then its set is another.

    Args:
      name: of a method, with `SUFFIX` or without.
    """
    return name.endswith(SUFFIX) and hasattr(method_of(name).config, "penalty_weight")


def at_budget(
    images: ImageSet, budget: Budget, preset: str | None = None, **given: Any
) -> dict[str, Any]:
    """Returns the methods' configs at a budget, by name: see `configured`.

    Args:
      images: to distil.
      budget: of the comparison.
      preset: of what is not given.
      **given: flags, of which a method takes those that it has; those of the
        regulariser are for names with `SUFFIX`.

    Raises:
      ValueError: images are too few for a method, or for random ones beside it.
    """
    what = "what the sets are compared with"
    class_images.check_start(images, budget.images_per_class, what)
    own = {k: getattr(budget, k) for k in ("images_per_class", "num_targets")}
    flat = {k: v for k, v in given.items() if not k.startswith("penalty_")}
    found = {}
    for name in budget.methods:
        method, more = method_of(name), given if matches_curvature(name) else flat
        try:
            found[name] = configured(method, preset, **own, **more)
            method.check(images, found[name])
        except ValueError as error:
            told = f"num_train={len(images.x_train)}: {method.name}: {error}"
            raise ValueError(told) from error
    return found


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
    if bool(made.nonfinite):
        raise ValueError(search.lost(method.name, config, made))
    return TimedSet(made, search.num_steps(made), timer.run)
