"""The network under attack, what the attacker is told, and the attack."""

import dataclasses
import re
from typing import Any, Literal

import jax

from experiments._groups import Run, keys
from experiments._program import Asked
from experiments._trained import Network, Trained
from ntk_privacy import _checks, data
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import (
    Reconstruction,
    candidates,
    closed_units,
    evidence,
    initialisation,
    known_trunk,
)
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.through_trunk import EmbedFn
from ntk_privacy.resume import Stage
from ntk_privacy.training import logistic, margin_victim
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Network):
    """The network, of max-margin training."""

    early_stop_loss: float = field(
        margin_victim.STOP_LOSS,
        "Mean logistic loss at which training ends; 0 is after all steps.",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(0, early_stop_loss=self.early_stop_loss)

    def before(self, dataset: data.Dataset) -> Evidence:
        """Returns what is known of the network before it is trained."""
        outputs = dataset.y_train.shape[1]
        network = logistic.network(self.width)
        return Evidence(
            network=dataclasses.replace(network, num_outputs=outputs),
            params_t={},
            image_shape=dataset.x_train.shape[1:],
        )

    def train(self, dataset: data.Dataset, key: jax.Array, stage: Stage) -> Victim:
        """Trains on the images; a finished training is read back."""
        return margin_victim.train(
            dataset.x_train,
            dataset.y_train,
            stop_loss=self.early_stop_loss,
            **self.common(key, stage),
        )


def network(method: Method[Any]) -> type[Trained] | type[Logistic]:
    """Returns the group of the network that a method is tried on."""
    return Logistic if "logistic" in method.wants else Trained


def told(method: Method[Any]) -> type[Told]:
    """Returns the group of what a method may be told."""
    return ToldOfDomain if "auxiliary" in method.wants else Told


def attack(
    asked: Asked[Any], dataset: data.Dataset, victim: Victim, stage: Stage
) -> tuple[Reconstruction, dict[str, Any]]:
    """Attacks a network that was trained on the dataset; messages name flags.

    Returns what was found, and entries of results.json about the evidence.
    """
    count, flags = asked.group(Told).known_num_images, asked.flat()
    domain = flags.get("auxiliary", "none") == "test_images"
    known = evidence.told(victim, dataset, num_images=count, auxiliary=domain)
    told: dict[str, Any] = {}
    if flags.get("evidence") == "head":
        key = jax.random.fold_in(jax.random.key(1), asked.group(Run).seed)
        return closed_units.METHOD.run(
            known, closed_units.Config(), key=key, stage=stage
        ), told
    if flags.get("evidence") == "final_weights":
        known, guess = initialisation.guessed(
            known, _drawn(victim), seeds=range(flags["guess_seeds"]), stage=stage
        )
        told = {"evidence": "final_weights", "seed_found": guess._asdict()}
        del told["seed_found"]["params_0"]
        if guess.seed is None:
            return initialisation.unknown(known, guess), told
    found = asked.method.run(
        known,
        candidates.doubled(asked.config, count or len(dataset.x_train)),
        key=jax.random.fold_in(jax.random.key(1), asked.group(Run).seed),
        stage=stage,
    )
    reason = _in_flags(found.verdict.reason)
    verdict = found.verdict._replace(reason=reason)
    return found._replace(message=_in_flags(found.message), verdict=verdict), told


def trunk(asked: Asked[Any], dataset: data.Dataset) -> EmbedFn | None:
    """Returns the trunk below a head that is attacked; None of other evidence."""
    flags = asked.flat()
    if flags.get("evidence") != "head":
        return None
    # The others search within an image's bounds, or by an image's pixels.
    _checks.one_of(("auto", "closed_units"), method=asked.method.name)
    _, *sizes = dataset.x_train.shape
    return known_trunk.named(flags["embed_fn"], (sizes[0], sizes[1], sizes[2]))


def _drawn(victim: Victim):
    """Returns what draws the weights of a run of some seed, as anybody can."""
    dtype = jax.tree.leaves(victim.params_t)[0].dtype

    def init(seed):
        return victim.model.init_params(keys(seed)[1], victim.image_shape, dtype)

    return init


def _in_flags(message: str) -> str:
    """Names flags where the library names arguments and functions."""
    named = message.replace("reconstruction.kkt.reconstruct", "--method=kkt")
    return re.sub(r"(?<![-_\w])num_images", "--known_num_images", named)
