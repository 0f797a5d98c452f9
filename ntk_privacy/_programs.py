"""Programs compiled once for a function, which they do not keep alive.

`jax.jit` with a function as static argument holds on to it, and to all that it closes
over, for as long as the process lives. Here the function is known by weak reference:
when its owner lets go of it, its programs go too.
"""

import dataclasses
import functools
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

__all__ = ["Memo", "hashable", "jit"]

T = TypeVar("T")

# What is known by its value, such as a configuration, has no end of life to wait for.
_MOST = 512


def hashable(value: Any) -> bool:
    """Returns whether a value can be a key, as a cache of compiled programs needs."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


class Memo:
    """Values remembered by keys whose functions may die; then the value goes."""

    def __init__(self, most: int = _MOST):
        self._most = most
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._dead: deque[Any] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns how many values are held."""
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value of an equal key, or makes it.

        Args:
          key: functions, alone or in tuples, partial functions, bound methods and
            frozen dataclasses, are known weakly; all else by its value.
          make: of the value, which must not hold the functions of the key.
        """
        frozen = _frozen(key, self._forget)
        with self._lock:
            self._bury()
            if frozen in self._entries:
                self._entries.move_to_end(frozen)
                return self._entries[frozen]
        made = make()
        with self._lock:
            made = self._entries.setdefault(frozen, made)
            if len(self._entries) > self._most:
                self._entries.popitem(last=False)
        return made

    # By default arguments: at the end of the process the names of modules are gone.
    def _forget(
        self, reference: Any, is_ending: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        if is_ending():
            return
        self._dead.append(reference)
        # The collector may strike while this very thread holds the lock: then later.
        if self._lock.acquire(blocking=False):
            try:
                self._bury()
            finally:
                self._lock.release()

    def _bury(self) -> None:
        while self._dead:
            dead = self._dead.popleft()
            for key in [k for k in self._entries if self._mentions(k, dead)]:
                # Gone already if its hash has changed, which is the owner's fault.
                self._entries.pop(key, None)

    # A method: at the end of the process the names of modules go before functions do.
    def _mentions(self, key: Hashable, reference: Any) -> bool:
        if isinstance(key, tuple):
            return any(self._mentions(part, reference) for part in key)
        return key is reference


def jit(*, num_static: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns `jax.jit` whose first arguments are static and not kept alive.

    A call whose static arguments equal those of an earlier one runs its program, as
    with `jax.jit`. One of static arguments without a hash is not compiled.

    Args:
      num_static: how many of the positional arguments are static.
    """

    def decorate(fun):
        programs = Memo()

        @functools.wraps(fun)
        def call(*args):
            static, rest = args[:num_static], args[num_static:]
            if not hashable(static):
                return fun(*args)
            program = programs.get(static, lambda: _Program(fun))
            return program(static, rest)

        return call

    return decorate


class _Program:
    """A jitted function that is told of its static arguments at each call only."""

    def __init__(self, fun: Callable[..., Any]):
        now = self._now = threading.local()

        def traced(*rest):
            return fun(*now.static, *rest)

        traced.__name__ = fun.__name__  # what profiles and compiled programs show
        self._jitted = jax.jit(traced)

    def __call__(self, static: tuple[Any, ...], rest: tuple[Any, ...]) -> Any:
        before = getattr(self._now, "static", ())
        self._now.static = static
        try:
            return self._jitted(*rest)
        finally:
            self._now.static = before


def _frozen(value: Any, forget: Callable[[Any], None]) -> Hashable:
    """Returns a key equal to that of an equal value, which holds no function."""
    if isinstance(value, types.MethodType):
        return (types.MethodType, _frozen(value.__self__, forget), value.__func__)
    if isinstance(value, tuple):
        return (type(value), *(_frozen(part, forget) for part in value))
    if _is_plain_dataclass(value):
        parts = [getattr(value, f.name) for f in dataclasses.fields(value) if f.compare]
        return (type(value), *(_frozen(part, forget) for part in parts))
    return weakref.ref(value, forget) if _is_one_of_a_kind(value) else value


def _is_one_of_a_kind(value: Any) -> bool:
    """Returns whether a value equals itself alone, and can be referred to weakly."""
    kind = type(value)
    by_identity = kind.__hash__ is object.__hash__ and kind.__eq__ is object.__eq__
    lasting = isinstance(value, type | types.ModuleType | types.BuiltinFunctionType)
    return by_identity and not lasting and kind.__weakrefoffset__ != 0


def _is_plain_dataclass(value: Any) -> bool:
    options = type(value).__dict__.get("__dataclass_params__")
    return options is not None and options.eq and options.frozen
