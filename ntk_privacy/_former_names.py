"""Modules by names that they had: what imports them by those goes on working."""

import sys
from types import ModuleType

from ntk_privacy import distillation
from ntk_privacy.distillation import (
    coincident_targets,
    kip,
    rkip,
    search,
    target_duals,
)

FORMER: dict[str, ModuleType] = {
    "ntk_privacy.condensation": distillation,
    "ntk_privacy.kip": kip,
    "ntk_privacy.rkip": rkip,
    "ntk_privacy.training.coincident_targets": coincident_targets,
    "ntk_privacy.training.distillation": search,
    "ntk_privacy.training.target_duals": target_duals,
}


def register() -> None:
    """Lets `import` find every module of `FORMER`, and what is in a package of them."""
    for former, module in FORMER.items():
        sys.modules.setdefault(former, module)
        inside = f"{module.__name__}."
        for name, part in list(sys.modules.items()):
            if name.startswith(inside):
                sys.modules.setdefault(f"{former}.{name.removeprefix(inside)}", part)
