"""LoRA factors as people have them, PEFT's or NNX's, as our `Adapter`.

Names say which matrices are A and B; shapes say how they lie, and to which layer they
belong.
"""

from typing import NamedTuple

import numpy as np

from ntk_privacy import _files
from ntk_privacy._types import Params
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.reconstruction import leaf_names
from ntk_privacy.reconstruction.foreign_mlp import Layout

__all__ = ["Factors", "of_first_layer", "read"]


class Factors(NamedTuple):
    """Factors of the first layer, in our form.

    Attributes:
      a: (d, r).
      b: (r, m).
      bias: (m,) of the layer, where it was trained with them.
      notes: what was inferred.
    """

    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray | None
    notes: tuple[str, ...]


def of_first_layer(
    found: Layout,
    after: Params,
    *,
    before: Params | None = None,
    scale: float = 1.0,
) -> tuple[Adapter, tuple[str, ...]]:
    """Returns the adapter of an MLP's first layer, and notes.

    Args:
      found: layout of the frozen network.
      after: factors after training, as `published.read` gives them.
      before: the same before it; None where they are not known.
      scale: of their product.

    Raises:
      ValueError: no factors that fit the first layer, or more than one pair.
    """
    late = read(found, after, name="adapter")
    early = None if before is None else read(found, before, name="adapter_before")
    made = Adapter(
        a_t=late.a,
        b_t=late.b,
        a_0=None if early is None else early.a,
        b_0=early.b if early is not None and np.any(early.b) else None,
        bias_t=late.bias,
        scale=scale,
    )
    return made, late.notes


def read(found: Layout, params: Params, *, name: str) -> Factors:
    """Returns the factors that fit the first layer.

    Args:
      found: layout of the frozen network.
      params: of the adapter.
      name: what messages call them.

    Raises:
      ValueError: see `of_first_layer`.
    """
    flat = {".".join(names): leaf for names, leaf in leaf_names.leaves(params)}
    pairs = _pairs(flat)
    d, m = found.sizes[:2]
    fitting = {}
    for layer, (a, b) in pairs.items():
        lies = _lying(a, b, d, m)
        if lies is not None:
            fitting[layer] = lies
    spot = found.spots[0]
    if len(fitting) > 1:
        fitting = {k: v for k, v in fitting.items() if _is_of(k, spot.name)}
    if len(fitting) != 1:
        shapes = ", ".join(
            f"{layer or name} {a.shape} and {b.shape}"
            for layer, (a, b) in pairs.items()
        )
        raise ValueError(
            f"{name} has {'several' if fitting else 'no'} lora_A and lora_B of the "
            f"first layer, whose kernel is ({d}, {m}) (found: {shapes or 'none'}): "
            "give the factors of the layer that takes the images."
        )
    ((layer, (a, b)),) = fitting.items()
    notes = (f"{name}: the factors of {layer or 'the first layer'}, of rank {len(b)}",)
    others = [k for k in pairs if k != layer]
    if others:
        told = _files.told_of(others)
        notes += (f"{name}: the factors of {told} are not read",)
    if found.rows is not None:
        a = a[found.rows]
    stems = (f"{layer}.bias", f"{layer}.base_layer.bias")
    bias = next((flat[k] for k in stems if k in flat), None)
    return Factors(a, b, bias, notes)


def _pairs(flat: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    halves: dict[str, dict[str, np.ndarray]] = {}
    for leaf, array in flat.items():
        layer, kind, _ = _split(leaf)
        if kind and array.ndim == 2:
            halves.setdefault(layer, {})[kind] = array
    return {k: (v["a"], v["b"]) for k, v in halves.items() if len(v) == 2}


def _split(leaf: str) -> tuple[str, str, str]:
    """Returns the layer, a or b, and what follows; "" where it is no factor."""
    parts = leaf.split(".")
    for i, part in enumerate(parts):
        if part.lower() in ("lora_a", "lora_b"):
            return ".".join(parts[:i]), part.lower()[-1], ".".join(parts[i + 1 :])
    return leaf, "", ""


def _lying(
    a: np.ndarray, b: np.ndarray, d: int, m: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (d, r) and (r, m), PEFT's transposes turned; None if they do not fit."""
    for left, right in ((a.T, b.T), (a, b)):
        if (len(left), right.shape[1]) == (d, m) and left.shape[1] == len(right):
            return left, right
    return None


def _is_of(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")
