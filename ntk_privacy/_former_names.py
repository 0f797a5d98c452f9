"""Modules by names that they had: what imports them by those goes on working."""

import importlib
import sys
from collections.abc import Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FORMER = {
    "ntk_privacy.condensation": "ntk_privacy.distillation",
    "ntk_privacy.kip": "ntk_privacy.distillation.kip",
    "ntk_privacy.rkip": "ntk_privacy.distillation.rkip",
    "ntk_privacy.training.coincident_targets": (
        "ntk_privacy.distillation.coincident_targets"
    ),
    "ntk_privacy.training.distillation": "ntk_privacy.distillation.search",
    "ntk_privacy.training.target_duals": "ntk_privacy.distillation.target_duals",
}


def _today(name: str) -> str | None:
    """Returns the name that a module has today, None where it is no former one."""
    for former, today in FORMER.items():
        if name == former or name.startswith(f"{former}."):
            return today + name.removeprefix(former)
    return None


class _Former(MetaPathFinder, Loader):
    """Finds the module itself, so that there is one of it by both names."""

    def find_spec(
        self,
        fullname: str,
        path: Iterable[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Returns how to import a former name."""
        del path, target
        return None if _today(fullname) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module that is meant in the place of an empty one."""
        today = _today(module.__name__)
        assert today is not None
        sys.modules[module.__name__] = importlib.import_module(today)


def register() -> None:
    """Lets `import` find every module of `FORMER`, and what is in a package of them."""
    # First, or a file of the package would be read again as another module.
    sys.meta_path.insert(0, _Former())
