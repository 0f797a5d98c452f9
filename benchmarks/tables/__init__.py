"""Tables of the results pages, written from the stored files and never typed.

    python -m benchmarks.tables            # writes them into docs/*.md
    python -m benchmarks.tables --check    # exits with code 1 where a page differs

A page has `<!-- table NAME -->` and `<!-- end -->`, and between the two what the record
of that name makes of its files. A table that is typed stands under
`<!-- typed FILES; COMMAND -->`, which says where its figures are from.
"""

from benchmarks.tables import (
    attacks,
    condensing,
    decoding,
    distilling,
    first_layer,
    gradients,
    released,
    searched,
    speed,
)
from benchmarks.tables._marks import Table, fill, rendered, typed

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
        speed,
    )
    for table in module.TABLES
}

__all__ = ["TABLES", "Table", "fill", "rendered", "typed"]
