"""What differs between the versions of JAX that are supported, in one place."""

import contextlib

import jax

__all__ = ["enable_x64"]


def enable_x64(new: bool) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which float64 is on or off."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(new)
    from jax import experimental  # up to jax 0.7

    return experimental.enable_x64(new)  # pyright: ignore[reportAttributeAccessIssue]
