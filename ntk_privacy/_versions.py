"""What differs between the versions of JAX that are supported, in one place."""

import contextlib

import jax

__all__ = ["OWN_PRIMITIVES", "enable_x64"]

OWN_PRIMITIVES = jax.__version_info__ >= (0, 10)
"""Primitives of ours are differentiated and sharded as JAX's own.

Before 0.8 second derivatives of a bilinear one are wrong; before 0.10 its gradient is
not summed over devices."""


def enable_x64(new: bool) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which float64 is on or off."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(new)
    from jax import experimental  # up to jax 0.7

    return experimental.enable_x64(new)  # pyright: ignore[reportAttributeAccessIssue]
