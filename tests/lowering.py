"""A plugin of pytest: every program that the tests run is lowered for an accelerator.

    LOWER_FOR=tpu PYTHONPATH=tests python -m pytest -p lowering tests/evasion

Branches on the backend are taken as that accelerator takes them, so that the tests
compare these with the rest, on CPU; then each compiled function is lowered for it. Of
functions that are called with several structures or static arguments each is lowered,
of shapes the first; of what is made anew at each call, within another function, a few.
At the end stands a table; with LOWER_TABLE=1 what must be
in it and is not fails the run (see `lowering_rows`), and of a parametrized test cases
are run while they give it rows.

A call to the host (`jax.debug.callback`) is lowered for the machine at hand alone, so
it is left out where `lowering_rows.HOSTED` says that there may be one; elsewhere it
fails the run.
"""

import dataclasses
import functools
import inspect
import os
from collections import Counter, defaultdict
from typing import Any

import jax
import lowering_rows
import numpy as np
import pytest
from jax._src import debugging
from jax._src.interpreters import mlir

_REAL = jax.jit
_PLATFORM = os.environ.get("LOWER_FOR", "tpu")
_SEEN: dict[Any, Any] = {}
_WRONG: list[str] = []
_LOWERED: Counter[str] = Counter()
# What was lowered within another program, and in how many.
_WITHIN: Counter[str] = Counter()
_HOST: Counter[str] = Counter()
_OF_A_KIND = 4
# Cases of a test that may give no new row before the others are left out.
_IN_VAIN = 6
_ARRAYS = (jax.Array, np.ndarray, np.generic)
# Programs that are called now, each with what it has called.
_OPEN: list[set[str]] = []
_INSIDE: dict[int, set[str]] = defaultdict(set)


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, _ARRAYS):
        return leaf
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _traced(arguments: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments))


def _static(arguments: Any) -> tuple[Any, ...]:
    """What of the arguments is no array: another one is another program."""
    found = []
    for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, _ARRAYS) or callable(leaf):
            continue
        try:
            hash(leaf)
        except TypeError:
            leaf = repr(leaf)
        found.append((type(leaf), leaf))
    return tuple(found)


def _named(value: Any) -> str:
    """The name of a function or of a step, with what a step is made of."""
    if isinstance(value, functools.partial):
        return _named(value.func)
    value = inspect.unwrap(value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    kind, parts = type(value), []
    if _is_step(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        parts = [told for field in fields if (told := _told(field))]
    made_of = f"({', '.join(parts)})" if parts else ""
    return f"{kind.__module__}.{kind.__qualname__}{made_of}"


def _is_step(value: Any) -> bool:
    own = type(value).__module__.startswith("ntk_privacy")
    return own and dataclasses.is_dataclass(value)


def _told(field: Any) -> str:
    """What of a step says which one it is; its numbers do not."""
    if isinstance(field, str):
        return field
    if isinstance(field, tuple) and all(isinstance(part, str) for part in field):
        return "+".join(field)
    if _is_step(field) or (callable(field) and hasattr(field, "__qualname__")):
        name, bracket, rest = _named(field).partition("(")
        return ".".join(name.split(".")[-2:]) + bracket + rest
    return ""


def _row(fun: Any) -> str:
    """The name of a program: of `_programs`, of the function that it was made of."""
    name = _named(fun)
    if not name.startswith("ntk_privacy._programs."):
        return name
    inner = inspect.unwrap(fun)  # of the checks of shapes
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__, strict=True))
    name = _named(cells["fun"].cell_contents)
    if name != "ntk_privacy._loop._scan_chunk":
        return name
    step = getattr(cells["now"].cell_contents, "static", (None,))[0]
    return _named(step)


