"""A plugin of pytest: every program that the tests run is lowered for an accelerator.

    LOWER_FOR=tpu PYTHONPATH=tests python -m pytest -p lowering tests/evasion

Branches on the backend are taken as that accelerator takes them, so that the tests
compare these with the rest, on CPU; then each compiled function is lowered for it. Of
functions that are called with several structures each is lowered, of shapes the first.
"""

import functools
import os
from typing import Any

import jax
import numpy as np

_REAL = jax.jit
_PLATFORM = os.environ.get("LOWER_FOR", "tpu")
_SEEN: dict[Any, Any] = {}
_WRONG: list[str] = []
_BOUND: list[Any] = []
_ARRAYS = (jax.Array, np.ndarray, np.generic)


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, _ARRAYS):
        return leaf
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _traced(arguments: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments))


def _jit(fun: Any = None, **options: Any) -> Any:
    """`jax.jit`, which remembers what it was called with."""
    if fun is None:
        return functools.partial(_jit, **options)
    made = _REAL(fun, **options)

    def call(*args, **kwargs):
        if _traced((args, kwargs)):
            return made(*args, **kwargs)
        # Before the call, which may take arrays for good; kept only if it succeeds.
        place = (id(made), jax.tree.structure((args, kwargs)))
        shapes = None if place in _SEEN else jax.tree.map(_shape, (args, kwargs))
        result = made(*args, **kwargs)
        if shapes is not None:
            _SEEN[place] = made  # kept alive: its number is not another one's
            _lower(made, *shapes)
        return result

    for name in ("lower", "trace", "eval_shape", "clear_cache", "_cache_size"):
        setattr(call, name, getattr(made, name))
    with_name = functools.WRAPPER_ASSIGNMENTS
    return functools.update_wrapper(call, fun, assigned=with_name, updated=())


def _lower(made: Any, args: tuple, kwargs: dict) -> None:
    """Lowers at once: what a program closes over may be bound for the call alone."""
    try:
        made.trace(*args, **kwargs).lower(lowering_platforms=(_PLATFORM,))
    except Exception as error:  # told, whatever it is
        if "platform for the specified backend" in str(error):
            _BOUND.append(made)  # a test put what it closes over on these processors
            return
        name = getattr(made, "__qualname__", repr(made))
        module = getattr(made, "__module__", "")
        told = " ".join(str(error).split())[:300]
        _WRONG.append(f"{module}.{name}: {type(error).__name__}: {told}")


def pytest_sessionfinish(session: Any) -> None:
    """Fails the run where something was not lowered."""
    print(
        f"\n{len(_SEEN)} programs for {_PLATFORM}, {len(_WRONG)} not lowered, "
        f"{len(_BOUND)} bound to processors by their tests"
    )
    for line in _WRONG:
        print("not lowered:", line)
    if _WRONG or not _SEEN:
        session.exitstatus = 1


jax.jit = _jit
jax.default_backend = lambda: {"cuda": "gpu"}.get(_PLATFORM, _PLATFORM)
