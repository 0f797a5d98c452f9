"""Attacks by name, with the settings of published evaluations.

Sources: the evaluation of GUARD (arXiv:2403.10045) for pgd100, mim, cw_guard,
square_rescaled and autoattack_torchattacks10; AutoAttack (arXiv:2003.01690) for the
others but pgd, which is that of Madry et al. (arXiv:1706.06083).
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ntk_privacy import _checks
from ntk_privacy.evasion import (
    Adversarial,
    ThreatModel,
    apgd,
    autoattack,
    cw,
    fab,
    mim,
    pgd,
    square,
)
from ntk_privacy.evasion import task as tasks

__all__ = [
    "ATTACKS",
    "AttackFn",
    "Stage",
    "honest_name",
    "plan",
    "settings",
    "version_of",
]

AttackFn = Callable[..., Adversarial]
"""`(logits_fn, x, y, *, key, threat_model) -> Adversarial`.

Of one of your own, that images keep the threat model is looked at; what it calls a
success is believed.
"""

ATTACKS: Mapping[str, str] = {
    "pgd": "20 steps of eps / 4 from a random start",
    "pgd100": "100 steps of eps / 4 from a random start",
    "mim": "20 steps of eps with momentum 1, from the image itself",
    "cw": "l_2, 9 constants, 50 steps each; no bound unless norm is l2",
    "cw_binary": "l_2, 9 constants, up to 10000 steps each; no bound unless norm is l2",
    "cw_guard": "l_2, constant 1e-4 in torchattacks' form, 50 steps: next to nothing",
    "apgd_ce": "100 steps on the cross-entropy",
    "apgd_dlr": "100 steps on the difference of logits ratio; needs 3 classes",
    "apgd_t": "100 steps towards each of 9 classes; needs 4 classes",
    "fab": "100 steps towards the nearest boundary",
    "fab_t": "100 steps towards the boundary of each of 9 classes",
    "square": "5000 queries, no gradients",
    "square_rescaled": "the same, the schedule of 10000 queries squeezed into them",
    "autoattack": "apgd_ce, apgd_t, fab_t and square in turn: the standard",
    "autoattack_plus": "with 5 restarts, apgd_dlr and fab besides",
    "autoattack_rand": "for random models: apgd_ce and apgd_dlr over 20 draws",
    "autoattack_torchattacks10": "with the 10 steps that torchattacks has by default",
}
"""What each name stands for."""

_TARGETS = 9
_QUERIES = 5000
# Where it is not 100.
_STEPS = {
    **{"pgd": 20, "mim": 20, "cw": 50, "cw_binary": 10_000, "cw_guard": 50},
    "autoattack_torchattacks10": 10,
}
_FEWEST = {"apgd_dlr": 3, "apgd_t": 4}


class Stage(NamedTuple):
    """One attack over the data set.

    name: what was asked for. part: of it, such as "fab-t" of "autoattack", or "".
    run: an `AttackFn`. threat_model: that it keeps. within: whether that is the one
    asked for, so that it counts for the ensemble.
    """

    name: str
    part: str
    run: AttackFn
    threat_model: ThreatModel
    within: bool

    @property
    def label(self) -> str:
        """The name, and the part if there is one."""
        return f"{self.name}/{self.part}" if self.part else self.name


def settings(
    name: str, *, num_steps: int | None = None, num_queries: int = _QUERIES
) -> str:
    """Returns what a name stands for, and what of it was changed.

    Args:
      name: of `ATTACKS`.
      num_steps: see `plan`.
      num_queries: see `plan`.
    """
    changed = [f"{k}={v}" for k, v, _ in _changes(name, num_steps, num_queries)]
    told = ATTACKS[name]
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
    for. A name that is none of `ATTACKS` is returned as it is.

    Args:
      name: of `ATTACKS`, or of an attack of your own.
      num_steps: see `plan`.
      num_queries: see `plan`.
      shown: in its place, such as "AutoAttack".
    """
    shown = name if shown is None else shown
    if name not in ATTACKS:
        return shown
    changed = [
        f"{value} {what.removeprefix('num_')}"
        for what, value, _ in _changes(name, num_steps, num_queries)
    ]
    return f"{shown} ({', '.join(changed)})" if changed else shown


