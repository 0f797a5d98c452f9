"""What names of attacks stand for in an evaluation: stages, honest names, warnings.

The table of names is `evasion.METHODS`; here are the stages that a data set goes
through, and what is to be said where numbers are not those of the name.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ntk_privacy import _checks
from ntk_privacy.evasion import METHODS, Adversarial, ThreatModel, autoattack, cw
from ntk_privacy.evasion import task as tasks

__all__ = ["AttackFn", "Stage", "honest_name", "plan", "settings", "version_of"]

AttackFn = Callable[..., Adversarial]
"""`(logits_fn, x, y, *, key, threat_model) -> Adversarial`.

Of one of your own, that images keep the threat model is looked at; what it calls a
success is believed.
"""

_QUERIES = 5000
_AS_MANY = autoattack.TARGETS + 1
# They minimise the l_2 norm, whatever the bound.
_NEAREST = tuple(method.name for method in cw.METHODS)


class Stage(NamedTuple):
    """One attack over the data set.

    name: what was asked for. part: of it, such as "fab-t" of "autoattack", or "".
    run: an `AttackFn`. threat_model: that it keeps. within: whether that is the one
    asked for, so that it counts for the ensemble. listens: whether NaN logits on its
    way have to be listened for: an attack of the caller's own may tell of none.
    """

    name: str
    part: str
    run: AttackFn
    threat_model: ThreatModel
    within: bool
    listens: bool = False

    @property
    def label(self) -> str:
        """The name, and the part if there is one."""
        return f"{self.name}/{self.part}" if self.part else self.name


def settings(
    name: str, *, num_steps: int | None = None, num_queries: int = _QUERIES
) -> str:
    """Returns what a name stands for, and what of it was changed.

    Args:
      name: of `evasion.METHODS`.
      num_steps: see `plan`.
      num_queries: see `plan`.
    """
    changed = [f"{k}={v}" for k, v, _ in _changes(name, num_steps, num_queries)]
    told = METHODS[name].about
    return f"{told}; but with {' and '.join(changed)}" if changed else told


def honest_name(
    name: str,
    *,
    num_steps: int | None = None,
    num_queries: int = _QUERIES,
    shown: str | None = None,
) -> str:
    """Returns a name for tables, with what is not as the name promises in brackets.

    As `autoattack (20 steps, 300 queries)`; the name alone where all is as it stands
    for. A name that is none of `evasion.METHODS` is returned as it is.

    Args:
      name: of `evasion.METHODS`, or of an attack of your own.
      num_steps: see `plan`.
      num_queries: see `plan`.
      shown: in its place, such as "AutoAttack".
    """
    shown = name if shown is None else shown
    if name not in METHODS:
        return shown
    changed = [
        f"{value} {what.removeprefix('num_')}"
        for what, value, _ in _changes(name, num_steps, num_queries)
    ]
    return f"{shown} ({', '.join(changed)})" if changed else shown


def version_of(name: str) -> str | None:
    """Returns the version of AutoAttack that a name stands for, None for others.

    Args:
      name: of an attack, such as "autoattack_plus".
    """
    if name == "autoattack":
        return "standard"
    prefix = "autoattack_"
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _staged(logits_fn, x, y, *, key, threat_model, stage) -> Adversarial:
    task = tasks.prepare(logits_fn, x, y, key=key, threat_model=threat_model)
    found = stage(task, key=key, norm=threat_model.norm)
    return tasks.finish(task, found, key, norm=threat_model.norm)


def _own(logits_fn, x, y, *, key, threat_model, attack, name) -> Adversarial:
    """Runs an attack of the caller's own, whose images must keep the threat model."""
    found = attack(logits_fn, x, y, key=key, threat_model=threat_model)
    whole = isinstance(found, tuple) and len(found) == 4
    shapes = [getattr(part, "shape", None) for part in (found if whole else [None] * 4)]
    if shapes != [x.shape, *[(len(x),)] * 3]:
        raise ValueError(
            f"{name} returned {type(found).__name__} of shapes {shapes}: return an "
            f"evasion.Adversarial with images {x.shape} and three numbers for each."
        )
    images = np.asarray(found[0], np.float64)
    move = np.asarray(images - np.asarray(x, np.float64)).reshape(len(x), -1)
    order = {"linf": np.inf, "l2": 2}[threat_model.norm]
    far = float(np.linalg.norm(move, ord=order, axis=1).max())
    slack = 1e-6 * (threat_model.high - threat_model.low)
    low, high = threat_model.low - slack, threat_model.high + slack
    # NaN is no number within a bound.
    if not far <= threat_model.eps * (1 + 1e-4) + slack:
        raise ValueError(
            f"{name} returned images up to {far:.6g} ({threat_model.norm}) away, "
            f"beyond eps={threat_model.eps}: project them, or give the threat model "
            "that it keeps."
        )
    if images.min() < low or images.max() > high:
        raise ValueError(
            f"{name} returned images that span [{images.min():.6g}, "
            f"{images.max():.6g}], outside the box [{threat_model.low}, "
            f"{threat_model.high}]: clip them."
        )
    return Adversarial(*found)


