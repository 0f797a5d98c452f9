"""How small a crop may be while images are recovered: what SRe2L and CDA share.

Source: Yin, Xing & Shen, NeurIPS 2023 (SRe2L, arXiv:2306.13092).
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks

__all__ = ["MinShare", "constant_crop"]

MinShare = Callable[[Float[Array, ""]], Float[Array, ""]]
"""`progress -> share`: the least area of a crop when that part of all steps is done."""


@functools.cache
def constant_crop(share: _checks.Number = 0.08) -> MinShare:
    """Returns a least area that does not change: SRe2L's.

    Args:
      share: of the image, in (0, 1].

    Raises:
      ValueError: share is out of range.
    """
    _checks.positive(share=share)
    _checks.in_range(0, 1, share=share)
    return lambda progress: jnp.full_like(progress, share)
