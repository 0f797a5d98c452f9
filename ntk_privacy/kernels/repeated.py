"""Equal parts in a row: where they are, and as one compiled loop."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jaxtyping import Array

__all__ = ["blocks", "loop"]

T = TypeVar("T")

_MOST_PERIOD = 4


def blocks(parts: Sequence[Any]) -> tuple[int, int, int]:
    """Returns start, period and number of the equal blocks that cover most parts.

    Args:
      parts: compared by ==.
    """
    best = (0, 1, 1)
    for period in range(1, _MOST_PERIOD + 1):
        same = [a == b for a, b in zip(parts, parts[period:], strict=False)]
        start = 0
        for i, equal in enumerate([*same, False]):
            if equal:
                continue
            times = (i - start) // period + 1
            if times > 1 and times * period > best[1] * best[2]:
                best = (start, period, times)
            start = i + 1
    return best


def loop(fn: Callable[[T], T], times: int, value: T) -> T:
    """Returns fn(fn(...(value))), compiled once if fn leaves a value's form as it is.

    Args:
      fn: pure, from one pytree to another.
      times: how often.
      value: leaves that are no arrays of JAX are static.
    """
    leaves, tree = jax.tree.flatten(value)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def mixed(arrays: list[Array]) -> T:
        own = dict(zip(places, arrays, strict=True))
        return tree.unflatten([own.get(i, leaf) for i, leaf in enumerate(leaves)])

    rest: list[Any] = []

    def once(arrays: list[Array]) -> list[Array]:
        out, out_tree = jax.tree.flatten(fn(mixed(arrays)))
        kept = [None if i in places else leaf for i, leaf in enumerate(out)]
        rest[:] = [out_tree, *kept]
        return [out[i] for i in places if i < len(out)]

    arrays = [leaves[i] for i in places]
    shapes = jax.eval_shape(once, arrays)
    alike = [(a.shape, a.dtype) for a in shapes] == [(a.shape, a.dtype) for a in arrays]
    static = [None if i in places else leaf for i, leaf in enumerate(leaves)]
    if alike and rest == [tree, *static]:
        return mixed(jax.lax.fori_loop(0, times, lambda _, now: once(now), arrays))
    for _ in range(times):
        value = fn(value)
    return value
