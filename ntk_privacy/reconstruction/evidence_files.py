"""Evidence from the weights that people have: files or what is in memory.

`from_file` returns `Read(evidence, notes)`: the evidence, in the structure of our MLP
or as the given network takes it, and sentences on all that was inferred, turned,
widened or left out. Nothing else passes on: a caller who shows the notes hides nothing.

Weights of 16 bits become float32. How coarse they were is seen from the numbers
(`precision`), so that no certificate is finer than what was stored.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_privacy import _checks
from ntk_privacy._types import ApplyFn, Params
from ntk_privacy.models import published, weight_files
from ntk_privacy.models.adapter import Adapter
from ntk_privacy.models.mlp import MLP
from ntk_privacy.models.published import read as read
from ntk_privacy.reconstruction import (
    evidence,
    foreign_adapter,
    foreign_mlp,
    named_network,
    precision,
)
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.foreign_mlp import as_mlp as as_mlp
from ntk_privacy.reconstruction.named_network import as_apply_fn as as_apply_fn

__all__ = ["Read", "as_apply_fn", "as_mlp", "from_file", "read"]


class Read(NamedTuple):
    """What was read.

    Attributes:
      evidence: the problem of every reconstruction.
      notes: sentences on what was inferred, turned, widened or left out, none twice.
    """

    evidence: Evidence
    notes: tuple[str, ...]


def from_file(
    after: Any = None,
    *,
    before: Any = None,
    gradient: Any = None,
    adapter: Any = None,
    adapter_before: Any = None,
    adapter_scale: _checks.Number | None = None,
    network: MLP | ApplyFn | str | None = None,
    image_shape: Sequence[int] | None = None,
    bounds: tuple[Any, Any] | None = None,
    channels_first: bool | None = None,
    **told: Any,
) -> Read:
    """Returns evidence out of what is given: paths, or parameters in memory.

    One of these: `after` alone; `before` and `after`; `before` and `gradient`; `before`
    and `adapter`.

    Args:
      after: weights after training; all sources see `models.published.read`.
      before: weights before it.
      gradient: of a loss at `before`, of its structure, or a list in its order.
      adapter: LoRA factors of the first dense layer after training: PEFT's or NNX's, by
        their names lora_A and lora_B; or an `Adapter`.
      adapter_before: the same before training, where they are known.
      adapter_scale: of the factors' product; None is what PEFT's adapter_config.json
        tells, else 1.
      network: an `MLP`, a function `(params, images) -> outputs` that takes the
        parameters as they are in the file, or "module:function" (`as_apply_fn`). None
        takes a chain of dense layers as an MLP (`as_mlp`).
      image_shape: (height, width, depth) in pixels; None is what the weights tell.
      bounds: smallest and largest intensity, in the units that the network takes.
      channels_first: see `as_mlp`.
      **told: further fields of `Evidence`: num_images, labels, objective and so on.

    Raises:
      ValueError: nothing to read from, or what does not go together; a file that is not
        read; weights of two networks, or equal ones; a network that is no MLP; see also
        `models.published.read` and `as_mlp`.

    Example:
      >>> import jax
      >>> from ntk_privacy.models import MLP
      >>> from ntk_privacy.reconstruction import evidence_files
      >>> net, (first, last) = MLP((8,)), jax.random.split(jax.random.key(0))
      >>> before, after = (net.init_params(k, (2, 2, 1)) for k in (first, last))
      >>> found = evidence_files.from_file(after, before=before)
      >>> found.evidence.image_shape, found.evidence.network.widths
      ((2, 2, 1), (8,))
      >>> found.notes[0]
      'after: images of 4 values are taken as (2, 2, 1)'
    """
    _fields(told)
    given = {"after": after, "before": before, "gradient": gradient}
    _together({**given, "adapter": adapter})
    opened = {
        name: published.opened(source, name=_name(name, source))
        for name, source in given.items()
        if source is not None and name != "gradient"
    }
    base, main = next(iter(opened.items()))
    if gradient is not None:
        opened["gradient"] = _gradient(gradient, main.params)
    notes = [note for part in opened.values() for note in part.notes]
    for name, part in opened.items():
        foreign_mlp.same_leaves(base, main.params, name, part.params)
    params = {name: part.params for name, part in opened.items()}
    net = network if network is not None else main.network
    if isinstance(net, str):
        net = named_network.as_apply_fn(net)
    found = None
    if image_shape is None:
        image_shape = main.image_shape
    if net is None or isinstance(net, MLP):
        found = foreign_mlp.layout(
            main.params,
            image_shape=image_shape,
            channels_first=channels_first,
            name=base,
        )
        notes += found.notes
        params = {k: foreign_mlp.converted(found, v) for k, v in params.items()}
        net, image_shape = _same_mlp(net, found, base), found.image_shape
    elif image_shape is None:
        raise ValueError(
            "image_shape is not told: a network that is given as a function needs it, "
            "as (height, width, depth)."
        )
    params = _widened(params, notes)
    fields = {
        "image_shape": tuple(image_shape),
        "bounds": main.bounds if bounds is None else bounds,
        **told,
    }
    if not isinstance(net, MLP):
        for name, tree in params.items():
            _checks.same_structure(base, params[base], name, tree)
        net, count = _applied(net, params[base], fields["image_shape"])
        fields = {"num_outputs": count, **fields}
    if adapter is not None:
        made, more = _adapter(found, adapter, adapter_before, adapter_scale)
        notes += more
        fields |= {"adapter": made}
        params["after"] = _merged(params["before"], made)
    if gradient is not None:
        known = evidence.of_gradient(
            net, params["before"], params["gradient"], **fields
        )
    else:
        known = _of_weights(net, params, fields)
    return Read(known, tuple(dict.fromkeys(notes)))


def _fields(told: dict[str, Any]) -> None:
    """Refuses what is no field of evidence, or is told by the files."""
    taken = ("network", "params_t", "params_0", "is_gradient", "step", "adapter")
    names = [f.name for f in dataclasses.fields(Evidence) if f.name not in taken]
    for name in told:
        if name not in names:
            raise ValueError(f"{name} is {_checks.unknown(name, names)}")


def _together(given: dict[str, Any]) -> None:
    """Refuses what is too little or too much."""
    has = [name for name, source in given.items() if source is not None]
    if has in (["after"], ["after", "before"], ["before", "gradient"],
               ["before", "adapter"]):  # fmt: skip
        return
    remedy = (
        "give after; or before and after; or before and gradient; or before and adapter"
    )
    if has == ["before"]:
        raise ValueError(f"before alone was not trained on anything: {remedy}.")
    raise ValueError(f"{' and '.join(has) or 'Nothing'} given: {remedy}.")


def _name(name: str, source: Any) -> str | None:
    return None if isinstance(source, str | pathlib.PurePath) else name


def _gradient(source: Any, params: Params) -> published.Published:
    """Reads a gradient; one that is a list has the order of the parameters."""
    found = published.opened(source, name=_name("gradient", source))
    leaves, structure = jax.tree.flatten(found.params)
    if not isinstance(source, list | tuple) or structure == jax.tree.structure(params):
        return found
    if not isinstance(params, dict) or len(leaves) != len(params):
        raise ValueError(
            f"gradient is a list of {len(leaves)} arrays, the parameters have another "
            "structure: give the gradient in the structure of before."
        )
    note = "gradient: its arrays are taken in the order of before"
    named = dict(zip(params, leaves, strict=True))
    return found._replace(params=named, notes=(*found.notes, note))


def _same_mlp(net: MLP | None, found: foreign_mlp.Layout, name: str) -> MLP:
    """Returns the MLP that is given, if the weights are those of such a one."""
    seen = foreign_mlp.network(found)
    if net is None:
        return seen
    sizes = (tuple(net.widths), net.num_outputs)
    flags = net.use_bias
    flags = flags if isinstance(flags, bool) else tuple(flags)
    if isinstance(flags, tuple) and len(set(flags)) == 1:
        flags = flags[0]
    there = seen.use_bias
    if isinstance(there, tuple) and len(set(there)) == 1:
        there = there[0]
    if sizes != (seen.widths, seen.num_outputs) or flags != there:
        raise ValueError(
            f"network has widths={sizes[0]}, num_outputs={sizes[1]} and "
            f"use_bias={flags}, {name} {seen.widths}, {seen.num_outputs} and {there}: "
            "give the weights of this network, or no network."
        )
    return net


def _widened(params: dict[str, Params], notes: list[str]) -> dict[str, Params]:
    """Puts all numbers in one format, of 32 bits at least, and notes what they were."""
    for name, tree in params.items():
        seen = {str(precision.kind(leaf)) for leaf in jax.tree.leaves(tree)}
        coarse = sorted(seen & {"bfloat16", "float16"})
        if coarse:
            notes.append(
                f"{name}: numbers of {' and '.join(coarse)}, which hide small changes; "
                "they are read as float32, and bounds of errors allow for it"
            )
    leaves = jax.tree.leaves(params)
    wide = any(leaf.dtype == np.float64 for leaf in leaves)
    if wide and {str(leaf.dtype) for leaf in leaves} != {"float64"}:
        notes.append("numbers of several formats are read as float64")
    dtype = np.dtype(np.float64 if wide else np.float32)
    # JAX would narrow what it has no room for; closed units read it on the host.
    keep = jax.dtypes.canonicalize_dtype(dtype) != dtype

    def take(leaf):
        array = np.asarray(leaf).astype(dtype)
        return array if keep else jnp.asarray(array)

    return {name: jax.tree.map(take, tree) for name, tree in params.items()}


def _applied(
    net: ApplyFn, params: Params, image_shape: tuple[int, ...]
) -> tuple[ApplyFn, int]:
    """Returns a function, and how many outputs it makes of such images."""
    dtype = jax.dtypes.canonicalize_dtype(jax.tree.leaves(params)[0].dtype)
    images = jax.ShapeDtypeStruct((2, *image_shape), dtype)
    try:
        made = jax.eval_shape(net, params, images)
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"network does not take these parameters and images of shape "
            f"{images.shape} ({first}): give a function (params, images) -> outputs "
            "that takes the parameters as the file has them."
        ) from error
    shape = getattr(made, "shape", ())
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"network maps 2 images to {shape or type(made).__name__}: return one row "
            "of outputs per image."
        )
    return net, shape[1]


def _of_weights(
    net: MLP | ApplyFn, params: dict[str, Params], fields: dict[str, Any]
) -> Evidence:
    before = params.get("before")
    if before is not None:
        _checks.differ("before", before, "after", params["after"])
    return Evidence(network=net, params_0=before, params_t=params["after"], **fields)


def _adapter(
    found: foreign_mlp.Layout | None, source: Any, before: Any, scale: Any
) -> tuple[Adapter, list[str]]:
    """Returns the adapter of the first layer, and notes."""
    if isinstance(source, Adapter):
        return source, []
    if found is None:
        raise ValueError(
            "An adapter of a network that is given as a function is not read: give the "
            "dense layers alone, or a models.adapter.Adapter."
        )
    late = published.opened(source, name=_name("adapter", source))
    notes = [*late.notes]
    if scale is None and isinstance(source, str | pathlib.PurePath):
        scale = weight_files.scale_beside(pathlib.Path(source))
        if scale is not None:
            notes.append(f"adapter: scale {scale:g}, by adapter_config.json")
    if scale is None:
        notes.append("adapter: scale 1, for none is told; PEFT's is lora_alpha / r")
        scale = 1.0
    early = None
    if before is not None:
        early = published.opened(before, name=_name("adapter_before", before)).params
    made, more = foreign_adapter.of_first_layer(
        found, late.params, before=early, scale=scale
    )
    return made, [*notes, *more]


def _merged(params: Params, adapter: Adapter) -> Params:
    """Returns the network with its adapter in the first layer."""
    layer = dict(params["Dense_0"])
    dtype = layer["kernel"].dtype
    kernel = np.asarray(layer["kernel"], np.float64) + adapter.product
    layer["kernel"] = jnp.asarray(kernel.astype(dtype))
    if adapter.bias_t is not None:
        layer["bias"] = jnp.asarray(np.asarray(adapter.bias_t).astype(dtype))
    return {**params, "Dense_0": layer}
