"""The attack on a network: what it is told, and what becomes of it in flags' words."""

import dataclasses
import re
from typing import Any, Literal

import jax

from experiments._groups import Run
from experiments._program import Asked
from ntk_privacy import _checks, data
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import Reconstruction, candidates, evidence
from ntk_privacy.resume import Stage
from ntk_privacy.training.victim import Victim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What the attacker knows."""

    known_num_images: int | None = field(
        None,
        "The number of training images; none: it is read from the weights (algebraic, "
        "auto) or is N (the searches).",
    )

    def __post_init__(self):
        if self.known_num_images is not None:
            _checks.at_least(1, known_num_images=self.known_num_images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToldOfDomain(Told):
    """What the attacker knows."""

    auxiliary: Literal["none", "test_images"] = field(
        "none", "Images of the same domain that the decoding may start from."
    )


def told(method: Method[Any]) -> type[Told]:
    """Returns the group of what a method may be told."""
    return ToldOfDomain if "auxiliary" in method.wants else Told


def attack(
    asked: Asked[Any], dataset: data.Dataset, victim: Victim, stage: Stage
) -> Reconstruction:
    """Attacks a network that was trained on the dataset; messages name flags."""
    count = asked.group(Told).known_num_images
    domain = asked.flat().get("auxiliary", "none") == "test_images"
    found = asked.method.run(
        evidence.told(victim, dataset, num_images=count, auxiliary=domain),
        candidates.doubled(asked.config, count or len(dataset.x_train)),
        key=jax.random.fold_in(jax.random.key(1), asked.group(Run).seed),
        stage=stage,
    )
    reason = _in_flags(found.verdict.reason)
    return found._replace(
        message=_in_flags(found.message),
        verdict=found.verdict._replace(reason=reason),
    )


def _in_flags(message: str) -> str:
    """Names flags where the library names arguments and functions."""
    named = message.replace("reconstruction.kkt.reconstruct", "--method=kkt")
    return re.sub(r"(?<![-_\w])num_images", "--known_num_images", named)
