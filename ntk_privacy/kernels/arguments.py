r"""What people pass as images and parameters, made into what kernels are taken of.

Floating-point leaves are differentiated. A complex leaf counts as two real ones, its
real and its imaginary part, so that its share of the kernel is
$\sum \partial_{re} f\, \partial_{re} f' + \partial_{im} f\, \partial_{im} f'$.
Integers, booleans and random keys are held fixed. Python numbers are leaves too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_privacy._types import ApplyFn, Params

__all__ = [
    "images",
    "is_floating",
    "parameters",
    "real",
    "real_apply_fn",
    "result_dtype",
]


class _Parts(NamedTuple):
    """Of a complex leaf; its fields name it in messages and plans."""

    re: Any
    im: Any


def images(name: str, x: Any) -> Array:
    """Returns an array of what can be one.

    Args:
      name: of the argument, for messages.
      x: an array, or nested lists of numbers.

    Raises:
      ValueError: a dictionary, text, rows of unequal length.
    """
    try:
        if x is not None:
            return jnp.asarray(x)
        raise TypeError  # noqa: TRY301
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} is a {type(x).__name__} that is no array of numbers: give one "
            "array of images, (n, ...), and unpack other inputs inside apply_fn."
        ) from error


def parameters(params: Params, dtype: Any) -> Params:
    """Returns the same tree with an array, or its shape, at every leaf.

    Args:
      params: any pytree.
      dtype: of the images, which Python floats take.

    Raises:
      ValueError: a leaf that is no number, such as text.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _leaf(path, leaf, dtype), params
    )


def _leaf(path, leaf, dtype):
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufcV":
        return jnp.asarray(leaf)
    if isinstance(leaf, bool | int):
        return jnp.asarray(leaf)
    if isinstance(leaf, float):
        return jnp.asarray(leaf, dtype)
    if isinstance(leaf, complex):
        return jnp.asarray(leaf, "complex128" if dtype == jnp.float64 else "complex64")
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    kind = getattr(leaf, "dtype", None)
    told = f"a {type(leaf).__name__}" if kind is None else f"an array of {kind}"
    raise ValueError(
        f"params{jax.tree_util.keystr(path)} is {told}: keep what is no number out of "
        "the parameters, such as inside apply_fn."
    )


def is_floating(leaf: Any) -> bool:
    """Returns whether a real leaf is differentiated; counters and keys are not.

    Args:
      leaf: array, or its shape and dtype.
    """
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def real(params: Params) -> Params:
    """Returns the tree with complex leaves as pairs of real ones.

    Args:
      params: pytree of arrays, or of their shapes and dtypes.
    """

    def parts(leaf):
        if not _is_complex(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            dtype = jnp.finfo(leaf.dtype).dtype
            return _Parts(*[jax.ShapeDtypeStruct(leaf.shape, dtype)] * 2)
        return _Parts(jnp.real(leaf), jnp.imag(leaf))

    return jax.tree.map(parts, params)


def real_apply_fn(apply_fn: ApplyFn, params: Params) -> ApplyFn:
    """Returns the network as a function of `real(params)`; itself if all are real.

    Args:
      apply_fn: `(params, images) -> outputs`.
      params: that it takes; their dtypes alone matter.
    """
    if not any(_is_complex(leaf) for leaf in jax.tree.leaves(params)):
        return apply_fn

    def whole(leaf):
        return jax.lax.complex(*leaf) if isinstance(leaf, _Parts) else leaf

    def applied(params, x):
        joined = jax.tree.map(whole, params, is_leaf=lambda a: isinstance(a, _Parts))
        return apply_fn(joined, x)

    return applied


def result_dtype(out: Any, params: Params) -> Any:
    """Returns the dtype of a kernel, the same by every method.

    Args:
      out: outputs of the network, or their shape.
      params: its parameters, or their shapes.
    """
    own = [leaf.dtype for leaf in jax.tree.leaves(real(params)) if is_floating(leaf)]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(out.dtype, *own)
