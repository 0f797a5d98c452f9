"""Condensation: few synthetic images that train a network as many real ones do."""

from ntk_privacy.condensation import (
    distribution_matching,
    gradient_matching,
    robust_mean,
    tesla,
    trajectory_matching,
)

__all__ = [
    "distribution_matching",
    "gradient_matching",
    "robust_mean",
    "tesla",
    "trajectory_matching",
]
