"""Do parameters, network and images belong together? Told before anything is traced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.models.mlp import MLP

__all__ = ["check_apply_fn", "check_call", "check_mlp", "mlp_params"]


def check_mlp(
    model: MLP,
    params: Params,
    *,
    image_shape: Sequence[int] | None = None,
    name: str = "params",
) -> None:
    """Refuses parameters that are not those of an MLP.

    Args:
      model: the MLP.
      params: `{"Dense_0": {"kernel", "bias"}, ...}`; shapes and names are looked at.
      image_shape: of one image, if it is known.
      name: of the parameters in the message.

    Raises:
      ValueError: what does not fit, and what would.
    """
    sizes = [*model.widths, model.num_outputs]
    wanted = [f"Dense_{i}" for i in range(len(sizes))]
    found = sorted(map(str, params)) if isinstance(params, Mapping) else []
    if found != sorted(wanted):
        told = found or type(params).__name__
        inner = " give its entry 'params'" if found == ["params"] else " give its own"
        raise ValueError(
            f"{name} holds {told}, but an MLP of {len(model.widths)} hidden layers has "
            f"{', '.join(wanted)}:{inner} parameters of this network, under Flax's "
            "names, which are the only ones read here."
        )
    flags = model.use_bias
    flags = [flags] * len(sizes) if isinstance(flags, bool) else list(flags)
    fan_in = None if image_shape is None else int(np.prod(image_shape))
    for layer, size, flag in zip(wanted, sizes, flags, strict=True):
        leaves = params[layer]
        kinds = ["bias", "kernel"] if flag else ["kernel"]
        held = sorted(map(str, leaves)) if isinstance(leaves, Mapping) else None
        if held != kinds:
            raise ValueError(
                f"{name}[{layer!r}] holds {held or type(leaves).__name__}, the network "
                f"has {kinds} there: give the parameters of this network."
            )
        for kind in kinds:
            dtype = getattr(leaves[kind], "dtype", None)
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"{name}[{layer!r}][{kind!r}] has dtype {dtype}: convert it to "
                    "float32 or float64."
                )
        shape = np.shape(leaves["kernel"])
        if len(shape) == 2 and fan_in is None:
            fan_in = shape[0]
        if layer == "Dense_0" and len(shape) == 2 and shape[0] != fan_in:
            raise ValueError(
                f"image_shape={tuple(image_shape or ())} has {fan_in} pixels, the "
                f"network takes {shape[0]}: give the shape it was trained on."
            )
        for kind, right in (("kernel", (fan_in, size)), ("bias", (size,))):
            if kind in kinds and np.shape(leaves[kind]) != right:
                raise ValueError(
                    f"{name}[{layer!r}][{kind!r}] has shape {np.shape(leaves[kind])}, "
                    f"the network {right}: give the parameters of this network."
                )
        fan_in = size


def mlp_params(
    model: MLP,
    params: Params,
    *,
    image_shape: Sequence[int] | None = None,
    name: str = "params",
) -> Params:
    """Returns checked parameters of an MLP as plain dicts of device arrays.

    FrozenDicts and NumPy arrays are taken as they are; half precision becomes float32,
    which holds it exactly.

    Args and Raises: see `check_mlp`.
    """
    check_mlp(model, params, image_shape=image_shape, name=name)
    layers = [params[f"Dense_{i}"] for i in range(len(model.widths) + 1)]
    dtypes = {jnp.dtype(leaf.dtype) for layer in layers for leaf in layer.values()}
    wide = jax.dtypes.canonicalize_dtype(
        np.float64 if jnp.dtype(np.float64) in dtypes else np.float32
    )
    return {
        f"Dense_{i}": {kind: jnp.asarray(layer[kind], wide) for kind in sorted(layer)}
        for i, layer in enumerate(layers)
    }


def check_call(
    function: Callable[..., Any],
    *trees: Any,
    image_shape: Sequence[int],
    name: str = "params",
    dtype: Any = None,
) -> Any:
    """Returns the shape of what a network gives for three images; computes nothing.

    Args:
      function: `(*trees, images) -> outputs`.
      *trees: parameters, running statistics, or their shapes.
      image_shape: (height, width, depth) in pixels.
      name: of the trees in the message.
      dtype: of the images; that of the first leaf unless given.

    Raises:
      ValueError: it fails on them.
    """
    leaves = jax.tree.leaves(trees[0])
    if not leaves:
        raise ValueError(f"{name} holds no array: give the parameters of the network.")
    dtype = dtype or getattr(leaves[0], "dtype", jnp.float32)
    images = jax.ShapeDtypeStruct((3, *image_shape), dtype)
    try:
        return jax.eval_shape(function, *trees, images)
    except Exception as error:
        # Whatever a network of someone else's raises: its own words, in one sentence.
        told = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{name} and images of shape {tuple(image_shape)} do not fit the network, "
            f"which fails on them ({type(error).__name__}: {told}): give parameters "
            "and image shape of one network."
        ) from error


def check_apply_fn(
    apply_fn: ApplyFn,
    params: Params,
    *,
    image_shape: Sequence[int],
    num_outputs: int,
    name: str = "params",
    dtype: Any = None,
) -> None:
    """Refuses parameters and images that a network fails on; nothing is computed.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params: its parameters.
      image_shape: (height, width, depth) in pixels.
      num_outputs: columns that the outputs should have.
      name: of the parameters in the message.
      dtype: of the images; that of the first leaf unless given.

    Raises:
      ValueError: it fails, or its outputs are not (images, num_outputs) real numbers.
    """
    out = check_call(apply_fn, params, image_shape=image_shape, name=name, dtype=dtype)
    shape = getattr(out, "shape", None)
    if shape != (3, num_outputs):
        raise ValueError(
            f"3 images give outputs of shape {shape}, not {(3, num_outputs)}: give one "
            "row per image, and num_outputs as the network has it."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"The network's outputs have dtype {out.dtype}: attacks need real numbers "
            "with a gradient, such as logits."
        )
