"""A convolution of 3x3 whose derivatives of any order are made of itself.

It is linear in the images and in the kernel, and so is the gradient in the kernel; each
derivative of either is one of the two again. They are primitives, since of the products
that stand for them on CPU JAX would find derivatives that are many times slower.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from ntk_privacy.models import conv_products

__all__ = ["NAMES", "convolve"]

NAMES = ("convolve_3x3", "convolve_3x3_kernel")


def _primitive(
    name: str, way: Callable[..., Array], shape: Callable[..., tuple[int, ...]]
) -> Primitive:
    """Returns a primitive of two arrays, each with an axis of groups first.

    Args:
      name: of the primitive.
      way: `(a, b, precision)` to the result.
      shape: of the result, from those of a and b.
    """
    made = Primitive(name)
    made.def_impl(jax.jit(way, static_argnames="precision"))

    def typed(a, b, *, precision):
        del precision
        return a.update(shape=shape(a.shape, b.shape), weak_type=False)

    made.def_abstract_eval(typed)
    mlir.register_lowering(made, mlir.lower_fun(way, multiple_results=False))
    return made


def _value_shape(x: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    return (*x[:4], kernel[4])


def _kernel_shape(x: tuple[int, ...], slopes: tuple[int, ...]) -> tuple[int, ...]:
    return (x[0], 3, 3, x[4], slopes[4])


_VALUE = _primitive(NAMES[0], conv_products.fastest, _value_shape)
_KERNEL = _primitive(NAMES[1], conv_products.kernel_fastest, _kernel_shape)


def _turned(x: Array, kernel: Array, **options: Any) -> Array:
    """The transpose in the images: slopes of the values to slopes of the images."""
    return _VALUE.bind(x, conv_products.turned(kernel), **options)


ad.defbilinear(
    _VALUE,
    lambda slopes, _, kernel, **options: _turned(slopes, kernel, **options),
    lambda slopes, x, _, **options: _KERNEL.bind(x, slopes, **options),
)
ad.defbilinear(
    _KERNEL,
    lambda kernel, _, slopes, **options: _turned(slopes, kernel, **options),
    lambda kernel, x, _, **options: _VALUE.bind(x, kernel, **options),
)


def _into(a: Array, axis: int) -> Array:
    """Merges a first axis into another one, of which it is the slower part."""
    a = jnp.moveaxis(a, 0, axis)
    length = a.shape[axis] * a.shape[axis + 1]
    return a.reshape(*a.shape[:axis], length, *a.shape[axis + 2 :])


def _batched(made: Primitive, first: tuple[int, int], second: tuple[int, int]) -> Any:
    """Returns the rule of vmap.

    Args:
      made: the primitive.
      first: where the first array alone is mapped: its axis that takes the mapped one,
        and that of the result.
      second: the same of the second array.
    """

    def rule(arrays, axes, **options):
        mapped = [axis is not None for axis in axes]
        takes = [0, 0] if all(mapped) else [first[0], second[0]]
        result = 0 if all(mapped) else first[1] if mapped[0] else second[1]
        arrays = [
            array if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        ]
        # The axis of the result is as long as the one that was merged into.
        one = mapped.index(True)
        split = (arrays[one].shape[0], arrays[one].shape[takes[one] + 1])
        y = made.bind(
            *(
                _into(array, take) if there else array
                for array, take, there in zip(arrays, takes, mapped, strict=True)
            ),
            **options,
        )
        y = y.reshape(*y.shape[:result], *split, *y.shape[result + 1 :])
        return jnp.moveaxis(y, result, 0), 0

    return rule


# More images, or more channels of the result; of both, more groups.
batching.primitive_batchers[_VALUE] = _batched(_VALUE, (1, 1), (4, 4))
# More channels of the kernel, before it or behind.
batching.primitive_batchers[_KERNEL] = _batched(_KERNEL, (4, 3), (4, 4))


def _varying(a: Array) -> frozenset[str]:
    """Returns the axes of a mesh over which an array varies, within shard_map."""
    return getattr(getattr(jax.typeof(a), "mat", None), "varying", frozenset())


def convolve(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c k"], precision: Any
) -> Float[Array, "n h w k"]:
    """Convolves with a kernel of 3x3, stride 1 and padding 1.

    Args:
      x: images.
      kernel: of 3x3.
      precision: of products.

    Raises:
      ValueError: the kernel has other sides, or other channels than the images.
      TypeError: they are not of floating-point numbers.
    """
    if kernel.shape[:3] != (3, 3, x.shape[-1]):
        raise ValueError(
            f"kernel has shape {kernel.shape} but must be (3, 3, {x.shape[-1]}, k) for "
            f"images of shape {x.shape}."
        )
    dtype = jnp.result_type(x, kernel)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"Images and kernel are of type {dtype}: convert them to float."
        )
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    # JAX does so before its own primitives: the gradient is then summed over devices.
    axes = _varying(x) | _varying(kernel)
    x, kernel = (
        jax.lax.pcast(a, tuple(axes - _varying(a)), to="varying")
        if axes - _varying(a)
        else a
        for a in (x, kernel)
    )
    return _VALUE.bind(x[None], kernel[None], precision=precision)[0]
