"""Compile time and run time, apart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Timer:
    """Seconds of a stage: `compile` is tracing, lowering and compiling, `run` the rest.

    Both add up over repeated use.
    """

    def __init__(self) -> None:
        self.compile = 0.0
        self.run = 0.0
        self._active = False
        self._start = (0.0, 0.0)
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration: float, **_: object) -> None:
        if self._active and event in _COMPILE_EVENTS:
            self.compile += duration

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Times what runs inside the `with` block."""
        self._start = (self.compile, time.perf_counter())
        self._active = True
        try:
            yield
        finally:
            self.run = self.elapsed()
            self._active = False

    def elapsed(self) -> float:
        """Run time so far, that of the block under way included."""
        if not self._active:
            return self.run
        before, start = self._start
        spent = time.perf_counter() - start
        return self.run + max(spent - (self.compile - before), 0.0)
