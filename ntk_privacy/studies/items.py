"""The figures and tables of the three papers, one row each."""

from typing import Any

from ntk_privacy.studies import (
    guard_dc,
    loo_curves,
    loo_outliers,
    loo_sets,
    rdm_lemma,
    rdm_poison,
)
from ntk_privacy.studies.item import Item

__all__ = ["ITEMS", "of_paper"]

ITEMS: tuple[Item[Any], ...] = (
    *loo_curves.ITEMS,
    *loo_outliers.ITEMS,
    *loo_sets.ITEMS,
    *rdm_poison.ITEMS,
    *rdm_lemma.ITEMS,
    *guard_dc.ITEMS,
)
"""All of them, paper by paper."""


def of_paper(paper: str) -> dict[str, Item[Any]]:
    """Returns the items of a paper, by name.

    Args:
      paper: loo, rdm or guard.

    Example:
      >>> from ntk_privacy import studies
      >>> "figure2" in studies.of_paper("loo")
      True
    """
    return {item.name: item for item in ITEMS if item.paper == paper}
