"""Training-data privacy with neural tangent kernels: what leaks, what hides it."""

from ntk_privacy import (
    checkpoint,
    condensation,
    curvature,
    data,
    evaluation,
    evasion,
    kernels,
    kip,
    models,
    poisoning,
    reconstruction,
    reports,
    rkip,
    training,
)

__all__ = [
    "checkpoint",
    "condensation",
    "curvature",
    "data",
    "evaluation",
    "evasion",
    "kernels",
    "kip",
    "models",
    "poisoning",
    "reconstruction",
    "reports",
    "rkip",
    "training",
]
