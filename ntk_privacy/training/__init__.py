"""Training: in closed form for linearized networks, full batch for the others."""

from ntk_privacy.training import (
    classification,
    linearized,
    logistic,
    subspace,
    train,
    trajectories,
)

__all__ = [
    "classification",
    "linearized",
    "logistic",
    "subspace",
    "train",
    "trajectories",
]
