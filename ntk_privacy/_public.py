"""What a package shows of itself: public names alone, some found when asked for."""

import importlib
import sys
import threading
from collections.abc import Callable, Mapping

__all__ = ["found_when_asked", "names"]


# Threads that import parts which need one another would see them half made. Whoever
# holds an import's own lock meanwhile ends the wait, and Python's imports go on alone.
_ALONE, _SECONDS = threading.RLock(), 60.0


def names(package: str) -> Callable[[], list[str]]:
    """Returns `__dir__` of a package: what its `__all__` lists, for tab completion.

    Args:
      package: `__name__` of it.
    """

    def shown() -> list[str]:
        inside = vars(sys.modules[package])
        system = (name for name in inside if name.startswith("__"))
        return sorted({*inside["__all__"], *system})

    return shown


def found_when_asked(
    package: str, places: Mapping[str, str]
) -> Callable[[str], object]:
    """Returns `__getattr__` of a package: it imports a name at its first use (PEP 562).

    Args:
      package: `__name__` of it; it remembers what was found.
      places: module of each name; a module that ends with a colon has the name inside.

    Raises:
      AttributeError: by what is returned, for any other name.
    """

    def get(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place, inside, _ = places[name].partition(":")
        held = _ALONE.acquire(timeout=_SECONDS)
        try:
            module = importlib.import_module(place)
        finally:
            if held:
                _ALONE.release()
        value = getattr(module, name) if inside else module
        setattr(sys.modules[package], name, value)
        return value

    return get
