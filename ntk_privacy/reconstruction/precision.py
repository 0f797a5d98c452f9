"""How coarsely weights were stored: by their numbers, not by their dtype alone.

A network of 16 bits that was written as float32 is as coarse as before.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_privacy.models import published

__all__ = ["kind", "roundoff"]

_COARSE = (jnp.bfloat16, jnp.float16, jnp.float32)
_FIRST = 256  # numbers that tell as a rule
_FEWEST = 16  # entries that are not 0, of which fewer are chance


def kind(leaf: Any) -> np.dtype:
    """Returns the coarsest floating-point format that holds each number of a matrix.

    Of arrays that are no matrix, or nearly empty, it is their dtype.

    Args:
      leaf: floating-point array of JAX, NumPy or PyTorch.
    """
    array = published.as_numpy(leaf)
    if array.ndim < 2 or array.dtype.itemsize <= 2:
        return array.dtype
    flat = array[array != 0].ravel()
    for dtype in map(jnp.dtype, _COARSE):
        if dtype.itemsize >= array.dtype.itemsize or len(flat) < _FEWEST:
            break
        with np.errstate(over="ignore", under="ignore"):
            same = (
                np.array_equal(part.astype(dtype).astype(array.dtype), part)
                for part in (flat[:_FIRST], flat)
            )
            if all(same):
                return dtype
    return array.dtype


def roundoff(leaf: Any) -> float:
    """Returns the unit roundoff of stored weights.

    Args:
      leaf: see `kind`.
    """
    return float(jnp.finfo(kind(leaf)).eps) / 2
