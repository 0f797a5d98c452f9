"""Flags of `experiments.distill` with methods of a task, beside the method's own."""

import dataclasses
from typing import Any

from experiments._groups import Data
from experiments._program import Asked
from ntk_privacy.evaluation import defence, transfer
from ntk_privacy.method import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images."""

    num_train: int | None = field(
        500,
        "Training images to distil, balanced over the classes of the task.",
        former=("num_images",),
    )


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
