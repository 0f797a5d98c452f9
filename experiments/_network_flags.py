"""Flags of networks trained on a set to regress on, and which of them are read."""

import dataclasses
from typing import Any

from ntk_privacy.evaluation import defence, transfer
from ntk_privacy.method import field

from ._program import Asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks(transfer.Config, defence.Config):
    """Networks trained on the set."""

    evaluate: bool = field(
        False,
        "Test accuracy at infinite width and of networks trained on the set, with "
        "linearized and with standard dynamics.",
    )
    attack: bool = field(
        False, "Attack a network trained on the set; compare with the original images."
    )


def fits(asked: Asked[Any]) -> None:
    """Raises ValueError where a set is no set to attack."""
    if asked.method.name == "full" and asked.group(Networks).attack:
        raise ValueError(
            "method='full' is no distilled set: attack a network trained on all "
            "images with experiments.reconstruct."
        )


def passed_over(asked: Asked[Any]) -> dict[str, str]:
    """Returns flags that are not read, each with the choice that makes it so."""
    flags, name = asked.group(Networks), asked.method.name
    attacked = flags.attack or name == "rkip_finite"
    trained = "no network that is trained"
    out = {}
    if not flags.evaluate:
        alone = "a set that is not evaluated"
        out |= dict.fromkeys(("num_runs", "num_finite_runs"), alone)
        if not hasattr(asked.config, "kernel"):
            out["kernel"] = f"--method={name}"
        if not (attacked and flags.dynamics == "standard"):
            out["max_train_steps"] = f"{trained} step by step"
        if not attacked:
            out["stop_loss"] = trained
        if not attacked and flags.kernel != "standard":
            out["width"] = "no network and --kernel=ntk"
    if not attacked:
        out["attack_steps"] = "no attack"
        out["dynamics"] = "no network that is attacked"
    return out
