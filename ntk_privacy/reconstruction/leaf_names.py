"""Names of layers in anybody's parameters: Flax, NNX, PyTorch, plain dicts."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from ntk_privacy._types import Params

__all__ = ["BIASES", "KERNELS", "leaves", "names", "natural"]

KERNELS = ("kernel", "weight", "w")
"""Names of a dense layer's matrix; PyTorch's weight is (out, in)."""
BIASES = ("bias", "b")


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


def leaves(params: Params) -> list[tuple[list[str], Any]]:
    """Returns each leaf and the names on the way to it, in the order of storing.

    Args:
      params: any pytree.
    """
    found = []

    def walk(node, path):
        # jax.tree would sort the keys of a dict: the order of storing is evidence.
        if hasattr(node, "items"):
            for key, value in node.items():
                walk(value, [*path, *str(key).split(".")])
            return
        for more, leaf in jax.tree_util.tree_leaves_with_path(node):
            found.append((names([*map(jax.tree_util.DictKey, path), *more]), leaf))

    walk(params, [])
    return found


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Returns what sorts layers_2 before layers_10.

    Args:
      name: of a layer.
    """
    parts = re.split(r"(\d+)", name)
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]
