"""Distillation: few synthetic images that train a network as many real ones do."""

from ntk_privacy.distillation import (
    cda,
    distribution_matching,
    gradient_matching,
    kip,
    rkip,
    robust_mean,
    sre2l,
    tesla,
    trajectory_matching,
)

__all__ = [
    "cda",
    "distribution_matching",
    "gradient_matching",
    "kip",
    "rkip",
    "robust_mean",
    "sre2l",
    "tesla",
    "trajectory_matching",
]
