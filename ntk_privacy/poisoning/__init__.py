"""Poisoning: training images changed within a bound so that one image is misread.

`distribution_matching.poison` attacks condensation, `gradient_matching.poison` training
itself; `direct.poison` puts the image among the training data. Labels never change.
`perturbation.craft` takes any other objective.

`METHODS` has a record of each, of one contract: `run(scene, config, *, key, stage)`
returns `Poisoned`, what stands in the rows that `scene(images, seed=0, rate=0.01)`
draws.
"""

from ntk_privacy import _public
from ntk_privacy.method import by_name
from ntk_privacy.poisoning import (
    direct,
    distribution_matching,
    gradient_matching,
    perturbation,
    scenes,
    unpoisoned,
)
from ntk_privacy.poisoning.perturbation import Poisoned
from ntk_privacy.poisoning.scenes import Scene, scene

METHODS = by_name(
    direct.METHOD,
    distribution_matching.METHOD,
    gradient_matching.METHOD,
    unpoisoned.METHOD,
)

__all__ = [
    "METHODS",
    "Poisoned",
    "Scene",
    "direct",
    "distribution_matching",
    "gradient_matching",
    "perturbation",
    "scene",
    "scenes",
]

__dir__ = _public.names(__name__)
