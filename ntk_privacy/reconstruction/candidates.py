"""Candidates of a search: how many, and those that show the same image."""

import dataclasses
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

__all__ = ["SAME_IMAGE", "distinct", "doubled"]

Config = TypeVar("Config")

SAME_IMAGE = 0.9
"""Cosine above which two candidates show the same image."""


def doubled(config: Config, count: int) -> Config:
    """Returns a config that searches for twice as many images, unless it says more.

    Args:
      config: of a method; left alone if it has no `num_candidates`, or has one.
      count: training images.

    Example:
      >>> from ntk_privacy.reconstruction import candidates, kkt
      >>> candidates.doubled(kkt.Config(), 10).num_candidates
      20
      >>> candidates.doubled(kkt.Config(num_candidates=3), 10).num_candidates
      3
    """
    if getattr(config, "num_candidates", 0) is not None:
        return config
    given: Any = config
    return dataclasses.replace(given, num_candidates=2 * count)


def distinct(
    images: Float[np.ndarray, "m h w d"], duals: Float[np.ndarray, "q m c"], count: int
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "q k c"], Int[np.ndarray, " r"]]:
    """Merges candidates that show the same image; keeps those that explain most.

    Args:
      images: of a search.
      duals: theirs, one set per point.
      count: how many to keep at most.

    Returns:
      Indices of the kept, their duals with those of their likes added, and indices of
      the candidates that are neither.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    norms = np.maximum(np.linalg.norm(flat, axis=1), 1e-30)
    alike = (flat @ flat.T) / np.outer(norms, norms) > SAME_IMAGE
    strength = np.linalg.norm(duals.sum(0), axis=1) * norms
    kept: list[int] = []
    sums: list[np.ndarray] = []
    free = np.ones(len(images), bool)
    for i in np.argsort(-strength, kind="stable"):
        if free[i] and len(kept) < count:
            group = alike[i] & free
            kept.append(int(i))
            sums.append(duals[:, group].sum(1))
            free &= ~group
    return np.asarray(kept), np.stack(sums, 1), np.flatnonzero(free)
