"""What the attacker of a trained network is told, and the attack."""

import dataclasses
from typing import Any, Literal

import jax

from ntk_privacy import _checks
from ntk_privacy.data import Dataset, draws
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import (
    candidates,
    closed_units,
    evidence,
    initialisation,
    known_trunk,
)
from ntk_privacy.reconstruction.result import Reconstruction
from ntk_privacy.reconstruction.through_trunk import EmbedFn
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training.victim import Victim

__all__ = ["Told", "ToldOfDomain", "attack", "told"]


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
    """Returns the group of what a method may be told.

    Args:
      method: of `reconstruction.METHODS`.
    """
    return ToldOfDomain if "auxiliary" in method.wants else Told


def attack(
    method: Method[Any],
    config: object,
    dataset: Dataset,
    victim: Victim,
    told: Told,
    *,
    seed: int = 0,
    num_seeds: int | None = None,
    trunk: EmbedFn | None = None,
    stage: Stage = straight,
) -> tuple[Reconstruction, dict[str, Any]]:
    """Attacks a network that was trained on a dataset.

    Args:
      method: of `reconstruction.METHODS`.
      config: of the method.
      dataset: that the network was trained on: the attacker sees its shape and mean.
      victim: the network.
      told: of the dataset.
      seed: of the attack.
      num_seeds: of the network's weights, as `data.draws.keys` makes them, to guess
        from; None where the weights before training are known.
      trunk: below the network, if that is a head; its embeddings are read by closed
        units, and images searched for that have them.
      stage: runs the loops.

    Returns:
      What was found, and figures about the evidence.

    Raises:
      ValueError: the method does not take the network, or reads no heads.

    Example:
      >>> from ntk_privacy import reconstruction
      >>> from ntk_privacy.data import choice
      >>> from ntk_privacy.reconstruction import attacker, victims
      >>> digits, key = choice.TaskImages(num_train=4).load(seed=0)
      >>> victim = victims.Trained(width=256).train(digits, key)
      >>> auto = reconstruction.METHODS["auto"]
      >>> told = attacker.Told()
      >>> found, _ = attacker.attack(auto, auto.configured(), digits, victim, told)
      >>> found.images.shape
      (4, 8, 8, 1)
    """
    count = told.known_num_images
    key = jax.random.fold_in(jax.random.key(1), seed)
    if trunk is not None:
        _checks.one_of(("auto", "closed_units"), method=method.name)
        seen = known_trunk.embedded(dataset, trunk)
        known = evidence.told(victim, seen, num_images=count)
        units = config if isinstance(config, closed_units.Config) else None
        read = closed_units.from_evidence(
            known, units or closed_units.Config(), key=key, stage=stage
        )
        key = jax.random.key(seed)
        return known_trunk.pictured(read, trunk, dataset, key=key, stage=stage)
    domain = isinstance(told, ToldOfDomain) and told.auxiliary == "test_images"
    known = evidence.told(victim, dataset, num_images=count, auxiliary=domain)
    figures: dict[str, Any] = {}
    if num_seeds is not None:
        known, guess = initialisation.guessed(
            known, _drawn(victim), seeds=range(num_seeds), stage=stage
        )
        figures = {"evidence": "final_weights", "seed_found": guess._asdict()}
        del figures["seed_found"]["params_0"]
        if guess.seed is None:
            return initialisation.unknown(known, guess), figures
    found = method.run(
        known,
        candidates.doubled(config, count or len(dataset.x_train)),
        key=key,
        stage=stage,
    )
    return found, figures


def _drawn(victim: Victim):
    """Returns what draws the weights of a run of some seed, as anybody can."""
    dtype = jax.tree.leaves(victim.params_t)[0].dtype

    def init(seed):
        _, key = draws.keys(seed)
        return victim.model.init_params(key, victim.image_shape, dtype)

    return init
