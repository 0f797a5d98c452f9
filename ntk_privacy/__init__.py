"""Training-data privacy with neural tangent kernels: what leaks, what hides it."""

from ntk_privacy import (
    _former_names,
    auditing,
    checkpoint,
    curvature,
    data,
    distillation,
    evaluation,
    evasion,
    kernels,
    models,
    poisoning,
    reconstruction,
    reports,
    studies,
    training,
)

# As notebooks know them.
from ntk_privacy import distillation as condensation
from ntk_privacy._version import __version__ as __version__
from ntk_privacy.auditing import audit
from ntk_privacy.distillation import kip, rkip

_former_names.register()

__all__ = [
    "audit",
    "auditing",
    "checkpoint",
    "condensation",
    "curvature",
    "data",
    "distillation",
    "evaluation",
    "evasion",
    "kernels",
    "kip",
    "models",
    "poisoning",
    "reconstruction",
    "reports",
    "rkip",
    "studies",
    "training",
]
