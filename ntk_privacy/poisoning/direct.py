"""The direct attack: the target itself, with the adversarial label, is the poison.

Source: the RDM-DC paper, table 5. The number of copies is not given there; here it
fills every slot.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _class_checks
from ntk_privacy.method import Method
from ntk_privacy.poisoning.perturbation import Poisoned
from ntk_privacy.poisoning.rows import choose, replace
from ntk_privacy.poisoning.scenes import Scene
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config", "choose", "poison", "replace"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing to choose: the rate says how many.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, poisoning
      >>> images = data.load_set("digits").subset(num_train=400, num_test=50)
      >>> scene = poisoning.scene(images, seed=0, rate=0.005)
      >>> row = poisoning.METHODS["direct"]
      >>> config = row.configured()
      >>> row.run(scene, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """


def poison(
    target: Float[Array | np.ndarray, "h w d"], *, num_poisons: int
) -> Float[Array, "p h w d"]:
    """Returns copies of the target, to stand under the adversarial label.

    Args:
      target: the image to be misread.
      num_poisons: copies.

    Raises:
      ValueError: a batch of targets, bytes or NaN, or no copy.
    """
    _checks.at_least(1, num_poisons=num_poisons)
    if np.ndim(target) != 3:
        raise ValueError(
            f"target has shape {np.shape(target)}: give one image, (height, width, "
            "channels), and one call to each target."
        )
    target = jnp.asarray(target)
    _class_checks.images(target=target[None])
    return jnp.repeat(target[None], num_poisons, axis=0)


def _run(
    scene: Scene, config: Config, *, key: jax.Array, stage: Stage = straight
) -> Poisoned:
    del config, key, stage
    target = jnp.asarray(scene.target_image)
    return Poisoned.at_once(poison(target, num_poisons=len(scene.where)))


METHOD = Method(
    name="direct",
    about="puts the target itself among the training images (RDM-DC).",
    config=Config,
    presets={"cpu": Config, "paper": Config},
    run=_run,
)
