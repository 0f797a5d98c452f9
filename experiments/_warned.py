"""Warnings reach the terminal and results.json alike."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Yields a list that holds, at the end, every warning's text once.

    The warnings themselves are raised again where it ends, so that filters that were
    set outside, and the terminal, see them.
    """
    told: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield told
    finally:
        told += dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
        for one in caught:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