def _config(name: str, num_steps: int | None, num_queries: int) -> Any:
    """Returns the numbers of an attack: those that are given and that it has."""
    names = {entry.name for entry in dataclasses.fields(METHODS[name].config)}
    given = {"num_steps": num_steps, "num_queries": num_queries}
    own = {k: v for k, v in given.items() if k in names and v is not None}
    return METHODS[name].configured(**own)


def _changes(
    name: str, num_steps: int | None, num_queries: int
) -> list[tuple[str, int, bool]]:
    """Returns what of an attack is not as its name tells, and whether it is less."""
    own = dataclasses.asdict(METHODS[name].configured())
    found = dataclasses.asdict(_config(name, num_steps, num_queries))
    return [(k, v, v < own[k]) for k, v in found.items() if v != own[k]]


def _stages(
    name: str,
    threat_model: ThreatModel,
    num_classes: int,
    num_steps: int | None,
    num_queries: int,
) -> list[Stage]:
    """Returns the stages of one name: several of AutoAttack's versions."""
    method, config = METHODS[name], _config(name, num_steps, num_queries)
    method.check(num_classes, config)
    version = version_of(name)
    if version is not None:
        parts = autoattack.stages(
            version, num_classes, num_steps=num_steps, num_queries=num_queries
        )
        return [
            Stage(name, p, functools.partial(_staged, stage=f), threat_model, True)
            for p, f in parts.items()
        ]
    if _aims(config):
        targets = min(config.num_targets, num_classes - 1)
        config = dataclasses.replace(config, num_targets=targets)
    run = functools.partial(method.run, config=config)
    if name in _NEAREST and threat_model.norm != "l2":
        free = dataclasses.replace(threat_model, norm="l2", eps=float("inf"))
        return [Stage(name, "", run, free, False)]
    return [Stage(name, "", run, threat_model, True)]


def _aims(config: object) -> bool:
    return hasattr(config, "num_targets")


def plan(
    attacks: Sequence[str] | Mapping[str, AttackFn],
    *,
    threat_model: ThreatModel,
    num_classes: int,
    num_steps: int | None = None,
    num_queries: int = 5000,
) -> tuple[list[Stage], list[str]]:
    """Returns the stages of attacks in order, and what there is to be said of them.

    Args:
      attacks: names of `evasion.METHODS`, or functions of your own by name.
      threat_model: what the attacker may do. CW minimises the l_2 norm: under an l_inf
        bound it runs without one, and does not count for the ensemble.
      num_classes: of the model: with fewer than ten, fewer targets are used.
      num_steps: of every attack by steps, instead of its own.
      num_queries: of Square.

    Raises:
      ValueError: no attack, an unknown or repeated name, a number out of range, or too
        few classes for a loss.
    """
    if isinstance(attacks, str):
        raise ValueError(  # noqa: TRY004  every fault of attacks is one
            f"attacks={attacks!r} is one name: give ({attacks!r},)."
        )
    _checks.at_least(1, num_attacks=len(attacks), num_queries=num_queries)
    _checks.at_least(2, num_classes=num_classes)
    if num_steps is not None:
        _checks.at_least(1, num_steps=num_steps)
    if isinstance(attacks, Mapping):
        for name in attacks:
            if "/" in name or not name:
                raise ValueError(f"attacks has the name {name!r}: use one without '/'.")
        own = functools.partial(functools.partial, _own)
        return [
            Stage(n, "", own(attack=f, name=n), threat_model, True, listens=True)
            for n, f in attacks.items()
        ], []
    stages: list[Stage] = []
    fewer: list[str] = []
    for name in attacks:
        _checks.one_of(tuple(METHODS), attacks=name)
        if list(attacks).count(name) > 1:
            raise ValueError(f"attacks names {name} twice: name it once.")
        stages += _stages(name, threat_model, num_classes, num_steps, num_queries)
        aims = _aims(METHODS[name].configured())
        if (aims or version_of(name) not in (None, "rand")) and num_classes < _AS_MANY:
            fewer.append(name)
    short = []
    for name in attacks:
        changes = _changes(name, num_steps, num_queries)
        less = [f"{what}={value}" for what, value, fewer_ in changes if fewer_]
        if less:
            short.append(f"{name} with {' and '.join(less)}")
    said = []
    if short:
        said.append(f"{', '.join(short)}: weaker than what the name stands for.")
    if "cw_guard" in attacks:
        said.append(
            "cw_guard: a constant of 1e-4 leaves the loss next to no weight, so that "
            "little is found whatever the model: cite cw, which searches the constant."
        )
    if not fewer:
        return stages, said
    lost = dict.fromkeys(p for n in fewer for p in _left_out(n, num_classes))
    needs = f", without {' and '.join(lost)}, which need more" * bool(lost)
    return stages, [
        *said,
        f"The model has {num_classes} classes, fewer than {_AS_MANY}: "
        f"{', '.join(fewer)} with {num_classes - 1} of {_AS_MANY - 1} targets{needs}.",
    ]


def _left_out(name: str, num_classes: int) -> list[str]:
    version = version_of(name)
    return [] if version is None else autoattack.left_out(version, num_classes)
