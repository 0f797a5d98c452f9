"""Tables of the results pages, written from the stored files and never typed.

    python -m benchmarks.tables            # writes them into docs/*.md
    python -m benchmarks.tables --check    # exits with code 1 where a page differs

A page has `<!-- table NAME -->` and `<!-- end -->`, and between the two what the record
of that name makes of its files. Figures in prose have marks of their own: `_prose`.
"""

from benchmarks.tables import (
    attacks,
    audited,
    certified,
    condensing,
    decoding,
    distilling,
    first_layer,
    gradients,
    papers,
    released,
    searched,
    speed,
)
from benchmarks.tables._marks import (
    Table,
    fill,
    rendered,
    without_fences,
    without_tables,
)
from benchmarks.tables._pictures import PICTURES, Picture
from benchmarks.tables._prose import Figure, is_among, paragraphs, untold

TABLES: dict[str, Table] = {
    table.name: table
    for module in (
        first_layer,
        decoding,
        gradients,
        released,
        searched,
        distilling,
        condensing,
        attacks,
        audited,
        certified,
        papers,
        speed,
    )
    for table in module.TABLES
}

__all__ = [
    "PICTURES",
    "TABLES",
    "Figure",
    "Picture",
    "Table",
    "fill",
    "is_among",
    "paragraphs",
    "rendered",
    "untold",
    "without_fences",
    "without_tables",
]
