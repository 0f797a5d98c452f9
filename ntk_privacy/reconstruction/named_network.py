"""Functions of people's own modules, by the name "module:function"."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from ntk_privacy._types import ApplyFn

__all__ = ["as_apply_fn", "loaded"]


def loaded(spec: str, *, flag: str, wants: str) -> Any:
    """Returns what a module has by a name.

    Args:
      spec: "module:function".
      flag: what messages call it.
      wants: what it must be, for messages.

    Raises:
      ValueError: no such form, module or name, or a module that fails.
    """
    module, colon, function = spec.partition(":")
    if not colon or not all(map(str.isidentifier, (*module.split("."), function))):
        raise ValueError(f"{flag}={spec!r} is no module:function: name {wants}.")
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ValueError(
            f"{flag}={spec!r} cannot be had ({error}): give module:function with the "
            f"module on the path, {wants}."
        ) from error


_WANTS = (
    "a function (params, images) -> outputs, images (n, height, width, depth), or an "
    "object that has it as apply_fn or apply"
)


def as_apply_fn(spec: str) -> ApplyFn:
    """Returns the function of a network, `(params, images) -> outputs`.

    Args:
      spec: "module:name": such a function, a Flax linen module, a transformed function
        of Haiku, or an object with `apply_fn` or `apply`.

    Raises:
      ValueError: there is no such module or name, or it is no such function.

    Example:
      >>> from ntk_privacy.reconstruction import named_network
      >>> named_network.as_apply_fn("jax.numpy:matmul").__name__
      'matmul'
    """
    return _applied(loaded(spec, flag="network", wants=_WANTS), spec)


def _applied(found: Any, spec: str) -> ApplyFn:
    apply_fn = getattr(found, "apply_fn", None)
    if apply_fn is None and isinstance(found, nn.Module):
        module = found
        return lambda params, images: module.apply({"params": params}, images)  # pyright: ignore[reportReturnType]
    apply_fn = apply_fn or getattr(found, "apply", None) or found
    if not callable(apply_fn):
        raise ValueError(  # noqa: TRY004
            f"network={spec!r} is a {type(found).__name__}: name {_WANTS}."
        )
    return _of_two(apply_fn, spec)


def _of_two(apply_fn: Callable[..., Any], spec: str) -> ApplyFn:
    """Checks that a function takes parameters and images; Haiku's take a key between.

    Raises:
      ValueError: it takes something else.
    """
    try:
        signature = inspect.signature(apply_fn)
    except (TypeError, ValueError):  # of compiled functions that do not tell
        return apply_fn
    if list(signature.parameters)[1:2] == ["rng"]:
        return lambda params, images: apply_fn(params, None, images)
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"network={spec!r} does not take (params, images) ({error}): name {_WANTS}."
        ) from error
    return apply_fn
