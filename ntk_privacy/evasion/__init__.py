"""Evasion: images changed within a threat model so that a trained model misreads them.

Every attack's module has `attack(logits_fn, x, y, *, key, threat_model, ...)`.
`METHODS` has a record of each name that stands for an attack with published numbers,
of a module several: `run(logits_fn, x, y, config, *, key, threat_model)`.

Sources: the evaluation of GUARD (arXiv:2403.10045) for pgd100, mim, cw_guard,
square_rescaled and autoattack_torchattacks10; AutoAttack (arXiv:2003.01690) for the
others but pgd, which is that of Madry et al. (arXiv:1706.06083).
"""

from ntk_privacy import _public
from ntk_privacy.evasion import (
    apgd,
    autoattack,
    cw,
    fab,
    losses,
    mim,
    pgd,
    square,
    threat_model,
)
from ntk_privacy.evasion.task import LogitsFn
from ntk_privacy.evasion.threat_model import Adversarial, ThreatModel
from ntk_privacy.method import by_name

METHODS = by_name(
    *pgd.METHODS,
    *mim.METHODS,
    *cw.METHODS,
    *apgd.METHODS,
    *fab.METHODS,
    *square.METHODS,
    *autoattack.METHODS,
)

__all__ = [
    "METHODS",
    "Adversarial",
    "LogitsFn",
    "ThreatModel",
    "apgd",
    "autoattack",
    "cw",
    "fab",
    "losses",
    "mim",
    "pgd",
    "square",
    "threat_model",
]

__dir__ = _public.names(__name__)
