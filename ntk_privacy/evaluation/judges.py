"""Judges of a distilled set: each a record, all of one contract.

`JUDGES["copies"].run(images, distilled, config, key=key)` returns `Judged`: a row of
figures of the set `distilled`, made of `images`, and what was made to measure them. A
judge refuses sets of labels that it has no use for, and its loops are stages: see
`resume`.
"""

from ntk_privacy.evaluation import (
    copies,
    defence,
    set_attacks,
    soft_students,
    students,
    transfer,
)
from ntk_privacy.evaluation.judged import Judged
from ntk_privacy.method import by_name

__all__ = ["JUDGES", "Judged"]

JUDGES = by_name(
    copies.JUDGE,
    *students.JUDGES,
    set_attacks.JUDGE,
    soft_students.JUDGE,
    transfer.JUDGE,
    defence.JUDGE,
)
