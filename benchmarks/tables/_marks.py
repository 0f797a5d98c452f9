"""Marks on pages, and what a record of a table is."""

import json
import os.path
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results"
# Marks within fences are examples of marks.
_FENCE = r"^ *(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^ *(?P=fence)`*~* *$"
_BLOCK = re.compile(
    rf"{_FENCE}|<!-- table (?P<name>\S+) -->\n.*?<!-- end -->", re.S | re.M
)
_WRITTEN = re.compile(r"<!-- results: begin -->.*?<!-- results: end -->", re.S)

Row = tuple[str, ...]


class Table(NamedTuple):
    """What makes a table.

    name: on the page. files: below `results/`. command: that wrote them. rows: of what
    the files hold, in order: the header first.
    """

    name: str
    files: tuple[str, ...]
    command: str
    rows: Callable[..., Iterable[Row]]


def stored(name: str) -> Any:
    """Returns what a file below `results/` holds."""
    return json.loads((RESULTS / name).read_text())


def rendered(table: Table) -> str:
    """Returns a table as Markdown, and below it where it is from."""
    header, *rows = table.rows(*map(stored, table.files))
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{table.name}: a row has {len(row)} cells and the header "
                f"{len(header)}: {row}."
            )
    lines = [header, ("---",) * len(header), *rows]
    written = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return f"{written}\n\nFrom {_shown(table.files)}: `{table.command}`\n"


def _shown(files: tuple[str, ...]) -> str:
    """Names of files; a pattern for many."""
    if len(files) <= 2:
        return " and ".join(f"`results/{name}`" for name in files)
    first = os.path.commonprefix(files)  # noqa: RUF071 - of characters
    ends = [name[len(first) :][::-1] for name in files]
    last = os.path.commonprefix(ends)[::-1]  # noqa: RUF071
    return f"`results/{first}*{last}` ({len(files)} files)"


def fill(text: str, tables: Mapping[str, Table]) -> str:
    """Returns a page with its tables written anew."""

    def write(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return match[0]
        if name not in tables:
            raise ValueError(f"There is no table {name}: {', '.join(tables)}.")
        return f"<!-- table {name} -->\n{rendered(tables[name])}<!-- end -->"

    return _BLOCK.sub(write, text)


def without_fences(text: str) -> str:
    """Returns a page without its code."""
    return re.sub(_FENCE, "", text, flags=re.S | re.M)


def without_tables(text: str) -> str:
    """Returns a page without what is written into it."""
    kept = _BLOCK.sub(lambda match: match[0] if match["name"] is None else "", text)
    return _WRITTEN.sub("", kept)