def version_of(name: str) -> str | None:
    """Returns the version of AutoAttack that a name stands for, None for others."""
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


def _cw_guard(*args, **options) -> Adversarial:
    with warnings.catch_warnings():
        # `plan` says it once, not for each batch.
        warnings.filterwarnings("ignore", message="CW misread nothing")
        return cw.attack(*args, form="torchattacks", constant=1e-4, **options)


def _attack(name: str, classes: int, num_steps: int | None, queries: int) -> AttackFn:
    steps = {} if num_steps is None else {"num_steps": num_steps}
    targets = min(_TARGETS, classes - 1)
    made: dict[str, tuple[AttackFn, dict[str, Any]]] = {
        "pgd": (pgd.attack, {"num_steps": 20, **steps}),
        "pgd100": (pgd.attack, {"num_steps": 100, **steps}),
        "mim": (mim.attack, {"num_steps": 20, **steps}),
        "cw": (cw.attack, {"form": "original", "num_steps": 50, **steps}),
        "cw_binary": (cw.attack, {"form": "original", **steps}),
        "cw_guard": (_cw_guard, steps),
        "apgd_ce": (apgd.attack, {"loss": "ce", **steps}),
        "apgd_dlr": (apgd.attack, {"loss": "dlr", **steps}),
        "apgd_t": (
            apgd.attack,
            {"loss": "targeted-dlr", "num_targets": targets, **steps},
        ),
        "fab": (fab.attack, {"num_targets": None, "stop_early": True, **steps}),
        "fab_t": (fab.attack, {"num_targets": targets, "stop_early": True, **steps}),
        "square": (square.attack, {"num_queries": queries}),
        "square_rescaled": (square.attack, {"num_queries": queries, "rescale": True}),
    }
    function, options = made[name]
    return functools.partial(function, **options)


def _changes(
    name: str, num_steps: int | None, num_queries: int
) -> list[tuple[str, int, bool]]:
    """Returns what of an attack is not as its name tells, and whether it is less."""
    version = version_of(name)
    found = []
    own = _STEPS.get(name, 100)
    if not name.startswith("square") and num_steps not in (None, own):
        found.append(("num_steps", num_steps, num_steps < own))
    asks = version not in (None, "rand") or name.startswith("square")
    if asks and num_queries != _QUERIES:
        found.append(("num_queries", num_queries, num_queries < _QUERIES))
    return found


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
      attacks: names of `ATTACKS`, or functions of your own by name.
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
        own = [
            Stage(n, "", functools.partial(_own, attack=f, name=n), threat_model, True)
            for n, f in attacks.items()
        ]
        return own, []
    stages: list[Stage] = []
    fewer: list[str] = []
    for name in attacks:
        _checks.one_of(tuple(ATTACKS), attacks=name)
        if list(attacks).count(name) > 1:
            raise ValueError(f"attacks names {name} twice: name it once.")
        if num_classes < _FEWEST.get(name, 2):
            raise ValueError(
                f"{name} needs {_FEWEST[name]} classes but the model has "
                f"{num_classes}: use apgd_ce."
            )
        version = version_of(name)
        if version is not None:
            parts = autoattack.stages(
                version, num_classes, num_steps=num_steps, num_queries=num_queries
            )
            stages += [
                Stage(name, p, functools.partial(_staged, stage=f), threat_model, True)
                for p, f in parts.items()
            ]
        else:
            run = _attack(name, num_classes, num_steps, num_queries)
            apart = name.startswith("cw") and threat_model.norm != "l2"
            allowed = threat_model
            if apart:
                allowed = dataclasses.replace(threat_model, norm="l2", eps=float("inf"))
            stages.append(Stage(name, "", run, allowed, not apart))
        aims = name in ("apgd_t", "fab_t") or version not in (None, "rand")
        if aims and num_classes <= _TARGETS:
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
        f"The model has {num_classes} classes, fewer than {_TARGETS + 1}: "
        f"{', '.join(fewer)} with {num_classes - 1} of {_TARGETS} targets{needs}.",
    ]


def _left_out(name: str, num_classes: int) -> list[str]:
    version = version_of(name)
    return [] if version is None else autoattack.left_out(version, num_classes)
