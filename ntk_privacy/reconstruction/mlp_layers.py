"""Reads the layers of a ReLU MLP from parameters as people have them.

Order and shapes matter, names do not: Flax (Linen, NNX) and PyTorch spell them
differently, and checkpoints come nested and in half precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.reconstruction import (
    layer_chain,
    layer_inversion,
    leaf_names,
    precision,
)

__all__ = ["OTHER", "read"]

OTHER = "use reconstruction.kkt.reconstruct, which optimises images and needs no rank"

_KERNELS, _BIASES = leaf_names.KERNELS, leaf_names.BIASES
_READ = (
    f"kernel and bias (names that are read: {', '.join(_KERNELS)} and "
    f"{', '.join(_BIASES)})"
)


class _Layer(NamedTuple):
    """name: for messages. kernel: (in, out). bias: (out,)."""

    name: str
    kernel: np.ndarray
    bias: np.ndarray


def _grouped(name: str, params: Params) -> dict[str, dict[str, np.ndarray]]:
    """Groups floating-point leaves by layer, in the order in which they are stored."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for names, leaf in leaf_names.leaves(params):
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, np.integer) or jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            continue  # counters and keys that checkpoints hold beside the weights
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name}{names} has dtype {leaf.dtype}: decoding takes real "
                f"floating-point weights; {OTHER}."
            )
        wide = np.asarray(leaf).astype(np.float64)
        groups.setdefault(".".join(names[:-1]), {})[names[-1]] = wide
    return groups


def _layer(name: str, leaves: dict[str, np.ndarray]) -> _Layer:
    """Reads one layer.

    Raises:
      ValueError: anything but one matrix and its bias.
    """
    kernels = [k for k in leaves if k in _KERNELS]
    biases = [k for k in leaves if k in _BIASES]
    if len(kernels) == 1 and len(leaves) == 1:
        raise ValueError(
            f"{name} holds {sorted(leaves)}, not {_READ}: without "
            f"its bias an image is known only up to its scale; {OTHER}."
        )
    if len(kernels) != 1 or len(biases) != 1 or len(leaves) != 2:
        raise ValueError(
            f"{name} holds {sorted(leaves)}, not {_READ}: decoding takes a "
            f"ReLU MLP of fully connected layers and nothing else; {OTHER}."
        )
    kernel, bias = leaves[kernels[0]], leaves[biases[0]]
    if kernel.ndim != 2:
        raise ValueError(
            f"{name}'s kernel has {kernel.ndim} axes instead "
            f"of 2: decoding takes fully connected layers only; {OTHER}."
        )
    if kernels[0] == "weight":  # PyTorch stores (out, in)
        kernel = kernel.T
    if bias.shape != (kernel.shape[1],):
        raise ValueError(
            f"{name}'s bias has shape {bias.shape} but its kernel {kernel.shape[1]} "
            "outputs: give one bias per unit."
        )
    return _Layer(name, kernel, bias)


def _ordered(
    name: str, groups: dict[str, dict[str, np.ndarray]], pixels: int | None
) -> list[_Layer]:
    """Sorts layers from the images to the outputs."""
    layers = [_layer(key or name, leaves) for key, leaves in groups.items()]
    if len(layers) < 3:
        raise ValueError(
            f"{name} holds {sorted(groups)}, not Dense_0 ... Dense_L with L of at "
            "least 2: decoding takes a ReLU MLP of two or more hidden layers; else "
            f"{OTHER}."
        )
    names = [layer.name for layer in layers]
    sizes = [(layer.kernel.shape[0], layer.kernel.shape[1]) for layer in layers]
    orders = layer_chain.orders(names, sizes, pixels)
    if len(orders) == 1:
        return [layers[i] for i in orders[0]]
    shapes = ", ".join(f"{layer.name} {layer.kernel.shape}" for layer in layers)
    free = layer_chain.orders(names, sizes, None)
    if not orders and pixels is not None and free:
        first = sizes[free[0][0]][0]
        raise ValueError(
            f"image_shape has {pixels} values but the first layer takes "
            f"{first}: give the shape of the training images."
        )
    told = "fit in no order" if not orders else "fit in more than one order"
    raise ValueError(
        f"The layers of {name} ({shapes}) {told}: decoding takes a ReLU MLP whose "
        f"names count its layers from the first to the last; else {OTHER}."
    )


def read(
    params_0: Params, params_t: Params, *, pixels: int | None
) -> tuple[layer_inversion.Layers, float]:
    """Returns the layers, on the host, and the unit roundoff of the stored weights.

    Args:
      params_0: kernels (in, out) or weights (out, in), and biases, of any nesting:
        Flax dicts and states, PyTorch's flat names, lists of layers.
      params_t: the same after training.
      pixels: values of an image; None takes the first layer's word.

    Raises:
      ValueError: not a ReLU MLP of two or more hidden layers with biases, or two
        networks that differ in structure or not at all.
    """
    trees = {"params_0": _grouped("params_0", params_0)}
    trees["params_t"] = _grouped("params_t", params_t)
    _checks.same_structure("params_0", trees["params_0"], "params_t", trees["params_t"])
    _checks.finite(**trees)
    _checks.differ("params_0", trees["params_0"], "params_t", trees["params_t"])
    before = _ordered("params_0", trees["params_0"], pixels)
    after = {key or "params_t": _layer(key, v) for key, v in trees["params_t"].items()}
    after = [after[layer.name] for layer in before]
    weights = [
        leaf
        for leaf in jax.tree.leaves((params_0, params_t))
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    kinds = [leaf.dtype for leaf in weights]
    roundoff = max(map(precision.roundoff, weights), default=2.0**-53)
    wide = max(jnp.finfo(k).bits for k in kinds) > 32 if kinds else True
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64) if wide else np.float32)
    pairs = list(zip(before, after, strict=True))
    layers = layer_inversion.Layers(
        [a.kernel.astype(dtype) for a in before],
        [a.bias.astype(dtype) for a in before],
        [b.kernel - a.kernel for a, b in pairs],
        [b.bias - a.bias for a, b in pairs],
    )
    _check_range(layers, dtype)
    hidden = (*layers.kernel_changes[:-1], *layers.bias_changes[:-1])
    if not any(np.any(change) for change in hidden):
        raise ValueError(
            f"Only {before[-1].name} moved: the other layers were not trained, or no "
            "unit was active, as on images that are all zero; nothing of the images is "
            "left to read."
        )
    if not np.any(layers.bias_changes[-2]):
        raise ValueError(
            f"The bias of {before[-2].name} did not move: the network was trained "
            f"without it, so an image is known only up to its scale; {OTHER}."
        )
    return layers, roundoff


def _check_range(layers: layer_inversion.Layers, dtype: np.dtype) -> None:
    """Raises ValueError where squares of the parameters or their change leave `dtype`.

    Decoding works with squares; those that are 0 or infinite have no eigenvalues.
    """
    told = np.finfo(dtype)
    low, high = 1e3 * float(told.tiny) ** 0.5, 1e-3 * float(told.max) ** 0.5
    both = {
        "parameters": (*layers.kernels, *layers.biases),
        "change of the parameters": (*layers.kernel_changes, *layers.bias_changes),
    }
    for name, arrays in both.items():
        largest = max(float(np.abs(array).max(initial=0)) for array in arrays)
        if not low < largest < high:
            raise ValueError(
                f"The largest of the {name} is {largest:.1e}, whose square leaves "
                f"{dtype.name}: use the scale that the network was trained at, or "
                "give both in float64."
            )
