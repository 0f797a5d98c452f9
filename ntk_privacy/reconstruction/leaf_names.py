"""Names of layers in anybody's parameters: Flax, NNX, PyTorch, plain dicts."""

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["names", "natural"]


def names(path: Sequence[Any]) -> list[str]:
    """Returns the names on the way to a leaf; PyTorch's dotted keys are taken apart.

    Args:
      path: of `jax.tree_util.tree_leaves_with_path`.
    """
    found = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                found += str(getattr(entry, attribute)).split(".")
                break
    # NNX wraps leaves in variables.
    return found[:-1] if len(found) > 1 and found[-1] == "value" else found


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Returns what sorts layers_2 before layers_10.

    Args:
      name: of a layer.
    """
    parts = re.split(r"(\d+)", name)
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]
