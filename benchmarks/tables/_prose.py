"""Marks of prose: where the figures of a paragraph are from.

A measurement is a number with decimals, an exponent, a unit, or a whole ("9 of 10");
plain counts are none. A paragraph (lines without a blank one between) that quotes one
has a mark:

    <!-- from FILES; COMMAND -->               found in these files as they are shown
    <!-- from FILES; COMMAND; derived: 1.9 -->  and what was worked out of them by hand
    <!-- setting: 25 1e-6 -->                  chosen, not measured
    <!-- published: 88.7; PAPER -->            another's figure

A figure of few digits is in a large file by chance: half of those that are one or two
off in the last digit are found too. What the test shows is that a file is named, and
that nothing is quoted that it does not hold.

A mark other than `from` may list the figures that it stands for; where it lists none it
stands for all, and no other mark stands beside it.
"""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.tables._marks import ROOT, without_fences, without_tables

_COMMENT = re.compile(r"<!--.*?-->", re.S)
_MARK = re.compile(r"<!-- (from|setting|published)\b(.*?) -->", re.S)
# Code, formulas, addresses, and numbers that are names: of papers and of versions.
_NO_FIGURES = re.compile(
    r"`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|https?://\S+|arXiv:\S+"
    r"|(?:Python|JAX|jax|PyTorch|torchattacks|version) \d+(?:\.\d+)+(?: to \d+\.\d+)?",
    re.S,
)
_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_PLAIN = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_UNIT = (
    r"(?:%|per\s+cent\b|(?:s|ms|seconds?|minutes?|[kMG]i?B|dB|points|times"
    r"|certificates)\b(?!-))"
)
_FIGURE = re.compile(
    rf"(?<![\w.,/-])({_NUMBER})(?:(?:\s+(?:to|and|or)\s+|-)({_NUMBER}))?"
    rf"(?:(?=\s*({_UNIT}))|(?=(\s+of\s+(?:the\s+)?\d))|(?![\w]))"
)


class Figure(NamedTuple):
    """A measurement as it is shown, and its unit."""

    shown: str
    unit: str


class Mark(NamedTuple):
    """Where figures are from: kind, files, command or source, figures that it lists."""

    kind: str
    files: tuple[str, ...]
    source: str
    listed: tuple[str, ...]


class Paragraph(NamedTuple):
    """What is read, its figures, and its marks."""

    text: str
    figures: tuple[Figure, ...]
    marks: tuple[Mark, ...]


DEFINED = (Figure("25", "dB"),)
"""What the pages define once: an image is recovered from 25 dB on."""


def _mark(kind: str, rest: str) -> Mark:
    first, *others = (part.strip() for part in " ".join(rest.split()).split(";"))
    listed: list[str] = []
    if others and others[-1].startswith("derived:"):
        listed = others.pop().removeprefix("derived:").split()
    if kind == "from":
        return Mark(kind, tuple(first.split()), "; ".join(others), tuple(listed))
    return Mark(kind, (), "; ".join(others), tuple(first.removeprefix(":").split()))


def _figures(text: str) -> Iterator[Figure]:
    for first, second, unit, share in _FIGURE.findall(text):
        for shown in filter(None, (first, second)):
            figure = Figure(shown.rstrip(","), " ".join(unit.split()))
            is_measured = unit or share or re.search(r"[.e]", shown)
            if is_measured and figure not in DEFINED:
                yield figure


def paragraphs(page: str) -> list[Paragraph]:
    """Returns the paragraphs of a page that have figures or marks."""
    found = []
    for block in re.split(r"\n\s*\n", without_tables(without_fences(page))):
        marks = tuple(_mark(*match) for match in _MARK.findall(block))
        text = _COMMENT.sub(" ", block)
        figures = tuple(_figures(_NO_FIGURES.sub(" ", text)))
        if figures or marks:
            found.append(Paragraph(" ".join(text.split()), figures, marks))
    return found


_CURVE = 12  # numbers of a list that are too many to quote


