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
    # Most differ at once: no copy of a large matrix is made for these.
    first = array.flat[:_FIRST]
    coarse = [jnp.dtype(d) for d in _COARSE]
    coarse = [d for d in coarse if d.itemsize < array.itemsize and _hold(d, first)]
    if not coarse or np.count_nonzero(array) < _FEWEST:
        return array.dtype
    return next((d for d in coarse if _hold(d, array)), array.dtype)


def _hold(dtype: np.dtype, numbers: np.ndarray) -> bool:
    """Whether a format holds each of these numbers."""
    with np.errstate(over="ignore", under="ignore"):
        return np.array_equal(numbers.astype(dtype).astype(numbers.dtype), numbers)


def roundoff(leaf: Any) -> float:
    """Returns the unit roundoff of stored weights.

    Args:
      leaf: see `kind`.
    """
    return float(jnp.finfo(kind(leaf)).eps) / 2
