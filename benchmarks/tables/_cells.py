"""Figures as cells."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any


def two(value: float) -> str:
    """Two significant digits; whole from a hundred on."""
    return f"{value:.2g}" if not 100 <= abs(value) < 1e6 else f"{value:,.0f}"


def one(value: float) -> str:
    """One significant digit."""
    return f"{value:.1g}"


def ratio(value: float) -> str:
    """How many times: one decimal below ten."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def whole(value: float) -> str:
    """No decimals."""
    return f"{value:.0f}"


def seconds(value: float) -> str:
    """Tenths below ten, else whole."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def span(values: Iterable[float], show: Callable[[float], str] = two) -> str:
    """From the least to the largest; one figure where they show alike."""
    found = list(values)
    least, largest = show(min(found)), show(max(found))
    return least if least == largest else f"{least} to {largest}"


def listed(values: Iterable[Any], show: Callable[[Any], str] = str) -> str:
    """All of them, in order; "3 each" where they are alike."""
    shown = [show(value) for value in values]
    if len(shown) > 1 and len(set(shown)) == 1:
        return f"{shown[0]} each"
    return ", ".join(shown)


def counts(values: Sequence[int], whole: Sequence[int]) -> str:
    """Counts, in order; "all" where each is the whole."""
    if list(values) == list(whole):
        return "all"
    return "none" if not any(values) else listed(values)


def percent(
    mean: float, deviation: float | None = None, runs: int | None = None
) -> str:
    """A share in per cent with its deviation and number of runs."""
    told = f"{100 * mean:.1f}"
    if deviation is not None:
        told += f" +- {100 * deviation:.1f}"
    return told if runs is None else f"{told} ({runs})"


def of_case(rows: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Rows that have these values, in order; there is at least one."""
    found = [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]
    if not found:
        raise ValueError(f"No stored row has {wanted}.")
    return found