def _jit(fun: Any = None, **options: Any) -> Any:
    """`jax.jit`, which remembers what it was called with."""
    if fun is None:
        return functools.partial(_jit, **options)
    made = _REAL(fun, **options)

    def call(*args, **kwargs):
        if _traced((args, kwargs)):
            if _OPEN:
                _OPEN[-1].add(_row(fun))
            return made(*args, **kwargs)
        # Before the call, which may take arrays for good; kept only if it succeeds.
        tree = jax.tree.structure((args, kwargs))
        place = (id(made), tree, _static((args, kwargs)))
        shapes = None if place in _SEEN else jax.tree.map(_shape, (args, kwargs))
        _OPEN.append(_INSIDE[id(made)])
        try:
            result = made(*args, **kwargs)
        finally:
            _OPEN.pop()
        if shapes is not None:
            _SEEN[place] = made  # kept alive: its number is not another one's
            row = _row(fun)
            if "<locals>" not in row or _LOWERED[row] < _OF_A_KIND:
                _lower(made, row, *shapes)
        return result

    for name in ("lower", "trace", "eval_shape", "clear_cache", "_cache_size"):
        setattr(call, name, getattr(made, name))
    with_name = functools.WRAPPER_ASSIGNMENTS
    return functools.update_wrapper(call, fun, assigned=with_name, updated=())


def _lower(made: Any, row: str, args: tuple, kwargs: dict) -> None:
    """Lowers at once: what a program closes over may be bound for the call alone."""
    _LOWERING.append(row)
    try:
        made.trace(*args, **kwargs).lower(lowering_platforms=(_PLATFORM,))
    except Exception as error:  # told, whatever it is
        told = " ".join(str(error).split())[:300]
        _WRONG.append(f"{row}: {type(error).__name__}: {told}")
    else:
        _LOWERED[row] += 1
        _WITHIN.update(_INSIDE[id(made)])
    finally:
        _LOWERING.pop()


_LOWERING: list[str] = []


def _no_host(context: Any, *operands: Any, **params: Any) -> list[Any]:
    del context, operands, params
    _HOST[_LOWERING[-1] if _LOWERING else ""] += 1
    return []


_BEFORE: dict[str, int] = {}
_STALE: Counter[str] = Counter()


def _rows() -> int:
    return len({*_LOWERED, *_WITHIN})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Skips what is left of a parametrized test that has no more rows to give."""
    function = item.nodeid.partition("[")[0]
    if os.environ.get("LOWER_TABLE") == "1" and _STALE[function] >= _IN_VAIN:
        pytest.skip("the last of its cases gave the table no new row")
    _BEFORE[item.nodeid] = _rows()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: Any) -> None:
    """Counts cases that gave no row, one after the other."""
    function = item.nodeid.partition("[")[0]
    if item.nodeid in _BEFORE:
        gave = _rows() > _BEFORE.pop(item.nodeid)
        _STALE[function] = 0 if gave else _STALE[function] + 1


def _table() -> list[str]:
    rows = sorted({*_LOWERED, *_WITHIN})
    own = [row for row in rows if row.startswith("ntk_privacy")]
    return [
        f"{row.removeprefix('ntk_privacy.')} | {_PLATFORM} | {_LOWERED[row]} programs, "
        f"within {_WITHIN[row]} others"
        for row in own
    ]


def pytest_sessionfinish(session: Any) -> None:
    """Fails the run where something was not lowered."""
    print("\n" + "\n".join(_table()))
    print(
        f"{sum(_LOWERED.values())} programs for {_PLATFORM}, {len(_WRONG)} not "
        f"lowered; in {len(_HOST)} functions a call to the host is left out"
    )
    for row in sorted(_HOST):
        print("without its call to the host:", row)
        if row not in lowering_rows.HOSTED:
            _WRONG.append(f"{row}: calls the host")
    for line in _WRONG:
        print("not lowered:", line)
    if _WRONG or not _SEEN:
        session.exitstatus = 1
    if os.environ.get("LOWER_TABLE") == "1":
        told = lowering_rows.missing({*_LOWERED, *_WITHIN})
        for line in told:
            print("table:", line)
        if told:
            session.exitstatus = 1


jax.jit = _jit
jax.default_backend = lambda: {"cuda": "gpu"}.get(_PLATFORM, _PLATFORM)
mlir.register_lowering(debugging.debug_callback_p, _no_host, platform=_PLATFORM)
