"""One resumable loop for every method: restore, progress, checkpoints, time, stop.

A method hands each of its loops to a `Stage`. In a notebook that is `straight`, which
just runs it; a binary makes one with `resumed`, whose loops go on from their last
checkpoint, show their progress, save now and then, and count their seconds, those of
earlier starts too. The method cannot tell the difference, and ends with the same bits.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import Shaped

from ntk_privacy import checkpoint, hosts
from ntk_privacy._types import Callback

__all__ = ["Every", "Ran", "Stage", "Timer", "finite", "limited", "once", "resumed"]
__all__ += ["straight", "timed", "until", "watched"]

State = TypeVar("State")
Result = TypeVar("Result")

_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


@dataclasses.dataclass(frozen=True)
class Ran(Generic[Result]):
    """What a stage returns.

    Attributes:
      result: of the loop.
      losses: metric "loss" of every step, those before a kill too; NaN where a step
        has none or was not run.
    """

    result: Result
    losses: Shaped[np.ndarray, " steps"]


@runtime_checkable
class Stage(Protocol):
    """Runs one loop, from its start or from where an earlier process left it."""

    def __call__(
        self,
        name: str,
        start: State,
        go: Callable[[State, int, Callback], Result],
        num_steps: int,
    ) -> Ran[Result]:
        """Returns the loop's result.

        Args:
          name: of the stage: its checkpoints, its progress bar; one for each loop.
          start: the state before the first step, a pytree of arrays; None where no
            shape is known before the loop has run, see `once`.
          go: `(state, steps_done, callback) -> result`: runs the loop on and calls
            `callback(steps_done, state, metrics)` after each chunk, the last one too;
            when that returns True it stops and returns what it has.
          num_steps: steps in all, at most.
        """
        ...


@runtime_checkable
class Bar(Protocol):
    """A progress bar, or whatever watches a loop: a callback that is closed."""

    def __call__(self, step: int, state: Any, metrics: Mapping[str, Any], /) -> Any:
        """`step` steps are done; True stops the loop."""
        ...

    def close(self) -> None:
        """The loop has ended."""
        ...


class Every:
    """True at most once in so many seconds: when to write a checkpoint."""

    def __init__(self, seconds: float, clock: Callable[[], float] | None = None):
        self._seconds, self._clock = seconds, clock or time.monotonic
        self._last = self._clock()

    def __call__(self) -> bool:
        """Whether the time has come."""
        if self._clock() - self._last < self._seconds:
            return False
        self._last = self._clock()
        return True


_RUNNING: "list[Timer]" = []


@functools.cache
def _listen() -> None:
    """Lets the timers that run hear of compilation: one listener for all, for good."""

    def heard(event: str, duration_secs: float, **_: object) -> None:
        if event in _COMPILE_EVENTS:
            for timer in _RUNNING:
                timer.compile += duration_secs

    jax.monitoring.register_event_duration_secs_listener(heard)


class Timer:
    """Seconds of a stage: `compile` is tracing, lowering and compiling, `run` the rest.

    Both add up over repeated use.
    """

    def __init__(self) -> None:
        self.compile = 0.0
        self.run = 0.0
        self._active = False
        self._start = (0.0, 0.0)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Times what runs inside the `with` block; within another, changes nothing."""
        if self._active:
            yield
            return
        self._start = (self.compile, time.perf_counter())
        self._active = True
        _listen()
        _RUNNING.append(self)
        try:
            yield
        finally:
            self.run = self.elapsed()
            self._active = False
            _RUNNING.remove(self)

    def elapsed(self) -> float:
        """Run time so far, that of the block under way included."""
        if not self._active:
            return self.run
        before, start = self._start
        spent = time.perf_counter() - start
        return self.run + max(spent - (self.compile - before), 0.0)


