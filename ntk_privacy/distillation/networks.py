"""Networks trained on images of a task, and under attack: flags, and one for an attack.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.method import field
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import victim

__all__ = ["AttackedConfig", "NetworkConfig", "attacked_network"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(TaskConfig):
    """A network trained on such images."""

    width: int = field(4096, "Units of every hidden layer.")
    depth: int = field(2, "Hidden layers, of networks and of the kernel.")
    stop_loss: float = field(1e-10, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = field(5000, "Limit of iterative training.")

    def __post_init__(self):
        _checks.at_least(
            1,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
        )
        _checks.positive(stop_loss=self.stop_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackedConfig(NetworkConfig):
    """A network that is attacked.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> row = distillation.METHODS["random"]
      >>> some = row.run(images, row.configured(num_distilled=2), key=key)
      >>> judge = evaluation.JUDGES["defence"]
      >>> config = judge.configured(width=16, depth=1, attack_steps=2)
      >>> found = judge.run(images, some, config, key=key)
      >>> sorted(found.figures)
      ['auto', 'kernel_distance', 'kkt', 'train_loss']
    """

    dynamics: Literal["linearized", "standard"] = field(
        "linearized", "Training of the networks that are attacked."
    )
    attack_steps: int | None = field(
        None, "Steps of the attack's search; none is its own default."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.attack_steps is not None:
            _checks.at_least(1, attack_steps=self.attack_steps)


def attacked_network(
    x: Float[Array | np.ndarray, "n h w d"],
    y: Float[Array | np.ndarray, "n k"],
    config: AttackedConfig,
    *,
    key: Array,
    stage: Stage = straight,
) -> victim.Victim:
    """Returns a network trained on images, for an attack.

    Args:
      x: images less their mean.
      y: targets.
      config: of the network.
      key: typed key.
      stage: runs the training.
    """
    return victim.train(
        x,
        y,
        key=key,
        width=config.width,
        depth=config.depth,
        dynamics=config.dynamics,
        stop_loss=config.stop_loss,
        max_steps=config.max_train_steps,
        dtype=jnp.dtype(config.precision),
        stage=stage,
    )
