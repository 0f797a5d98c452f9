"""Aliases and protocols that the whole package speaks in."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

Params = Any
"""A pytree of arrays, such as a Flax `variables["params"]` collection."""

ApplyFn = Callable[[Params, Float[Array, "n ..."]], Float[Array, "n c"]]
"""`(params, images) -> outputs`: pure, one row of outputs per image."""

KernelFn = Callable[..., Float[Array, "n1 n2"]]
"""`(x1, x2) -> kernel`: one row per image of `x1`, one column per image of `x2`."""


class AtMost(int):
    """Steps of a loop that is meant to end sooner, at a loss: they measure nothing."""


@runtime_checkable
class Callback(Protocol):
    """Called on the host between jitted chunks; may checkpoint or show progress."""

    def __call__(
        self, step: int, state: Any, metrics: Mapping[str, Any], /
    ) -> bool | None:
        """`step` steps are done, `state` is what to resume from.

        True stops the loop, unless its function says that it cannot be cut short.
        """
        ...
