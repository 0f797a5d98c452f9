"""Finds the first dense layer in parameters of any structure, before and after.

What stands above it is not looked at: it may be anything.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_privacy import _checks
from ntk_privacy._types import Params
from ntk_privacy.models import published
from ntk_privacy.reconstruction import leaf_names, precision

__all__ = ["Dense", "FirstLayer", "candidates", "dense", "read"]

_KERNELS, _BIASES = leaf_names.KERNELS, leaf_names.BIASES


class FirstLayer(NamedTuple):
    """Weights of the first layer, in float64.

    Attributes:
      name: where it stands in the parameters.
      kernel_0: (pixels, units) before training.
      kernel_t: after it.
      bias_0: before; None where the layer has none.
      bias_t: after; None where the layer has none.
      roundoff: unit roundoff of the stored weights.
    """

    name: str
    kernel_0: Float[np.ndarray, "d units"]
    kernel_t: Float[np.ndarray, "d units"]
    bias_0: Float[np.ndarray, " units"] | None
    bias_t: Float[np.ndarray, " units"] | None
    roundoff: float


class Dense(NamedTuple):
    """One dense layer in float64; `roundoff` is that of its stored weights.

    Attributes:
      kernel: (pixels, units).
      bias: None where the layer has none.
      roundoff: unit roundoff.
    """

    kernel: Float[np.ndarray, "d units"]
    bias: Float[np.ndarray, " units"] | None
    roundoff: float


def _groups(params: Params) -> dict[str, dict[str, Any]]:
    """Leaves by layer."""
    groups: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = leaf_names.names(path)
        if names and hasattr(leaf, "dtype") and hasattr(leaf, "ndim"):
            groups.setdefault(".".join(names[:-1]), {})[names[-1]] = leaf
    return groups


def _kernel(group: dict[str, Any], pixels: int) -> str | None:
    """Name of the matrix that takes so many pixels, if the group has one."""
    for name in _KERNELS:
        leaf = group.get(name)
        # PyTorch's weight is (out, in).
        axis = 1 if name == "weight" else 0
        if leaf is not None and leaf.ndim == 2 and leaf.shape[axis] == pixels:
            return name
    return None


def candidates(params: Params, *, pixels: int, layer: str | None = None) -> list[str]:
    """Returns the names of dense layers that take so many pixels, in their order.

    Args:
      params: any pytree of kernels (in, out) or weights (out, in).
      pixels: values of an image.
      layer: the name of one, such as "Dense_0" or "layers.0", if it is known.

    Raises:
      ValueError: there is none.
    """
    groups = _groups(params)
    fitting = sorted(
        (k for k, g in groups.items() if _kernel(g, pixels)), key=leaf_names.natural
    )
    if layer is not None:
        if layer not in fitting:
            raise ValueError(
                f"layer={layer!r} is no dense layer that takes {pixels} values: use "
                f"one of {', '.join(fitting) or 'another image_shape'}."
            )
        return [layer]
    if not fitting:
        shapes = ", ".join(
            f"{name or 'params'} {tuple(g[k].shape)}"
            for name, g in groups.items()
            for k in _KERNELS
            if k in g
        )
        raise ValueError(
            f"No dense layer takes images of {pixels} values (found: "
            f"{shapes or 'no kernels'}): closed units read networks that begin with "
            "one; give the shape of the training images, or use kkt."
        )
    return fitting


def dense(params: Params, *, pixels: int, name: str, where: str = "params") -> Dense:
    """Returns a dense layer.

    Args:
      params: any pytree of kernels (in, out) or weights (out, in), with or without
        biases, of JAX, NumPy or PyTorch, such as a state_dict().
      pixels: values of an image.
      name: of the layer, one of `candidates`.
      where: what messages call the parameters.

    Raises:
      ValueError: weights that are no floating-point numbers, or not finite.
    """
    group, where = _groups(params)[name], f"{where}[{name}]"
    kind = _kernel(group, pixels)
    assert kind is not None
    stored = published.as_numpy(group[kind])
    dtype = stored.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{where} has dtype {dtype}: closed units take real floating-point weights."
        )
    kernel = stored.astype(np.float64)
    leaf = next((b for b in _BIASES if b in group), None)
    bias = None if leaf is None else published.as_numpy(group[leaf]).astype(np.float64)
    _checks.finite(**{where: (kernel, bias)})
    kernel = kernel.T if kind == "weight" else kernel
    return Dense(kernel, bias, precision.roundoff(stored))


def read(params_0: Params, params_t: Params, *, pixels: int, name: str) -> FirstLayer:
    """Returns a dense layer before and after training.

    Args:
      params_0: any pytree of kernels (in, out) or weights (out, in), with or without
        biases, of JAX, NumPy or PyTorch, such as a state_dict().
      params_t: the same after training.
      pixels: values of an image.
      name: of the layer, one of `candidates`.

    Raises:
      ValueError: parameters that differ in structure or are not finite, or a layer
        that did not move.
    """
    _checks.same_structure("params_0", params_0, "params_t", params_t)
    before, after = (
        dense(params, pixels=pixels, name=name, where=where)
        for params, where in ((params_0, "params_0"), (params_t, "params_t"))
    )
    roundoff = max(before.roundoff, after.roundoff)
    if np.array_equal(before.kernel, after.kernel):
        raise ValueError(
            f"The layer {name} did not move: it holds nothing of the images; give the "
            "weights before and after training, of a layer that was trained."
        )
    kernels, biases = (before.kernel, after.kernel), (before.bias, after.bias)
    return FirstLayer(name, *kernels, *biases, roundoff)
