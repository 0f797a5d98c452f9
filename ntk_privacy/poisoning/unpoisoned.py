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
    """Nothing to choose.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, poisoning
      >>> images = data.load_set("digits").subset(num_train=400, num_test=50)
      >>> scene = poisoning.scene(images, seed=0, rate=0.005)
      >>> row = poisoning.METHODS["none"]
      >>> config = row.configured()
      >>> row.run(scene, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """


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
