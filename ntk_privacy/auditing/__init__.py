"""An audit of what is to be published: what can be read back, in plain words.

`audit` is the whole of it; `reports.audit_page` makes a page of what it returns.
"""

from ntk_privacy import _public
from ntk_privacy.auditing import (
    attack,
    auditor,
    cases,
    comparison,
    controls,
    distilled_sets,
    epsilon,
    given_images,
    inputs,
    membership,
    recipes,
    statement,
    units,
)
from ntk_privacy.auditing.auditor import Audit, audit, examine
from ntk_privacy.auditing.cases import Case, case
from ntk_privacy.auditing.methods import METHODS
from ntk_privacy.auditing.recipes import KnownTraining
from ntk_privacy.auditing.statement import Statement

__all__ = [
    "METHODS",
    "Audit",
    "Case",
    "KnownTraining",
    "Statement",
    "attack",
    "audit",
    "auditor",
    "case",
    "cases",
    "comparison",
    "controls",
    "distilled_sets",
    "epsilon",
    "examine",
    "given_images",
    "inputs",
    "membership",
    "recipes",
    "statement",
    "units",
]

__dir__ = _public.names(__name__)
