"""Training: in closed form for linearized networks, step by step for the others."""

from ntk_privacy.training import (
    adapter_victim,
    adversarial,
    classification,
    linearized,
    logistic,
    margin_victim,
    recipe,
    soft_labels,
    squeeze,
    subspace,
    train,
    trajectories,
    victim,
)

__all__ = [
    "adapter_victim",
    "adversarial",
    "classification",
    "linearized",
    "logistic",
    "margin_victim",
    "recipe",
    "soft_labels",
    "squeeze",
    "subspace",
    "train",
    "trajectories",
    "victim",
]
