"""No attack: the images as they are, what every attack is measured against."""

import dataclasses

import jax
import numpy as np

from ntk_privacy.method import Method
from ntk_privacy.poisoning.perturbation import Poisoned
from ntk_privacy.poisoning.scenes import Scene
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def _run(
    scene: Scene, config: Config, *, key: jax.Array, stage: Stage = straight
) -> Poisoned:
    del config, key, stage
    return Poisoned.at_once(np.asarray(scene.clean))


METHOD = Method(
    name="none",
    about="leaves the images as they are.",
    config=Config,
    presets={"cpu": Config, "paper": Config},
    run=_run,
)
