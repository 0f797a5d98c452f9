"""The claims of three papers as studies: one record a figure or table, see `Item`.

Sources: Loo et al., ICLR 2024 (loo, arXiv:2302.01428); Zheng & Li, UAI 2023 (rdm, the
RDM-DC paper); Xue et al., AAAI 2025 (guard, arXiv:2403.10045).
"""

from ntk_privacy import _public
from ntk_privacy.studies.cells import make
from ntk_privacy.studies.item import Cell, Grid, Item, Row
from ntk_privacy.studies.items import ITEMS, of_paper
from ntk_privacy.studies.verdict import Part, of_parts

__all__ = [
    "ITEMS",
    "Cell",
    "Grid",
    "Item",
    "Part",
    "Row",
    "make",
    "of_paper",
    "of_parts",
]

__dir__ = _public.names(__name__)
