"""Training: in closed form for linearized networks, full batch for the others."""

from ntk_privacy.training import (
    adversarial,
    classification,
    linearized,
    logistic,
    soft_labels,
    squeeze,
    subspace,
    train,
    trajectories,
)

__all__ = [
    "adversarial",
    "classification",
    "linearized",
    "logistic",
    "soft_labels",
    "squeeze",
    "subspace",
    "train",
    "trajectories",
]
