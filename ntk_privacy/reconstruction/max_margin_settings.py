"""How the max-margin attack searches: the released settings and random ones.

Source: Haim et al., NeurIPS 2022 (arXiv:2206.07758) and their released commands.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np
from jaxtyping import Array

from ntk_privacy import _checks

__all__ = ["BY_CHANNELS", "RELEASED", "Settings", "random_settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How the attack searches; the names of the paper are in brackets.

    Attributes:
      num_epochs: gradient steps on all candidates.
      init_scale: standard deviation of the initial pixels [s_x], in intensity.
      image_learning_rate: of the images [lr_x].
      lambda_min: multipliers below it are penalised [lam_min].
      sharpness: the ReLU's derivative is sigmoid(sharpness x) [alpha].
      lambda_learning_rate: of the multipliers.
      momentum: of both.
      lambda_weight: of the penalty for small multipliers.
    """

    num_epochs: int = 50_000
    init_scale: float
    image_learning_rate: float
    lambda_min: float
    sharpness: float
    lambda_learning_rate: float = 1e-4
    momentum: float = 0.9
    lambda_weight: float = 5.0

    def __post_init__(self):
        _checks.at_least(1, num_epochs=self.num_epochs)
        _checks.positive(
            init_scale=self.init_scale,
            image_learning_rate=self.image_learning_rate,
            sharpness=self.sharpness,
            lambda_learning_rate=self.lambda_learning_rate,
        )
        _checks.at_least(
            0, lambda_min=self.lambda_min, lambda_weight=self.lambda_weight
        )
        _checks.at_least(0, momentum=self.momentum)
        if self.momentum >= 1:
            raise ValueError(f"momentum={self.momentum} must be below 1.")


def _released(init_scale, image_learning_rate, lambda_min, sharpness) -> Settings:
    return Settings(
        init_scale=init_scale,
        image_learning_rate=image_learning_rate,
        lambda_min=lambda_min,
        sharpness=sharpness,
    )


RELEASED: Mapping[str, Settings] = MappingProxyType(
    {
        "cifar10_b9dfyspx": _released(8.857e-4, 0.5549, 0.4983, 19.14),
        "cifar10_k60fvjdy": _released(4.474e-3, 0.3462, 0.4936, 21.68),
        "mnist_kcf9bhbi": _released(3.498e-2, 3.052e-2, 0.4471, 149.9),
        "mnist_rbijxft7": _released(1.742e-3, 0.2821, 0.4153, 19.21),
    }
)
"""The four released runs: 500 training images, width 1000, 1000 candidates."""

BY_CHANNELS: Mapping[int, str] = MappingProxyType(
    {1: "mnist_rbijxft7", 3: "cifar10_b9dfyspx"}
)
"""Which of them is taken for images of so many channels, the first for any other."""


def random_settings(
    key: Array,
    count: int,
    *,
    num_epochs: int = 50_000,
    init_scale: tuple[float, float] = (1e-6, 0.1),
    image_learning_rate: tuple[float, float] = (1e-5, 1.0),
    lambda_min: tuple[float, float] = (0.01, 0.5),
    sharpness: tuple[float, float] = (10.0, 500.0),
) -> list[Settings]:
    """Draws settings for a random search from the published ranges.

    `init_scale` and `image_learning_rate` are log-uniform, the others uniform. All
    runs of one network and number of candidates share one compiled program.

    Args:
      key: typed key.
      count: number of settings.
      num_epochs: of each.
      init_scale: lower and upper end.
      image_learning_rate: lower and upper end.
      lambda_min: lower and upper end.
      sharpness: lower and upper end.

    Raises:
      ValueError: count below 1, or a range with its ends exchanged or not above 0.
    """
    _checks.at_least(1, count=count)
    ranges = {
        "init_scale": init_scale,
        "image_learning_rate": image_learning_rate,
        "lambda_min": lambda_min,
        "sharpness": sharpness,
    }
    uniform = np.asarray(jax.random.uniform(key, (count, len(ranges))), np.float64)
    drawn = {}
    for (name, (low, high)), u in zip(ranges.items(), uniform.T, strict=True):
        _checks.positive(**{name: low})
        if high < low:
            raise ValueError(f"{name}=({low}, {high}): give the lower end first.")
        if name in ("init_scale", "image_learning_rate"):
            drawn[name] = low * (high / low) ** u
        else:
            drawn[name] = low + (high - low) * u
    return [
        Settings(num_epochs=num_epochs, **{k: float(v[i]) for k, v in drawn.items()})
        for i in range(count)
    ]
