"""Poisoning: training images changed within a bound so that one image is misread.

`distribution_matching.poison` attacks condensation, `gradient_matching.poison` training
itself; `direct.poison` puts the image among the training data. Labels never change.
`perturbation.craft` takes any other objective.
"""

from ntk_privacy.poisoning import (
    direct,
    distribution_matching,
    gradient_matching,
    perturbation,
)

__all__ = ["direct", "distribution_matching", "gradient_matching", "perturbation"]
