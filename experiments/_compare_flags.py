"""What `experiments.compare` is asked for: methods, their names, and their budget."""

import dataclasses
from typing import Any

from experiments import _flags
from experiments._groups import Run
from experiments._program import Asked
from ntk_privacy import _checks
from ntk_privacy.distillation import timed
from ntk_privacy.method import Method, field

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poison:
    """The poison."""

    rate: float = field(0.01, "Poison, as a share of the training set.")
    num_seeds: int = field(1, "Of the attacks: sets, networks and targets.")

    def __post_init__(self):
        _checks.positive(rate=self.rate)
        _checks.at_least(1, num_seeds=self.num_seeds)


def check_names(asked: Asked[Any]) -> None:
    """Refuses names of no method, with a suffix or without; raises ValueError."""
    known = tuple(timed.methods())
    if asked.method.name == "attacks":
        known += tuple(name + SUFFIX for name in known)
    for name in asked.group(Budget).methods:
        _checks.one_of(known, methods=name)
    if asked.method.name == "attacks":
        count = asked.group(Poison).num_seeds
        _flags.check_seeds(asked.group(Run).seed, num_seeds=count)


def passed_over(asked: Asked[Any]) -> dict[str, str]:
    """Returns flags that are not read, each with the choice that makes it so."""
    names, out = asked.group(Budget).methods, {}
    if not any(hasattr(method_of(name).config, "num_targets") for name in names):
        out["num_targets"] = "--methods that make no kernel"
    if not any(name.endswith(SUFFIX) for name in names):
        flat = "--methods without _curvature"
        out |= dict.fromkeys(("penalty_weight", "penalty_step"), flat)
    return out


def method_of(name: str) -> Method[Any]:
    """Returns the method of a name, with a suffix or without."""
    return timed.methods()[name.removesuffix(SUFFIX)]


def matches_curvature(name: str) -> bool:
    """Returns whether the method itself regularises: then its set is another."""
    return name.endswith(SUFFIX) and hasattr(method_of(name).config, "penalty_weight")


def configured(asked: Asked[Any], name: str) -> Any:
    """Returns the config of a method at the budget."""
    flat = asked.flat()
    own = ["images_per_class", "num_targets", "width"]
    if asked.method.name == "attacks":
        curved = matches_curvature(name)
        own += ["rate", *(("penalty_weight", "penalty_step") if curved else ())]
    given = {flag: flat[flag] for flag in own}
    return timed.configured(method_of(name), asked.preset, **given)
