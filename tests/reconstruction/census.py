"""Certificates beside the truth, counted over many inputs."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_SHARED = 3  # gates that near copies which are read as one may differ in

Layer = tuple[np.ndarray, np.ndarray]  # kernel and bias


class Census(NamedTuple):
    """inputs; images of theirs; certified ones; the false among these, and those that
    the docstring of `closed_units.reconstruct` excepts, as means of images that share
    every gate.

    empty: images of inputs with nothing certified. tightest: least stated over true
    error.
    """

    inputs: int = 0
    images: int = 0
    certified: int = 0
    false: int = 0
    merged: int = 0
    empty: int = 0
    tightest: float = np.inf


def summed(parts: Iterable[Census]) -> Census:
    total = Census()
    for one in parts:
        sums = (a + b for a, b in zip(total[:-1], one[:-1], strict=True))
        total = Census(*sums, min(total.tightest, one.tightest))
    return total


def _merged(image: np.ndarray, truth: np.ndarray, layers: list[Layer]) -> float:
    """Relative distance to the line through two images that share every gate."""
    best = np.inf
    if not layers:
        return best
    for i, j in itertools.combinations(range(len(truth)), 2):
        size, step = np.linalg.norm(truth[i]), truth[j] - truth[i]
        differ = 0
        for kernel, bias in layers:
            gates = truth[[i, j]] @ kernel + bias > 0
            differ = max(differ, int(np.sum(gates[0] != gates[1])))
        if differ <= _SHARED and np.linalg.norm(step) > 0:
            share = np.clip((image - truth[i]) @ step / (step @ step), -3, 4)
            far = np.linalg.norm(image - truth[i] - share * step)
            best = min(best, float(far / max(size, 1e-9)))
    return best


def weigh(
    rows: np.ndarray,
    certified: np.ndarray,
    errors: np.ndarray,
    truth: np.ndarray,
    *,
    forms: np.ndarray | None = None,
    layers: list[Layer],
    spread: float = 0.0,
) -> Census:
    """Compares what was read of one input with the truth.

    Args:
      rows: (m, d), read.
      certified: (m,).
      errors: (m,), stated.
      truth: (n, d).
      forms: what may be read besides.
      layers: the first layer, at every moment at which its gates count; none: no mean
        of images is excepted.
      spread: how far from an image, over its norm, the forms that were shown lie.

    Excepted are mixtures of two images that open the same units but three at most, also
    beyond either by up to three times their distance, and what is within `spread`.
    """
    sure = np.asarray(certified)
    flat = np.asarray(rows, np.float64)[sure]
    stated = np.asarray(errors, np.float64)[sure]
    truth = np.asarray(truth, np.float64)
    shown = truth if forms is None else np.concatenate([truth, forms])
    sizes = np.maximum(np.linalg.norm(shown, axis=1), 1e-9)
    far = np.linalg.norm(flat[:, None] - shown[None], axis=2) / sizes[None]
    far = far.min(1, initial=np.inf)
    beyond = ~(far <= stated)  # NaN is beyond too
    wide = [tuple(np.asarray(leaf, np.float64) for leaf in each) for each in layers]
    excepted = sum(
        _merged(image, shown, wide) <= error or distance <= error + spread
        for image, error, distance in zip(
            flat[beyond], stated[beyond], far[beyond], strict=True
        )
    )
    ratios = (stated / np.maximum(far, 1e-12))[~beyond]
    return Census(
        1, len(truth), int(sure.sum()), int(beyond.sum()) - int(excepted),
        int(excepted), 0 if sure.any() else len(truth),
        float(np.min(ratios, initial=np.inf)),
    )  # fmt: skip
