"""Figures, tables and theorems of three papers: the study of each, and its verdict."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.tables._marks import RESULTS, Row, Table
from ntk_privacy import studies
from ntk_privacy.studies import listing

_STORED = tuple(
    path.relative_to(RESULTS).as_posix()
    for path in sorted((RESULTS / "study").glob("*/results.json"))
)
# What no study computes.
_MISSING = {
    "loo": ("figure1", "figure7", "figure9", "S1", "theorem2"),
    "rdm": ("table4",),
    "guard": ("table1", "table2", "table3", "table4", "table5, SRe2L and CDA"),
}


def _items(paper: str) -> Callable[..., Iterable[Row]]:
    def rows(*stored: Any) -> Iterable[Row]:
        del stored  # Judged anew, from the same files.
        yield "item", "what is asked of it", "scale, cells", "verdict"
        items = studies.of_paper(paper)
        for told in listing.listed(tuple(items.values()), RESULTS / "study"):
            _, name, scale, word, cells = told
            made = f"{scale}, {cells}" if cells else "none"
            yield f"`{name}`", items[name].claim, made, word
        for name in _MISSING[paper]:
            yield name, "no study asks yet", "none", "none yet"

    return rows


TABLES = tuple(
    Table(
        f"papers_{paper}",
        _STORED,
        "python -m experiments.study --list",
        _items(paper),
    )
    for paper in _MISSING
)
