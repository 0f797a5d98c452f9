"""Training-data privacy with neural tangent kernels: what leaks, what hides it."""

from ntk_privacy import (
    checkpoint,
    data,
    evaluation,
    kernels,
    kip,
    models,
    reconstruction,
    reports,
    rkip,
    training,
)

__all__ = [
    "checkpoint",
    "data",
    "evaluation",
    "kernels",
    "kip",
    "models",
    "reconstruction",
    "reports",
    "rkip",
    "training",
]
