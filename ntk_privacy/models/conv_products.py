"""A convolution of 3x3 and the gradient in its kernel, as products of matrices.

XLA's convolution on CPU is slow, and its gradient within a loop many times slower than
that of the products that it stands for. Every function here takes groups: images of
(g, n, h, w, c) meet kernels of (g, 3, 3, c, k), each group its own; padding is 1.

The ways were chosen on one core of an AMD EPYC with 1 MB of second-level cache, by
processor time for 10 and 64 images of 8 to 32 pixels and 3 to 128 channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "by_product",
    "by_tiles",
    "fastest",
    "kernel_by_product",
    "kernel_by_tiles",
    "kernel_fastest",
    "plain",
    "turned",
]

Images = Float[Array, "g n h w c"]
Kernels = Float[Array, "g 3 3 c k"]
Values = Float[Array, "g n h w k"]

# Channels, before and behind, from which tiles win.
_MANY = 32
# Values of an image, before or behind, that a core's cache holds: ten of 32 x 32 x 128.
_CACHED = 10 * 2**17


def plain(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "a b c k"],
    padding: int,
    precision: Any,
    *,
    stride: int = 1,
) -> Float[Array, "n p q k"]:
    """XLA's own.

    Args:
      x: images.
      kernel: of any size.
      padding: pixels of zero around the images.
      precision: of products.
      stride: of both sides.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _times(a: Array, b: Array, precision: Any) -> Array:
    """(g, ..., c) by (g, c, k) to (g, ..., k)."""
    if len(b) == 1:
        return jnp.matmul(a[0], b[0], precision=precision)[None]
    flat = a.reshape(len(a), math.prod(a.shape[1:-1]), a.shape[-1])
    y = jnp.matmul(flat, b, precision=precision)
    return y.reshape(*a.shape[:-1], b.shape[-1])