# Seeds are not quoted, nor are times where a paragraph has no unit of time.
_SEEDS, _TIMES = re.compile(r"seeds?"), re.compile(r"s|s_.*|.*_s|seconds?|.*_seconds?")


def _without(value: Any, names: re.Pattern[str]) -> Any:
    """A stored value without the entries of some names, at any depth."""
    if isinstance(value, dict):
        return {
            k: _without(v, names) for k, v in value.items() if not names.fullmatch(k)
        }
    return [_without(v, names) for v in value] if isinstance(value, list) else value


def _numbers(value: Any) -> Iterator[float]:
    """Numbers of a file; sums of counts, means and medians of lists and of columns."""
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_numbers, value.values()))
        # Verdicts are quoted word by word.
        yield from map(float, re.findall(_PLAIN, str(value.get("reason", ""))))
    elif isinstance(value, list):
        yield float(len(value))
        # Of a curve nothing but its mean and median is quoted.
        plain = [x for x in value if isinstance(x, int | float)]
        if len(plain) <= _CURVE:
            yield from itertools.chain.from_iterable(map(_numbers, value))
        names = {k for row in value if isinstance(row, dict) for k in row}
        columns = [
            [row.get(k) for row in value if isinstance(row, dict)] for k in names
        ]
        for column in (value, *columns):
            numbers = [float(x) for x in column if isinstance(x, int | float)]
            if numbers and all(map(math.isfinite, numbers)):
                whole = all(isinstance(x, int) for x in column if x is not None)
                yield from (sum(numbers),) if whole else ()
                yield statistics.fmean(numbers)
                yield statistics.median(numbers)


def numbers(files: Iterable[str], *, timed: bool = True) -> list[float]:
    """Returns what can be quoted of files, which may be patterns, with times or not."""
    paths = [path for name in files for path in sorted(ROOT.glob(name))]
    stored = (_without(json.loads(path.read_text()), _SEEDS) for path in paths)
    if not timed:
        stored = (_without(value, _TIMES) for value in stored)
    return [x for value in stored for x in _numbers(value) if math.isfinite(x)]


_OF_TIME = {"s", "ms", "second", "seconds", "minute", "minutes"}
# What one of a unit is of what is stored: shares, seconds, bytes.
_SCALES = {"%": 100.0, "per cent": 100.0, "ms": 1e3, "minutes": 1 / 60}
_SCALES |= {"kB": 1e-3, "MB": 1e-6, "GB": 1e-9, "MiB": 2.0**-20, "GiB": 2.0**-30}


def is_among(figure: Figure, found: Iterable[float]) -> bool:
    """Whether a number shows as the figure, to the digits that it has."""
    mantissa, _, exponent = figure.shown.replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.5000001 * 10.0 ** (int(exponent or 0) - decimals)
    value = float(figure.shown.replace(",", ""))
    scales = {1.0, _SCALES.get(figure.unit, 1.0)}
    return any(abs(abs(x) * s - value) <= half for x in found for s in scales)


def untold(paragraph: Paragraph) -> list[str]:
    """Returns what is wrong with the marks of a paragraph, one sentence each."""
    shown = {figure.shown for figure in paragraph.figures}
    wrong = [
        f"{number} of a mark is not in the paragraph"
        for mark in paragraph.marks
        for number in mark.listed
        if number not in shown
    ]
    whole = [m for m in paragraph.marks if m.kind != "from" and not m.listed]
    if whole:
        return wrong + ["a mark for all stands beside others"] * (
            len(paragraph.marks) > 1
        )
    listed = {number for mark in paragraph.marks for number in mark.listed}
    files = [name for mark in paragraph.marks for name in mark.files]
    timed = any(figure.unit in _OF_TIME for figure in paragraph.figures)
    found = numbers(files, timed=timed)
    return wrong + [
        f"{figure.shown} {figure.unit} has no source".replace("  ", " ")
        for figure in dict.fromkeys(paragraph.figures)
        if figure.shown not in listed and not is_among(figure, found)
    ]