class _Losses:
    """Metric "loss" by step; no loop needs to have one."""

    def __init__(self, num_steps: int) -> None:
        self.values = np.full(num_steps, np.nan)

    def add(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Keeps the losses of a chunk; returns whether the last is not finite."""
        if "loss" not in metrics:
            return False
        part = np.atleast_1d(np.asarray(metrics["loss"]))
        self.values[step - len(part) : step] = part
        return not np.isfinite(part[-1])


def watched(callback: Callback | None = None) -> Stage:
    """Returns a stage that runs loops at once, and tells `callback` of every chunk.

    Args:
      callback: `(steps_done, state, metrics)`; True stops the loop.

    Example:
      >>> from ntk_privacy import resume
      >>> stage = resume.watched(lambda step, state, metrics: step >= 100)
    """

    def run(name, start, go, num_steps):
        """Runs a loop at once. Args: those of `Stage`.

        Example:
          >>> from ntk_privacy import resume
          >>> go = lambda state, done, callback: state + 3
          >>> resume.straight("count", 0, go, 3).result
          3
        """
        del name
        losses = _Losses(num_steps)

        def after_chunk(step, state, metrics):
            losses.add(step, metrics)
            return callback is not None and bool(callback(step, state, metrics))

        return Ran(go(start, 0, after_chunk), losses.values)

    return run


straight: Stage = watched()
"""Runs each loop at once: no files, no progress."""


def limited(seconds: float, *, timer: Timer, watch: Callback | None = None) -> Stage:
    """Returns a stage whose loops stop when a time is over, or a loss is lost.

    Args:
      seconds: of run time, compilation apart; the chunk under way is finished.
      timer: counts them, over all loops.
      watch: told of every chunk; what it returns is of no matter.

    Example:
      >>> from ntk_privacy import resume
      >>> stage = resume.limited(2.0, timer=resume.Timer())
    """

    def run(name, start, go, num_steps):
        del name, num_steps
        losses = []

        def after_chunk(step, state, metrics):
            # What is under way on a device is not yet over.
            jax.block_until_ready(state)
            if "loss" in metrics:
                losses.append(np.atleast_1d(np.asarray(metrics["loss"])))
            if watch is not None:
                watch(step, state, metrics)
            return hosts.agreed(timer.elapsed() >= seconds) or is_lost(state)

        with timer():
            result = go(start, 0, after_chunk)
        return Ran(result, np.concatenate(losses) if losses else np.zeros(0))

    return run


def is_lost(state: Any) -> bool:
    """Whether a state says that its loss is no longer finite."""
    return bool(np.any(np.asarray(getattr(state, "nonfinite", False))))


def resumed(
    folder: pathlib.Path,
    *,
    timer: Timer,
    seconds: float = 30.0,
    bar: Callable[[str, int, int], Bar] | None = None,
    stop: Callback | None = None,
) -> Stage:
    """Returns a stage whose loops go on from their last checkpoint.

    A state that says `nonfinite`, or whose last loss is not finite, is not saved: the
    next start repeats the last steps and ends in the same way. Of several hosts the
    first one saves.

    Args:
      folder: of the checkpoints; each stage has one of its own in it.
      timer: counts the seconds of all stages; a stage that goes on first sets it to
        what it had counted.
      seconds: between checkpoints. The last state is always saved.
      bar: `(name, num_steps, steps_done)` to something that shows the progress.
      stop: asked after each chunk; True stops the loop.

    Raises:
      ValueError: from the stage: a checkpoint is damaged, or of another loop.
    """

    def run(name, start, go, num_steps):
        place = folder / name
        losses = _Losses(num_steps)
        state, done = start, checkpoint.latest_step(place) or 0
        if done:
            like = {"state": start, "losses": losses.values, "seconds": np.zeros(2)}
            stored = checkpoint.restore(place, done, None if start is None else like)
            state = checkpoint.as_begun(start, stored["state"])
            losses.values = np.array(stored["losses"])
            timer.run, timer.compile = map(float, stored["seconds"])
        every, saved = Every(seconds), done
        last = (done, state, False)

        def save():
            nonlocal saved
            step, state, lost = last
            if step == saved or lost or not hosts.is_first():
                return
            spent = np.asarray([timer.elapsed(), timer.compile])
            entry = {"state": state, "losses": losses.values, "seconds": spent}
            checkpoint.save(place, step, entry)
            saved = step

        with contextlib.ExitStack() as stack:
            stack.enter_context(timer())
            shown = bar(name, num_steps, done) if bar is not None else None
            if shown is not None:
                stack.callback(shown.close)

            def after_chunk(step, state, metrics):
                nonlocal last
                lost = losses.add(step, metrics) or is_lost(state)
                last = (step, hosts.tree_on_host(state), lost)
                asked = [
                    watcher is not None and bool(watcher(step, state, metrics))
                    for watcher in (shown, stop)
                ]
                if every():
                    save()
                return any(asked)

            result = jax.block_until_ready(go(state, done, after_chunk))
        save()
        return Ran(result, losses.values)

    return run


def once(
    stage: Stage, name: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns arrays that are made in one piece, or those of an earlier process.

    A loop has a state of known shapes; what is decoded, counted or drawn until it fits
    has not. A stage of one step keeps it all the same.

    Args:
      stage: that of the method.
      name: of this piece among its stages.
      make: returns the arrays, texts among them; no objects.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy import resume
      >>> make = lambda: {"primes": np.asarray([2, 3, 5])}
      >>> resume.once(resume.straight, "primes", make)["primes"]
      array([2, 3, 5])
    """

    def go(state, done, callback):
        if not done:
            state = {"archive": _packed(make())}
            callback(1, state, {})
        return state

    return _unpacked(stage(name, None, go, 1).result["archive"])


def finite(stage: Stage, remedy: str) -> Stage:
    """Returns a stage whose loops end as soon as a loss is not finite.

    Args:
      stage: that runs them.
      remedy: what to do about it, for the message.

    Raises:
      ValueError: from the stage: which loop it was, after how many steps.
    """

    def run(name, start, go, num_steps):
        def checked(state, done, callback):
            def watch(step, state, metrics):
                stop = callback(step, state, metrics)
                losses = np.asarray(metrics.get("loss", 0.0))
                if is_lost(state) or not np.isfinite(losses).all():
                    raise ValueError(
                        f"The loss of {name} is not finite after {step} steps: {remedy}"
                    )
                return stop

            return go(state, done, watch)

        return stage(name, start, checked, num_steps)

    return run


def until(stage: Stage, is_over: Callable[[], bool]) -> Stage:
    """Returns a stage whose loops stop after the chunk in which a time is over.

    Args:
      stage: that runs them; what is made in one piece is finished.
      is_over: asked after each chunk.

    Example:
      >>> from ntk_privacy import resume
      >>> stage = resume.until(resume.straight, resume.Every(60.0))
    """

    def run(name, start, go, num_steps):
        def stopping(state, done, callback):
            def watch(step, state, metrics):
                stop = bool(callback(step, state, metrics))
                # Clocks differ, and no host may go on without another.
                return hosts.agreed(stop or is_over())

            return go(state, done, watch)

        return stage(name, start, stopping, num_steps)

    return run


def named(stage: Stage, prefix: str) -> Stage:
    """Returns a stage whose loops are kept apart from others of the same names.

    Args:
      stage: that runs them.
      prefix: that goes before the names.

    Example:
      >>> from ntk_privacy import resume
      >>> stage = resume.named(resume.straight, "control")
    """

    def run(name, start, go, num_steps):
        return stage(f"{prefix}_{name}", start, go, num_steps)

    return run


def timed(stage: Stage, name: str, make: Callable[[], Result]) -> Result:
    """Returns what `make` makes, its time counted as the stage's; nothing is stored.

    Args:
      stage: whose clock runs.
      name: of what is made.
      make: called once, without arguments.
    """
    return stage(name, {}, lambda *_: make(), 1).result


def _packed(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", member.getvalue())
    return np.frombuffer(file.getvalue(), np.uint8)


def _unpacked(archive: Any) -> dict[str, np.ndarray]:
    file = io.BytesIO(np.asarray(archive, np.uint8).tobytes())
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)
