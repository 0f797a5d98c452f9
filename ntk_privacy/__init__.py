"""Training-data privacy with neural tangent kernels: what leaks, what hides it."""

from typing import TYPE_CHECKING

from ntk_privacy import _former_names, _public
from ntk_privacy._version import __version__ as __version__

if TYPE_CHECKING:
    from ntk_privacy import (
        auditing,
        checkpoint,
        compilation_cache,
        curvature,
        data,
        distillation,
        evaluation,
        evasion,
        hosts,
        kernels,
        method,
        models,
        poisoning,
        reconstruction,
        reports,
        resume,
        sharding,
        studies,
        training,
    )
    from ntk_privacy import distillation as condensation
    from ntk_privacy.auditing import audit
    from ntk_privacy.distillation import kip, rkip

__all__ = [
    "audit",
    "auditing",
    "checkpoint",
    "compilation_cache",
    "condensation",
    "curvature",
    "data",
    "distillation",
    "evaluation",
    "evasion",
    "hosts",
    "kernels",
    "kip",
    "method",
    "models",
    "poisoning",
    "reconstruction",
    "reports",
    "resume",
    "rkip",
    "sharding",
    "studies",
    "training",
]

__dir__ = _public.names(__name__)
# JAX and all that is built on it take seconds to import, and most work needs a part.
__getattr__ = _public.found_when_asked(
    __name__,
    {name: f"ntk_privacy.{name}" for name in __all__}
    | {"audit": "ntk_privacy.auditing:"},
)
_former_names.register()