def _sum_of_times(a: Array, b: Array, precision: Any) -> Array:
    """(g, ..., c) by (g, ..., k) to (g, c, k)."""
    a, b = (m.reshape(len(m), math.prod(m.shape[1:-1]), m.shape[-1]) for m in (a, b))
    if len(a) == 1:
        rows = (((0,), (0,)), ((), ()))
        return jax.lax.dot_general(a[0], b[0], rows, precision=precision)[None]
    rows = (((1,), (1,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, rows, precision=precision)


def _padded(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))


def _seen(x: Images) -> list[list[Array]]:
    """Returns the images as the entries of the kernel see them, row by row."""
    h, w = x.shape[2:4]
    x = _padded(x)
    return [[x[:, :, a : a + h, b : b + w] for b in range(3)] for a in range(3)]


def by_product(x: Images, kernel: Kernels, precision: Any) -> Values:
    """One product, of all pixels that the kernel sees.

    Args:
      x: images, of groups.
      kernel: 3x3, one of each group.
      precision: of products; None is the backend's default.
    """
    flat = kernel.reshape(len(kernel), -1, kernel.shape[-1])
    seen = jnp.concatenate([part for row in _seen(x) for part in row], -1)
    return _times(seen, flat, precision)


def _both_ways(move: Any, table: Sequence[Sequence[Any]]) -> list[Any]:
    """Applies a map of rows to the columns of a table, then to its rows."""
    columns = [move(*column) for column in zip(*table, strict=True)]
    return [move(*row) for row in zip(*columns, strict=True)]


def _tiles(x: Images) -> list[Any]:
    """Returns 4x4 differences of the pixels of each tile and its rim."""
    h, w = x.shape[2:4]
    x = _padded(x)
    pixels = [[x[:, :, i : i + h - 1 : 2, j : j + w - 1 : 2] for j in range(4)]
              for i in range(4)]  # fmt: skip
    return _both_ways(lambda a, b, c, d: (a - c, b + c, c - b, b - d), pixels)


def by_tiles(x: Images, kernel: Kernels, precision: Any) -> Values:
    """16 products for each tile of four pixels rather than 36; even sides.

    They are of differences of pixels and of sums of kernel entries; rounding is that of
    the plain sum. Source: Winograd's F(2x2, 3x3), Lavin & Gray, CVPR 2016
    (arXiv:1509.09308).

    Args:
      x: images, of groups.
      kernel: 3x3, one of each group.
      precision: of products; None is the backend's default.
    """
    g, n, h, w, _ = x.shape
    k = kernel.shape[-1]
    half = jnp.asarray(0.5, x.dtype)

    def spread(a, b, c):
        return a, half * (a + b + c), half * (a - b + c), c

    entries = [[kernel[:, i, j] for j in range(3)] for i in range(3)]
    table = zip(_tiles(x), _both_ways(spread, entries), strict=True)
    products = [
        [_times(*pair, precision) for pair in zip(*rows, strict=True)] for rows in table
    ]

    def sums(a, b, c, d):
        return jnp.stack([a + b + c, b - c - d])

    rows = jnp.stack([sums(*column) for column in zip(*products, strict=True)])
    y = sums(*rows)  # (column, row, g, n, h / 2, w / 2, k) within and between tiles
    return y.transpose(2, 3, 4, 1, 5, 0, 6).reshape(g, n, h, w, k)


def kernel_by_product(x: Images, slopes: Values, precision: Any) -> Kernels:
    """The gradient in the kernel: one product for each of its rows.

    Args:
      x: images, of groups.
      slopes: gradient in what the convolution gives.
      precision: of products; None is the backend's default.
    """
    g, c, k = len(x), x.shape[-1], slopes.shape[-1]
    rows = [
        _sum_of_times(jnp.concatenate(row, -1), slopes, precision) for row in _seen(x)
    ]
    return jnp.stack(rows, 1).reshape(g, 3, 3, c, k)


def kernel_by_tiles(x: Images, slopes: Values, precision: Any) -> Kernels:
    """The gradient in the kernel by the products of `by_tiles`; even sides.

    Args:
      x: images, of groups.
      slopes: gradient in what the convolution gives.
      precision: of products; None is the backend's default.
    """
    half = jnp.asarray(0.5, x.dtype)
    spread = _both_ways(
        lambda a, b: (a, a + b, a - b, -b),
        [[slopes[:, :, i::2, j::2] for j in range(2)] for i in range(2)],
    )
    products = [
        [_sum_of_times(*pair, precision) for pair in zip(*rows, strict=True)]
        for rows in zip(_tiles(x), spread, strict=True)
    ]

    def gathered(a, b, c, d):
        total = half * (b + c)
        return a + total, half * (b - c), total + d

    rows = _both_ways(gathered, products)
    return jnp.stack([jnp.stack(row, 1) for row in rows], 1)


def turned(kernel: Kernels) -> Float[Array, "g 3 3 k c"]:
    """Returns the kernel by which the gradient in the images is a convolution.

    Args:
      kernel: 3x3, one of each group.
    """
    return kernel[:, ::-1, ::-1].swapaxes(3, 4)


def _tiles_win(x: Images, depth: int) -> bool:
    """Whether tiles save more products than their sums cost."""
    h, w, c = x.shape[2:]
    return min(c, depth) >= _MANY and h % 2 == w % 2 == 0


def _blocks(arrays: Sequence[Array], depth: int) -> list[Array] | None:
    """Splits images into blocks that a core's cache holds; None if it holds all.

    The last block is filled with zeros, of which a convolution makes zeros. Groups are
    not split, nor images where there are devices that may share them.
    """
    g, n, h, w, _ = arrays[0].shape
    count = min(n, -(-g * n * h * w * depth // _CACHED))
    if count < 2 or jax.device_count() > 1:
        return None
    size = -(-n // count)
    count = -(-n // size)
    rest = ((0, 0), (0, count * size - n), (0, 0), (0, 0), (0, 0))
    return [
        jnp.pad(a, rest).reshape(g, count, size, *a.shape[2:]).swapaxes(0, 1)
        for a in arrays
    ]


def fastest(x: Images, kernel: Kernels, precision: Any) -> Values:
    """Convolves in the way that is the fastest one on CPU.

    Args:
      x: images, of groups.
      kernel: 3x3, one of each group.
      precision: of products; None is the backend's default.
    """
    g, n, h, w, c = x.shape
    k = kernel.shape[-1]
    if not _tiles_win(x, k):
        # A first layer of few images: less to spread than to fill, within the cache.
        if g > 1 or (9 * c <= k and n * h * w * k <= _CACHED):
            return by_product(x, kernel, precision)
        return plain(x[0], kernel[0], 1, precision)[None]
    blocks = _blocks([x], max(c, k))
    if blocks is None:
        return by_tiles(x, kernel, precision)
    y = jax.lax.map(lambda part: by_tiles(part, kernel, precision), blocks[0])
    return y.swapaxes(0, 1).reshape(g, len(y) * y.shape[2], *y.shape[3:])[:, :n]


def kernel_fastest(x: Images, slopes: Values, precision: Any) -> Kernels:
    """The gradient in the kernel in the way that is the fastest one on CPU.

    Args:
      x: images, of groups.
      slopes: gradient in what the convolution gives.
      precision: of products; None is the backend's default.
    """
    c, k = x.shape[-1], slopes.shape[-1]
    if c > k:
        # The side of fewer channels is the cheaper one to spread.
        return turned(kernel_fastest(slopes, x, precision))
    if not _tiles_win(x, k):
        return kernel_by_product(x, slopes, precision)
    blocks = _blocks([x, slopes], k)
    if blocks is None:
        return kernel_by_tiles(x, slopes, precision)

    def add(total, parts):
        few, back = parts
        return total + kernel_by_tiles(few, back, precision), None

    # A sum of nothing, so that within shard_map zero varies as the images do.
    zero = jnp.sum(x[:, :0]) + jnp.zeros((len(x), 3, 3, c, k), x.dtype)
    return jax.lax.scan(add, zero, blocks)[0]
