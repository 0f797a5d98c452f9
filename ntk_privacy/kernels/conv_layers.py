"""Layers of infinite convolutional networks: convolution, pooling, flattening.

Kernels have axes (n1, n2, h, w), a pixel of one image with the same pixel of the other,
or, where pooling mixes pixels, (n1, n2, h, h', w, w'). Variances have length 1 along
the axes of the other image.

Sources: those of `infinite_conv`.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntk_privacy import _checks
from ntk_privacy.kernels.dual_activation import Gaps, inverse_root, root
from ntk_privacy.kernels.layers import (
    Layer,
    Pair,
    Parametrization,
    Sum,
    check_weights,
    weigh,
)

__all__ = ["AvgPool", "Conv", "Flatten", "GlobalAvgPool", "broadcasts", "walk"]

_FULL = 6  # axes, with pooling
_PADDINGS = ("SAME", "VALID", "CIRCULAR")


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with bias; see `layers.Dense` for the weights.

    Attributes:
      filter_shape: (height, width) in pixels.
      strides: (height, width) in pixels.
      padding: "SAME" (zeros), "VALID" or "CIRCULAR" (SAME on a torus).

    Raises:
      ValueError: an unknown padding, a size below 1, or what `Dense` refuses.
    """

    filter_shape: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str = "SAME"
    weight_std: float = 1.0
    bias_std: float = 0.0
    parametrization: Parametrization = "ntk"
    width: int | None = None
    use_bias: bool = True

    def __post_init__(self):
        _checks.one_of(_PADDINGS, padding=self.padding)
        for size in self.filter_shape:
            _checks.at_least(1, filter_shape=size)
        for stride in self.strides:
            _checks.at_least(1, strides=stride)
        check_weights(self)

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        area = math.prod(self.filter_shape)

        def mean(k: Array) -> Array:
            for axes, size, stride in zip(
                _positions(k), self.filter_shape, self.strides, strict=True
            ):
                k = _window_sum(k, axes, size, stride, self.padding)
            return k / area

        def parts(k: Array) -> list[Array]:
            parts = [k]
            for axes, size, stride in zip(
                _positions(k), self.filter_shape, self.strides, strict=True
            ):
                parts = [
                    part
                    for whole in parts
                    for part in _windows(whole, axes, size, stride, self.padding)
                ]
            return parts

        return weigh(self, pair, mean, parts, pair.width * area)


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """The mean over windows of `window` pixels, as far as they fit (VALID)."""

    window: tuple[int, int] = (2, 2)
    strides: tuple[int, int] | None = None

    def __post_init__(self):
        for size in self.window + (self.strides or ()):
            _checks.at_least(1, window=size)

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        return _pool(self, pair)


@dataclasses.dataclass(frozen=True)
class GlobalAvgPool:
    """The mean over all positions; a Dense layer follows."""

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""

        def collapse(k: Array) -> Array:
            return k.mean(axis=(2, 3, 4, 5))

        nngp = collapse(pair.nngp)
        ntk = None if pair.ntk is None else collapse(pair.ntk)
        return _with_pooled_variances(pair._replace(nngp=nngp, ntk=ntk), nngp)


@dataclasses.dataclass(frozen=True)
class Flatten:
    """All positions as units; a Dense layer follows."""

    def __call__(self, pair: Pair) -> Pair:
        """Returns the kernels after this layer."""
        positions = math.prod(pair.nngp.shape[i] for i in _heights_and_widths(pair))

        def collapse(k: Array) -> Array:
            if k.ndim == _FULL:
                k = _own_pixels(k)
            return k.mean(axis=(2, 3))

        gaps = pair.gaps
        if gaps is not None:
            own = [
                _own_pixels(q) if q.ndim == _FULL else q
                for q in (pair.variance1, pair.variance2)
            ]
            gaps = Gaps(*(collapse(gap) + _profiles_apart(*own) for gap in gaps))
        return pair._replace(
            gaps=gaps,
            nngp=collapse(pair.nngp),
            ntk=None if pair.ntk is None else collapse(pair.ntk),
            variance1=collapse(pair.variance1),
            variance2=collapse(pair.variance2),
            width=pair.width * positions,
        )


def _profiles_apart(q1: Array, q2: Array) -> Array:
    """As `spread`, for the mean over all positions."""
    means = [q.mean(axis=(2, 3), keepdims=True) for q in (q1, q2)]
    unit1, unit2 = (
        root(q) * inverse_root(m) for q, m in zip((q1, q2), means, strict=True)
    )
    lengths = root(means[0]) * root(means[1])
    return (lengths * (unit1 - unit2) ** 2).mean(axis=(2, 3))


