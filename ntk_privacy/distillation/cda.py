"""CDA: recovery whose crops go from whole images to small parts of them.

All else is SRe2L's: `sre2l.recover(..., min_share=cda.curriculum())`.

Source: Yin & Shen, 2023 (Dataset Distillation in Large Data Era, arXiv:2311.18838).
"""

import functools

import jax.numpy as jnp

from ntk_privacy import _checks
from ntk_privacy.distillation.crop_share import MinShare

__all__ = ["KINDS", "curriculum"]

KINDS = ("cosine", "linear", "step")


@functools.cache
def curriculum(
    kind: str = "cosine", *, milestone: _checks.Number = 1.0, low: _checks.Number = 0.08
) -> MinShare:
    r"""Returns the least area of a crop, from 1 down to `low` at the milestone.

    $low + (1 - low)\,(1 + \cos(\pi t / m)) / 2$, or $1 - t/m$ in place of the cosine's
    factor, or 1 until the milestone m; t is the part of the steps that is done.

    Args:
      kind: "cosine", "linear" or "step".
      milestone: part of the steps until which it falls; the released script for large
        images leaves it at 0, which makes it SRe2L.
      low: least area after that; 0.4 for CIFAR, 0.08 else.

    Raises:
      ValueError: an unknown kind, or a number outside of (0, 1].
    """
    _checks.one_of(KINDS, kind=kind)
    _checks.positive(milestone=milestone, low=low)
    _checks.in_range(0, 1, milestone=milestone, least_share=low)

    def min_share(progress):
        part = progress / milestone
        factors = {
            "cosine": (1 + jnp.cos(jnp.pi * part)) / 2,
            "linear": 1 - part,
            "step": jnp.ones_like(part),
        }
        return low + (1 - low) * jnp.where(part < 1, factors[kind], 0)

    return min_share
