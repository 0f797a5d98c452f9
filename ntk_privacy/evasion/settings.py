"""The numbers of attacks by name: how many steps, queries, targets; and their records.

A record's `run(logits_fn, x, y, config, *, key, threat_model)` is the attack of its
file with the numbers of the config.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from ntk_privacy import _checks
from ntk_privacy.evasion.threat_model import Adversarial
from ntk_privacy.method import Method, field

__all__ = ["Both", "Queries", "Steps", "Targets", "named"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """Of an attack by steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ntk_privacy import evasion
      >>> def logits_fn(x):
      ...     light = x.mean(axis=(1, 2, 3))
      ...     return jnp.stack([0.5 - light, light - 0.5], axis=1)
      >>> x, y = jnp.full((1, 2, 2, 1), 0.45), jnp.zeros(1, int)
      >>> row, bound = evasion.METHODS["cw_guard"], evasion.ThreatModel("l2", 0.5)
      >>> config = row.configured(num_steps=2)
      >>> config
      Steps(num_steps=2)
      >>> given = {"key": jax.random.key(0), "threat_model": bound}
      >>> row.run(logits_fn, x, y, config, **given).success.tolist()
      [False]
    """

    num_steps: int = field(100, "Steps.")

    def __post_init__(self):
        _checks.at_least(1, num_steps=self.num_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets(Steps):
    """Of one that aims at several classes in turn."""

    num_targets: int = field(9, "Wrong classes, the likeliest first.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, num_targets=self.num_targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queries:
    """Of an attack without gradients."""

    num_queries: int = field(5000, "Queries of the model.")

    def __post_init__(self):
        _checks.at_least(1, num_queries=self.num_queries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Both(Steps):
    """Of attacks of both kinds in turn."""

    num_queries: int = field(5000, "Queries of the model.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, num_queries=self.num_queries)


Numbers = Steps | Queries


def _run(
    attack: Callable[..., Adversarial],
    fixed: Mapping[str, Any],
    logits_fn: Any,
    x: Any,
    y: Any,
    config: Numbers,
    **given: Any,
) -> Adversarial:
    return attack(logits_fn, x, y, **given, **fixed, **dataclasses.asdict(config))


def _enough(name: str, fewest: int, num_classes: int, config: Numbers) -> None:
    del config
    if num_classes < fewest:
        raise ValueError(
            f"{name} needs {fewest} classes but the model has {num_classes}: use "
            "apgd_ce."
        )


def named(
    name: str,
    about: str,
    attack: Callable[..., Adversarial],
    config: type[Numbers],
    *,
    numbers: Mapping[str, int] | None = None,
    fewest: int = 2,
    **fixed: Any,
) -> Method[Any]:
    """Returns the record of an attack.

    Args:
      name: as on the command line.
      about: what the name stands for.
      attack: of the file; its arguments are called as the fields of the config.
      config: its numbers; a class of this file.
      numbers: those that the name stands for, where they are not the class's.
      fewest: classes that a model needs; `check(num_classes, config)` refuses others.
      **fixed: further arguments of the attack.

    Example:
      >>> from ntk_privacy.evasion import pgd, settings
      >>> row = settings.named(
      ...     "pgd7", "7 steps", pgd.attack, settings.Steps, numbers={"num_steps": 7}
      ... )
      >>> row.configured()
      Steps(num_steps=7)
    """
    return Method(
        name=name,
        about=about,
        config=config,
        presets={"published": functools.partial(config, **(numbers or {}))},
        run=functools.partial(_run, attack, fixed),
        check=functools.partial(_enough, name, fewest),
    )
