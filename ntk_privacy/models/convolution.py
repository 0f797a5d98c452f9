"""Convolution and pooling, in the fastest ways that were found on CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _platform, _versions
from ntk_privacy.models import conv_primitive
from ntk_privacy.models.conv_products import plain

__all__ = ["average", "convolve", "convolve_strided", "products_saveable"]

_PRODUCTS = frozenset(
    {*conv_primitive.NAMES, "conv_general_dilated", "dot_general"},
)


def products_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: keep what convolutions and products give.

    They take most of the time, and what lies between them most of the memory.
    `jax.checkpoint_policies.dots_saveable` does not know convolutions.

    Args:
      primitive: of JAX, of which only the name matters.
    """
    return primitive.name in _PRODUCTS


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
    ours = _versions.OWN_PRIMITIVES and _platform.name() == "cpu"
    if not ours or padding < 1:
        return plain(x, kernel, padding, precision)
    more = padding - 1
    if more:
        x = jnp.pad(x, ((0, 0), (more, more), (more, more), (0, 0)))
    return conv_primitive.convolve(x, kernel, precision)


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
    if _platform.name() != "cpu":
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
    """Means over 2x2 of even sides: four slices, on CPU twice as fast as a sum.

    Args:
      x: images, of even height and width.
    """
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
