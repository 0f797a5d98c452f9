"""What several hosts must agree on."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["all_fail_together", "of_first"]

_LONGEST = 1000  # bytes of a message


@contextlib.contextmanager
def all_fail_together() -> Iterator[None]:
    """What fails here on one host fails on all: none waits for it for ever."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        text = b"" if error is None else str(error).encode()[:_LONGEST] or b"?"
        codes = np.zeros(_LONGEST, np.int32)
        codes[: len(text)] = list(text)
        told = np.asarray(multihost_utils.process_allgather(codes))
        failed = np.flatnonzero(told.any(axis=1))
        if error is None and len(failed):
            text = bytes(told[failed[0]].astype(np.uint8)).rstrip(b"\0")
            raise ValueError(
                f"Host {failed[0]} stopped: {text.decode(errors='replace')}"
            )
    if error is not None:
        raise error


def of_first(x: np.ndarray) -> np.ndarray:
    """Returns what the first host has; waits for it."""
    if jax.process_count() == 1:
        return np.array(x)
    # Numbers of a wider type would need x64.
    small = np.asarray(x, np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(small))
