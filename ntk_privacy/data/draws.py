"""Which images are drawn: as many of each (super)class, fixed by a key.

Subsets follow the released code of Loo et al. (arXiv:2302.01428).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from ntk_privacy.data.dataset import ArgumentError


def balanced(
    groups: Int32[np.ndarray, " n"],
    num_train: int,
    key: jax.Array,
    *,
    names: Sequence[str],
    task: str,
    source: str,
) -> Int32[np.ndarray, " m"]:
    """Returns rows, as many of each group, in order of the groups.

    Args:
        groups: (Super)class of each image, in [0, len(names)).
        num_train: Rows, a multiple of the number of groups.
        key: Fixes the draw, which is uniform without replacement.
        names: Of the groups.
        task: What they are groups of, for messages.
        source: Whose images they are, for messages.

    Raises:
        ArgumentError: The number is no such multiple, or a group has too few images.
    """
    _whole(num_train=num_train)
    if num_train < 1 or num_train % len(names):
        raise ArgumentError(
            f"num_train={num_train} does not split evenly into the {len(names)} "
            f"classes of {task}: use a positive multiple of {len(names)}."
        )
    each = num_train // len(names)
    counts = np.bincount(groups, minlength=len(names))
    scarcest = int(np.argmin(counts))
    if each > counts[scarcest]:
        have = counts[scarcest]
        raise ArgumentError(
            f"num_train={num_train} needs {each} images of {names[scarcest]}, but "
            f"{source} has {have}, {len(groups)} training images in all: use at most "
            f"{have * len(names)}."
        )
    order = _shuffled(key, len(groups))
    chosen = [order[groups[order] == index][:each] for index in range(len(names))]
    return np.concatenate(chosen)


def uniform(
    available: int, num_test: int, key: jax.Array, *, source: str
) -> Int32[np.ndarray, " m"]:
    """Returns rows in ascending order, drawn uniformly without replacement.

    Args:
        available: Rows that there are.
        num_test: Rows to draw.
        key: Fixes the draw.
        source: Whose images they are, for messages.

    Raises:
        ArgumentError: There are not so many.
    """
    _whole(num_test=num_test)
    if not 1 <= num_test <= available:
        raise ArgumentError(
            f"num_test={num_test} must lie in [1, {available}]: {source} has "
            f"{available} test images."
        )
    return np.sort(_shuffled(key, available)[:num_test])


def _whole(**count: Any) -> None:
    ((name, value),) = count.items()
    if not isinstance(value, int | np.integer):
        raise ArgumentError(f"{name}={value!r} must be a whole number.")


def check_key(key: Any) -> None:
    """Raises ValueError unless it is a typed key.

    Args:
        key: What was given as one.

    Raises:
        ValueError: It is none, such as None, a seed or an old-style key.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key={key!r} is no typed key, which num_train and num_test need: give "
            "key=jax.random.key(0)."
        )


def _shuffled(key: jax.Array, count: int) -> Int32[np.ndarray, " n"]:
    """Returns `range(count)` in an order that is uniform given the key."""
    # One draw for all classes: jax.random.permutation compiles anew for each size.
    priority = np.asarray(jax.random.bits(key, (count,), "uint32"))
    return np.argsort(priority, kind="stable").astype(np.int32)


def keys(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a run's images, and of a network's weights.

    Args:
        seed: Of the run, in [0, 2**32).
    """
    key = jax.random.fold_in(jax.random.key(0), seed)
    key_data, key_init = jax.random.split(key)
    return key_data, key_init
