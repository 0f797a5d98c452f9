"""Training: in closed form for linearized networks, step by step for the others."""

from ntk_privacy import _public
from ntk_privacy.training import (
    adapter_victim,
    adversarial,
    classification,
    gaussian_mechanism,
    linearized,
    logistic,
    margin_victim,
    recipe,
    shared_update,
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
    "gaussian_mechanism",
    "linearized",
    "logistic",
    "margin_victim",
    "recipe",
    "shared_update",
    "soft_labels",
    "squeeze",
    "subspace",
    "train",
    "trajectories",
    "victim",
]

__dir__ = _public.names(__name__)
