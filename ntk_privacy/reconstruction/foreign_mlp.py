"""Anybody's chain of dense layers as our MLP: which leaf is what, and how it lies.

A `Layout` is found once, of one file, and read from all of the same network. Order and
shapes decide, names do not; what was inferred is noted. PyTorch and Equinox keep
`weight` as (out, in) and flatten images channel by channel; the rows of the first
kernel are put in our order then, (height, width, channel).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ntk_privacy._types import Params
from ntk_privacy.models import published
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import layer_chain, leaf_names

__all__ = ["Layout", "as_mlp", "converted", "layout", "network", "same_leaves"]

_REMEDY = 'give its function as network="module:function"'
# Of parameters without layers, such as {"W1": ..., "b1": ...} or a list of arrays.
_UNNAMED = re.compile(r"(w|b|kernel|weight|bias)?s?_?\d*", re.IGNORECASE)
_OTHERS = re.compile(
    r"attn|attention|query|key|value|[qkvo]_proj|qkv|embed|norm|conv|lora|lstm|gru|rnn",
    re.IGNORECASE,
)


class Spot(NamedTuple):
    """One layer: where its leaves are, and whether its kernel is (out, in).

    Attributes:
      name: for messages.
      kernel: names on the way to it, joined by dots.
      bias: the same, None without one.
      transposed: stored as (out, in).
    """

    name: str
    kernel: str
    bias: str | None
    transposed: bool


class Layout(NamedTuple):
    """How a file holds an MLP.

    Attributes:
      spots: the layers, from the images to the outputs.
      sizes: inputs of the first layer, and outputs of each.
      image_shape: (height, width, depth) in pixels.
      rows: which of the file's rows of the first kernel is each of ours; None is all
        as they are.
      shapes: of every leaf, by its name.
      notes: what was inferred.
    """

    spots: tuple[Spot, ...]
    sizes: tuple[int, ...]
    image_shape: tuple[int, int, int]
    rows: Int[np.ndarray, " d"] | None
    shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


class _Dense(NamedTuple):
    """spot: of it. shape: as stored. outputs: by its bias, None without one."""

    spot: Spot
    shape: tuple[int, int]
    outputs: int | None

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self.shape
        return (columns, rows) if self.spot.transposed else (rows, columns)

    def turned(self) -> "_Dense":
        return self._replace(
            spot=self.spot._replace(transposed=not self.spot.transposed)
        )


def as_mlp(
    params: Params,
    *,
    image_shape: Sequence[int] | None = None,
    like: Params | None = None,
    channels_first: bool | None = None,
) -> tuple[MLP, Params, tuple[str, ...]]:
    """Returns an MLP, parameters in its structure, and notes on what was inferred.

    A ReLU is taken to stand behind each layer but the last: weights do not tell. A
    layer without a bias has none in the MLP.

    Args:
      params: a chain of dense layers in any form that `models.published` reads.
      image_shape: (height, width, depth) in pixels; None is a square of 1 or 3
        channels, where the inputs are so many.
      like: parameters of the same network, by which these are read in the same way.
      channels_first: whether the network takes images flattened channel by channel;
        None is so for kernels that are named weight, as PyTorch's.

    Raises:
      ValueError: not a chain of dense layers, one that fits in no order or in several,
        inputs that are no such images, or other leaves than those of `like`.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.reconstruction import foreign_mlp
      >>> state = {"0.weight": np.ones((5, 4)), "0.bias": np.ones(5)}
      >>> state |= {"2.weight": np.ones((1, 5)), "2.bias": np.ones(1)}
      >>> model, params, notes = foreign_mlp.as_mlp(state)
      >>> model.widths, params["Dense_0"]["kernel"].shape
      ((5,), (4, 5))
    """
    first = published.read(params if like is None else like)
    found = layout(first, image_shape=image_shape, channels_first=channels_first)
    if like is not None:
        same_leaves("like", first, "params", published.read(params))
        first = published.read(params)
    return network(found), converted(found, first), found.notes


def layout(
    params: Params,
    *,
    image_shape: Sequence[int] | None = None,
    channels_first: bool | None = None,
    name: str = "params",
) -> Layout:
    """Returns how parameters hold an MLP.

    Args:
      params: as `published.read` gives them.
      image_shape: see `as_mlp`.
      channels_first: see `as_mlp`.
      name: what messages call them.

    Raises:
      ValueError: see `as_mlp`.
    """
    flat = _flat(params)
    if image_shape is not None:
        image_shape = _three(image_shape)
    pixels = None if image_shape is None else math.prod(image_shape)
    notes: list[str] = []
    layers = _denses(flat, name)
    layers = _turned(layers, pixels, name, notes)
    sizes = (layers[0].size[0], *(layer.size[1] for layer in layers))
    if image_shape is None:
        image_shape = _square(sizes[0], name)
        notes.append(f"{name}: images of {sizes[0]} values are taken as {image_shape}")
    bare = [layer.spot.name for layer in layers if layer.spot.bias is None]
    if bare:
        first = bare[0] == layers[0].spot.name
        more = "; without the first one's, images are known up to their scale" * first
        notes.append(
            f"{name}: {', '.join(bare)} without a bias, and the MLP has none there"
            f"{more}"
        )
    count, chain = len(layers), " -> ".join(map(str, sizes))
    notes.append(
        f"{name}: a chain of {count} dense layers, {chain}, taken to have a ReLU "
        "behind each but the last, which weights do not tell"
        if count > 1
        else f"{name}: one dense layer, {chain}"
    )
    return Layout(
        spots=tuple(layer.spot for layer in layers),
        sizes=sizes,
        image_shape=image_shape,
        rows=_rows(layers[0], image_shape, channels_first, name, notes),
        shapes={key: tuple(leaf.shape) for key, leaf in flat.items()},
        notes=tuple(notes),
    )


def network(found: Layout) -> MLP:
    """Returns the MLP of a layout.

    Args:
      found: by `layout`.
    """
    _, *widths, outputs = found.sizes
    flags = tuple(spot.bias is not None for spot in found.spots)
    return MLP(tuple(widths), outputs, use_bias=all(flags) or flags)


def converted(found: Layout, params: Params) -> Params:
    """Returns parameters, or a gradient, in the structure of our MLP.

    Args:
      found: by `layout`, of the same network.
      params: as `published.read` gives them.
    """
    flat, tree = _flat(params), {}
    for i, spot in enumerate(found.spots):
        kernel = flat[spot.kernel]
        kernel = kernel.T if spot.transposed else kernel
        if i == 0 and found.rows is not None:
            kernel = kernel[found.rows]
        tree[f"Dense_{i}"] = {"kernel": np.ascontiguousarray(kernel)}
        if spot.bias is not None:
            tree[f"Dense_{i}"]["bias"] = flat[spot.bias]
    return tree


def same_leaves(name_a: str, a: Params, name_b: str, b: Params) -> None:
    """Raises ValueError, naming the first leaf, unless two networks have the same ones.

    Args:
      name_a: of the first, for the message.
      a: parameters.
      name_b: of the second.
      b: parameters.

    Raises:
      ValueError: a leaf is in one alone, or of another shape.
    """
    both = [_flat(part) for part in (a, b)]
    for leaf in [*both[0], *both[1]]:
        shapes = [part[leaf].shape if leaf in part else None for part in both]
        if shapes[0] != shapes[1]:
            told = ["no such leaf" if s is None else f"shape {s}" for s in shapes]
            raise ValueError(
                f"{name_a} and {name_b} are not of one network: {leaf} has {told[0]} "
                f"in {name_a} and {told[1]} in {name_b}; give the weights of one "
                "training, before it and after it."
            )


def _flat(params: Params) -> dict[str, np.ndarray]:
    return {".".join(names): leaf for names, leaf in leaf_names.leaves(params)}


def _three(image_shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = [n for n in image_shape if isinstance(n, int | np.integer) and n > 0]
    if len(image_shape) != 3 or len(sizes) != 3:
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, depth), whole "
            "numbers above 0."
        )
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _square(pixels: int, name: str) -> tuple[int, int, int]:
    """Returns the one square of 1 or 3 channels: a number is never both."""
    for depth in (1, 3):
        side = math.isqrt(pixels // depth)
        if side * side * depth == pixels:
            return side, side, depth
    raise ValueError(
        f"The first layer of {name} takes {pixels} values, which are no square image "
        "of 1 or 3 channels: tell image_shape=(height, width, depth)."
    )


def _not_plain(name: str, leaf: str, shape: Sequence[int], why: str) -> ValueError:
    return ValueError(
        f"{name} is no plain MLP: {leaf or 'its array'}, of shape "
        f"{tuple(shape)}, {why}; {_REMEDY}."
    )


def _denses(flat: Mapping[str, np.ndarray], name: str) -> list[_Dense]:
    """Groups leaves by layer, in the order of storing."""
    groups: dict[str, dict[str, str]] = {}
    for leaf, array in flat.items():
        if array.ndim > 2:
            raise _not_plain(name, leaf, array.shape, "is a convolution or the like")
    for leaf, array in flat.items():
        layer, _, last = leaf.rpartition(".")
        other = _OTHERS.search(leaf)
        if other:
            why = f"looks like part of another layer ({other.group()})"
            raise _not_plain(name, leaf, array.shape, why)
        groups.setdefault(layer, {})[last] = leaf
    known = {*leaf_names.KERNELS, *leaf_names.BIASES}
    if all(known.issuperset(leaves) for leaves in groups.values()):
        return [_dense(k or name, g, flat, name) for k, g in groups.items()]
    strange = [leaf for g in groups.values() for key, leaf in g.items()
               if key not in known and not _UNNAMED.fullmatch(key)]  # fmt: skip
    if strange:
        why = "is neither the kernel nor the bias of a dense layer"
        raise _not_plain(name, strange[0], flat[strange[0]].shape, why)
    return _unnamed(flat, name)


def _dense(
    layer: str, leaves: Mapping[str, str], flat: Mapping[str, np.ndarray], name: str
) -> _Dense:
    kernels = [k for k in leaves if k in leaf_names.KERNELS]
    biases = [k for k in leaves if k in leaf_names.BIASES]
    if len(kernels) != 1 or len(biases) > 1:
        first = next(iter(leaves.values()))
        why = "is not one kernel with at most one bias"
        raise _not_plain(name, first, flat[first].shape, why)
    kernel, bias = leaves[kernels[0]], leaves[biases[0]] if biases else None
    if flat[kernel].ndim != 2:
        why = "is no matrix, as of a norm layer"
        raise _not_plain(name, kernel, flat[kernel].shape, why)
    return _paired(layer, kernel, bias, flat, kernels[0] == "weight", name)


def _unnamed(flat: Mapping[str, np.ndarray], name: str) -> list[_Dense]:
    """Pairs matrices and vectors in the order of their names."""
    stored = list(flat)
    natural = sorted(stored, key=leaf_names.natural)
    names = natural if stored == sorted(stored) else stored
    kernels = [leaf for leaf in names if flat[leaf].ndim == 2]
    biases: list[Any] = [leaf for leaf in names if flat[leaf].ndim != 2]
    if not kernels or len(biases) not in (0, len(kernels)):
        leaf = (biases or names)[0]
        why = f"is one of {len(biases)} vectors beside {len(kernels)} matrices"
        raise _not_plain(name, leaf, flat[leaf].shape, why)
    biases = biases or [None] * len(kernels)
    return [
        _paired(kernel or name, kernel, bias, flat, False, name)
        for kernel, bias in zip(kernels, biases, strict=True)
    ]


def _paired(
    layer: str, kernel: str, bias: str | None, flat: Mapping[str, np.ndarray],
    transposed: bool, name: str,
) -> _Dense:  # fmt: skip
    shape, outputs = flat[kernel].shape, None
    if not flat[kernel].size:
        raise _not_plain(name, kernel, shape, "is empty")
    if bias is not None:
        vector = flat[bias].shape
        if len(vector) != 1 or vector[0] not in shape:
            raise ValueError(
                f"{name}: the bias {bias} has shape {vector} and its kernel {shape}: "
                "give one bias per unit."
            )
        outputs = vector[0]
    spot = Spot(layer, kernel, bias, transposed)
    return _Dense(spot, (shape[0], shape[1]), outputs)


def _turned(
    layers: list[_Dense], pixels: int | None, name: str, notes: list[str]
) -> list[_Dense]:
    """Puts layers in their order, and turns kernels where nothing else fits."""
    wrong = [x.outputs not in (None, x.size[1]) for x in layers]
    sure = [w or (x.outputs is not None and len(set(x.shape)) == 2)
            for x, w in zip(layers, wrong, strict=True)]  # fmt: skip
    # What a bias or a shape cannot tell lies as what they can: whole files are turned.
    rest = any(wrong) and all(w for w, s in zip(wrong, sure, strict=True) if s)
    flips = [w or (rest and not s) for w, s in zip(wrong, sure, strict=True)]
    tried = [flips, wrong, [w != (not s) for w, s in zip(wrong, sure, strict=True)]]
    names, several = [layer.spot.name for layer in layers], False
    for flip in tried:
        turned = [x.turned() if f else x for x, f in zip(layers, flip, strict=True)]
        orders = layer_chain.orders(names, [x.size for x in turned], pixels)
        if len(orders) == 1:
            if any(flip):
                told = [n for n, f in zip(names, flip, strict=True) if f]
                notes.append(
                    f"{name}: kernels look transposed ({', '.join(told)}), and are "
                    "read so"
                )
            return [turned[i] for i in orders[0]]
        several = len(orders) > 1
        if several:
            break
    raise _unchained(layers, tried, pixels, name, several)


def _unchained(
    layers: list[_Dense], tried: list[list[bool]], pixels: int | None, name: str,
    several: bool,
) -> ValueError:  # fmt: skip
    names = [layer.spot.name for layer in layers]
    for flip in tried:
        sizes = [
            x.turned().size if f else x.size for x, f in zip(layers, flip, strict=True)
        ]
        free = layer_chain.orders(names, sizes, None)
        if pixels is not None and not several and free:
            return ValueError(
                f"image_shape has {pixels} values but the first layer of {name} takes "
                f"{sizes[free[0][0]][0]}: give the shape of the training images."
            )
    shapes = ", ".join(f"{layer.spot.name} {layer.shape}" for layer in layers)
    told = "fit in more than one order" if several else "fit in no order"
    return ValueError(
        f"{name}: its dense layers ({shapes}) {told}, kernels as they are or "
        f"transposed: name them by their order if it is a chain, or {_REMEDY}."
    )


def _rows(
    first: _Dense, image_shape: tuple[int, int, int], channels_first: bool | None,
    name: str, notes: list[str],
) -> Int[np.ndarray, " d"] | None:  # fmt: skip
    height, width, depth = image_shape
    if depth == 1:
        return None
    if channels_first is None:
        channels_first = first.spot.kernel.rpartition(".")[2] == "weight"
    order = "channel by channel" if channels_first else "pixel by pixel"
    notes.append(
        f"{name}: images are taken to be flattened {order}; tell "
        f"channels_first={not channels_first} otherwise"
    )
    if not channels_first:
        return None
    places = np.arange(height * width * depth).reshape(depth, height, width)
    return places.transpose(1, 2, 0).ravel()