def walk(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Yields all layers in the order in which they run.

    Args:
      layers: with branches, perhaps, which are walked in order.
    """
    for layer in layers:
        if isinstance(layer, Sum):
            for branch in layer.branches:
                yield from walk(branch)
        else:
            yield layer


def _positions(k: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of height and of width, less those that only broadcast."""
    if k.ndim != _FULL:
        return (2,), (3,)

    def real(a: int, b: int) -> tuple[int, ...]:
        longest = max(k.shape[a], k.shape[b])
        return tuple(axis for axis in (a, b) if k.shape[axis] == longest)

    return real(2, 3), real(4, 5)


def _heights_and_widths(pair: Pair) -> tuple[int, int]:
    return (2, 4) if pair.nngp.ndim == _FULL else (2, 3)


def _own_pixels(k: Array) -> Array:
    """(n1, n2, h, h', w, w') at h = h', w = w'; broadcast axes are dropped."""
    heights, widths = _positions(k)
    if len(heights) == 2 and len(widths) == 2:
        k = jnp.diagonal(jnp.diagonal(k, axis1=2, axis2=3), axis1=2, axis2=3)
        return k
    kept = [k.shape[0], k.shape[1], *(max(k.shape[a : a + 2]) for a in (2, 4))]
    return k.reshape(kept)


def _pads(length: int, size: int, stride: int) -> tuple[int, int]:
    """How much SAME adds before and after."""
    total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def _windows(
    k: Array, axes: tuple[int, ...], size: int, stride: int, padding: str
) -> list[Array]:
    """What a window sees, place by place, that moves along all of `axes` together."""
    length = k.shape[axes[0]]
    if padding != "VALID":
        pads = [(0, 0)] * k.ndim
        for axis in axes:
            pads[axis] = _pads(length, size, stride)
        k = jnp.pad(k, pads, mode="wrap" if padding == "CIRCULAR" else "constant")
    length = k.shape[axes[0]]
    if size > length:
        raise ValueError(
            f"A window of {size} pixels does not fit into {length}: use larger images, "
            "fewer poolings, or padding='SAME'."
        )
    stop = length - size + 1
    parts = []
    for i in range(size):
        part = k
        for axis in axes:
            part = jax.lax.slice_in_dim(part, i, stop + i, stride, axis)
        parts.append(part)
    return parts


def _window_sum(
    k: Array, axes: tuple[int, ...], size: int, stride: int, padding: str
) -> Array:
    return functools.reduce(operator.add, _windows(k, axes, size, stride, padding))


def _pool(layer: AvgPool, pair: Pair) -> Pair:
    strides = layer.strides or layer.window

    def pool(k: Array) -> Array:
        for axis in (2, 3, 4, 5):
            i = (axis - 2) // 2
            k = _window_sum(k, (axis,), layer.window[i], strides[i], "VALID")
        return k / math.prod(layer.window) ** 2

    nngp = pool(pair.nngp)
    ntk = None if pair.ntk is None else pool(pair.ntk)
    return _with_pooled_variances(pair._replace(nngp=nngp, ntk=ntk), nngp)


def _with_pooled_variances(pair: Pair, nngp: Array) -> Pair:
    """Takes the variances after pooling from `pooled`, or from nngp of one image.

    Gaps end here: those of means would need those within each image.
    """
    pair = pair._replace(gaps=None)
    if pair.pooled is None:
        own = _own_pixels(nngp) if nngp.ndim == _FULL else nngp
        v1, v2 = broadcasts(own)
        return pair._replace(variance1=v1, variance2=v2, recorded=(*pair.recorded, own))
    if not pair.pooled:  # no activation follows
        unused = jnp.zeros((1,) * nngp.ndim, nngp.dtype)
        return pair._replace(variance1=unused, variance2=unused)
    (v1, v2), *rest = pair.pooled
    return pair._replace(variance1=v1, variance2=v2, pooled=tuple(rest))


def broadcasts(own: Array) -> tuple[Array, Array]:
    """Returns (n, 1, h, w) as it meets h and as it meets h'; (n, 1) as it is.

    Args:
      own: variances of each image, per pixel or as one number.
    """
    if own.ndim == 2:
        return own, own
    return own[:, :, :, None, :, None], own[:, :, None, :, None, :]
