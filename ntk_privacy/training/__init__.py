"""Training: in closed form for linearized networks, full batch for the others."""

from ntk_privacy.training import (
    adversarial,
    classification,
    linearized,
    logistic,
    margin_victim,
    soft_labels,
    squeeze,
    subspace,
    train,
    trajectories,
    victim,
)

__all__ = [
    "adversarial",
    "classification",
    "linearized",
    "logistic",
    "margin_victim",
    "soft_labels",
    "squeeze",
    "subspace",
    "train",
    "trajectories",
    "victim",
]
