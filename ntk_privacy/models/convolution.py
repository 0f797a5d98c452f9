"""Convolution and pooling, in the fastest ways that were found on CPU.

XLA's convolution on CPU is slow, and its gradient within a loop many times slower than
that of the products that it stands for.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

__all__ = [
    "average",
    "by_product",
    "by_tiles",
    "convolve",
    "convolve_strided",
    "on_cpu",
    "plain",
]

_FEW_CHANNELS = 8
# Channels from which tiles win, and with a gradient.
_MANY_CHANNELS, _MORE_CHANNELS = 32, 64


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


def by_product(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c k"],
    padding: int,
    precision: Any,
) -> Float[Array, "n p q k"]:
    """The same as one product of all pixels that the kernel sees; see `convolve`."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w, c = (x.shape[1] - 2, x.shape[2] - 2, x.shape[3])
    parts = [x[:, a : a + h, b : b + w] for a in range(3) for b in range(3)]
    flat = kernel.reshape(9 * c, -1)
    return jnp.matmul(jnp.concatenate(parts, -1), flat, precision=precision)


def by_tiles(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c k"], precision: Any
) -> Float[Array, "n h w k"]:
    """The same with padding 1 and even sides, by Winograd's F(2x2, 3x3).

    16 products per tile of four pixels rather than 36, of sums of pixels and of sums of
    kernel entries; rounding is that of the plain sum. Source: Lavin & Gray, CVPR 2016
    (arXiv:1509.09308).
    """
    n, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def differences(a, b, c, d):
        return a - c, b + c, c - b, b - d

    tiles = [[x[:, i : i + h - 1 : 2, j : j + w - 1 : 2] for j in range(4)]
             for i in range(4)]  # fmt: skip
    tiles = zip(*[differences(*column) for column in zip(*tiles, strict=True)],
                strict=True)  # fmt: skip
    tiles = [differences(*row) for row in tiles]
    half = jnp.asarray(0.5, x.dtype)
    for axis in (0, 1):
        a, b, d = (jax.lax.index_in_dim(kernel, i, axis, False) for i in range(3))
        middle = (half * (a + b + d), half * (a - b + d))
        kernel = jnp.stack([a, *middle, d], axis)
    products = [
        [jnp.matmul(tiles[i][j], kernel[i, j], precision=precision) for j in range(4)]
        for i in range(4)
    ]

    def sums(a, b, c, d):
        return jnp.stack([a + b + c, b - c - d])

    rows = jnp.stack([sums(*column) for column in zip(*products, strict=True)])
    y = sums(*rows)  # (column, row, n, h / 2, w / 2, k) within and between tiles
    return y.transpose(2, 3, 1, 4, 0, 5).reshape(n, h, w, -1)


def _in_tiles(x: Array, padding: int, least: int) -> bool:
    """Whether tiles save more products than their sums cost."""
    _, h, w, c = x.shape
    return c >= least and padding == 1 and h % 2 == w % 2 == 0


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def on_cpu(x: Array, kernel: Array, padding: int, precision: Any) -> Array:
    """The fastest way to a value, and to a derivative."""
    if _in_tiles(x, padding, _MANY_CHANNELS):
        return by_tiles(x, kernel, precision)
    if x.shape[-1] <= _FEW_CHANNELS:
        return by_product(x, kernel, padding, precision)
    return plain(x, kernel, padding, precision)


def _slope_on_cpu(padding, precision, primals, tangents):
    # Tiles win where the kernel stays.
    moves = [not isinstance(t, SymbolicZero) for t in tangents]
    tiles = moves == [True, False] and _in_tiles(primals[0], padding, _MORE_CHANNELS)

    def convolve(*moved):
        rest = iter(moved)
        x, kernel = (
            next(rest) if move else known
            for move, known in zip(moves, primals, strict=True)
        )
        if tiles:
            return by_tiles(x, kernel, precision)
        return by_product(x, kernel, padding, precision)

    pairs = [pair for move, pair in zip(moves, zip(primals, tangents, strict=True),
             strict=True) if move]  # fmt: skip
    return jax.jvp(convolve, *map(list, zip(*pairs, strict=True)))


on_cpu.defjvp(_slope_on_cpu, symbolic_zeros=True)


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c k"],
    padding: int,
    precision: Any,
) -> Float[Array, "n p q k"]:
    """Convolves with a kernel of 3x3 and stride 1.

    Args:
      x: images.
      kernel: of 3x3.
      padding: pixels of zero around the images.
      precision: of products.
    """
    way = on_cpu if jax.default_backend() == "cpu" else plain
    return way(x, kernel, padding, precision)


def convolve_strided(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "a b c k"],
    *,
    stride: int,
    padding: int,
    precision: Any,
) -> Float[Array, "n p q k"]:
    """Convolves with a square kernel, in the fastest way to a value and a derivative.

    Args:
      x: images.
      kernel: of any size.
      stride: of both sides.
      padding: pixels of zero around the images.
      precision: of products.
    """
    if jax.default_backend() != "cpu":
        return plain(x, kernel, padding, precision, stride=stride)
    size, c = kernel.shape[0], kernel.shape[2]
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down, right = ((length - size) // stride * stride + 1 for length in x.shape[1:3])
    # One product for each row of the kernel: fewer sums than one for each of its
    # pixels, and less to move than one of all.
    parts = [x[:, :, b : b + right : stride] for b in range(size)]
    rows = parts[0] if size == 1 else jnp.concatenate(parts, -1)
    products = [
        jnp.matmul(
            rows[:, a : a + down : stride],
            kernel[a].reshape(size * c, -1),
            precision=precision,
        )
        for a in range(size)
    ]
    return functools.reduce(jnp.add, products)


@jax.custom_jvp
def average(x: Float[Array, "n h w c"]) -> Float[Array, "n p q c"]:
    """Means over 2x2 of even sides: four slices, on CPU twice as fast as a sum."""
    total = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    return total / 4


@average.defjvp
def _slope_of_average(primals, tangents):
    # The reduction is the faster one with a gradient.
    def average(x):
        n, h, w, c = x.shape
        parts = x.reshape(n, h // 2, 2, w // 2, 2, c)
        return jnp.mean(parts, axis=(2, 4))

    return jax.jvp(average, primals, tangents)
