"""What is stored of studies: a line each, and the table of the docs page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ntk_privacy.reports import tables
from ntk_privacy.studies import page
from ntk_privacy.studies.item import Item, Scale
from ntk_privacy.studies.verdict import of_parts

__all__ = ["Told", "listed", "summary", "text", "updated"]

_MARKS = ("<!-- results: begin -->", "<!-- results: end -->")


class Told(tuple[str, str, str, str, str]):
    """Paper, item, scale, verdict, and how many cells of how many."""

    __slots__ = ()


def listed(items: Sequence[Item[Any]], root: Path) -> list[Told]:
    """Returns a line per item and scale that is stored; of the rest, none yet.

    The verdict is found anew from the stored figures.

    Args:
      items: to list, in order.
      root: whose folders are those of studies.

    Raises:
      ValueError: a file is damaged.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import listing
      >>> items = [studies.of_paper("rdm")["lemma4_1"]]
      >>> root = pathlib.Path("no_such_folder")
      >>> tuple(listing.listed(items, root)[0])
      ('rdm', 'lemma4_1', '-', 'none yet', '')
    """
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(root.glob("*/results.json")):
        told = page.of_folder(path.parent)
        name = (str(told.get("paper")), str(told.get("item")))
        found.setdefault(name, {})[str(told.get("scale"))] = path.parent
    lines = []
    for item in items:
        folders = found.get((item.paper, item.name), {})
        scales = [scale for scale in get_args(Scale) if scale in folders]
        for scale in scales:
            cells = page.stored(item, scale, folders[scale])
            word = of_parts(page.judged(item, scale, cells))
            made = f"{len(cells)} of {len(item.grids[scale].cells())}"
            lines.append(Told((item.paper, item.name, scale, word, made)))
        if not scales:
            lines.append(Told((item.paper, item.name, "-", "none yet", "")))
    return lines


def text(items: Sequence[Item[Any]], root: Path) -> str:
    """Returns the lines of `listed` for a terminal, aligned.

    Args:
      items: see `listed`.
      root: see `listed`.

    Raises:
      ValueError: a file is damaged.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import listing
      >>> items = [studies.of_paper("rdm")["lemma4_1"]]
      >>> root = pathlib.Path("no_such_folder")
      >>> listing.text(items, root)
      'rdm  lemma4_1  -  none yet'
    """
    lines = listed(items, root)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def summary(items: Sequence[Item[Any]], root: Path) -> str:
    """Returns the table of the docs page: items, claims, and what is stored.

    Args:
      items: to list, in order.
      root: see `listed`.

    Raises:
      ValueError: a file is damaged.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import studies
      >>> from ntk_privacy.studies import listing
      >>> items = [studies.of_paper("rdm")["lemma4_1"]]
      >>> root = pathlib.Path("no_such_folder")
      >>> listing.summary(items, root).splitlines()[0]
      '| paper | item | claim | scale | cells | verdict |'
    """
    claims = {(item.paper, item.name): item.claim for item in items}
    head = ["paper", "item", "claim", "scale", "cells", "verdict"]
    body = [
        [paper, name, claims[paper, name], scale, made, word]
        for paper, name, scale, word, made in listed(items, root)
    ]
    return tables.markdown(head, body)


def updated(text: str, table: str) -> str:
    r"""Returns a page with the table between its marks replaced.

    Args:
      text: of the page.
      table: see `summary`.

    Raises:
      ValueError: it has no marks.

    Example:
      >>> from ntk_privacy.studies import listing
      >>> page = "<!-- results: begin -->\nold\n<!-- results: end -->"
      >>> "old" in listing.updated(page, "new")
      False
    """
    begin, end = _MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page has no {begin} and {end}: put them in it once.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
