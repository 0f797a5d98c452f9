"""What attacks within a bound share: their flags, the grid, and the resumable loop."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks, sharding
from ntk_privacy._types import Callback
from ntk_privacy.data import ArgumentError
from ntk_privacy.method import field
from ntk_privacy.models import ConvNet
from ntk_privacy.poisoning import perturbation
from ntk_privacy.poisoning.perturbation import CraftState, Poisoned
from ntk_privacy.poisoning.scenes import Scene
from ntk_privacy.resume import Stage

__all__ = ["SMALL", "Config", "check", "craft", "model", "whole_steps"]

# Steps between checkpoints.
CHUNK = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of an attack within a bound."""

    width: int = field(128, "Channels of the ConvNet.")
    bound: int = field(
        64,
        "Largest change of an intensity, /255; rounded down to the grid of digits.",
    )
    attack_steps: int = field(250, "Steps per restart.")
    num_restarts: int = field(8, "Restarts, of which the best is kept.")

    def __post_init__(self):
        _checks.in_range(1, 255, bound=self.bound)
        _checks.at_least(
            1,
            width=self.width,
            attack_steps=self.attack_steps,
            num_restarts=self.num_restarts,
        )


SMALL: dict[str, Any] = {"width": 32, "attack_steps": 150, "num_restarts": 1}
"""What two cores finish: as many steps as a bound of 128/255 needs from anywhere."""


def whole_steps(bound: int, levels: int, *, name: str = "the images") -> int:
    """Returns a bound in whole steps of the images' grid, which may be coarser.

    Args:
      bound: in 1/255.
      levels: steps from black to white.
      name: of the images, for the message.

    Raises:
      ArgumentError: it is below one step.

    Example:
      >>> from ntk_privacy.poisoning import bounded
      >>> bounded.whole_steps(64, 255), bounded.whole_steps(64, 16)
      (64, 4)
    """
    steps = bound * levels // 255
    if steps < 1:
        raise ArgumentError(
            f"bound={bound}/255 is below one step of {name}, which is 1/{levels}: use "
            f"at least {-(-255 // levels)}."
        )
    return steps


def check(scene: Scene, config: Config) -> None:
    """Raises ArgumentError where the bound is less than the images' grid.

    Args:
      scene: whose images have a grid.
      config: with the bound.

    Raises:
      ArgumentError: the bound is less than one step of the grid.
    """
    whole_steps(config.bound, scene.images.levels, name=scene.images.name)


def model(scene: Scene, config: Config) -> ConvNet:
    """Returns the network that the poison is made for.

    Args:
      scene: whose classes it tells apart.
      config: with the width.
    """
    return ConvNet(scene.images.num_classes, config.width)


def craft(
    scene: Scene,
    config: Config,
    poison: Callable[..., Poisoned],
    *,
    key: jax.Array,
    stage: Stage,
    chunk: int,
) -> Poisoned:
    """Runs an attack as a loop of a stage.

    Args:
      scene: to poison.
      config: of the attack.
      poison: `(images, **options)`, options being those of `perturbation.craft` and the
        augmentations.
      key: typed key.
      stage: runs the loop.
      chunk: steps between checkpoints.
    """
    levels = scene.images.levels
    clean = jnp.asarray(scene.clean)
    steps = whole_steps(config.bound, levels, name=scene.images.name)

    def go(state: CraftState, done: int, callback: Callback) -> Poisoned:
        del done  # the state knows
        return poison(
            clean,
            operations=scene.images.operations,
            key=key,
            bound=steps / levels,
            step=1 / levels,
            levels=levels,
            num_steps=config.attack_steps,
            num_restarts=config.num_restarts,
            state=state,
            chunk=chunk,
            callback=callback,
            mesh=sharding.all_devices(),
        )

    start = perturbation.init(clean, config.num_restarts)
    ran = stage("craft", start, go, config.attack_steps * config.num_restarts)
    return ran.result._replace(losses=ran.losses.astype(np.float32))
