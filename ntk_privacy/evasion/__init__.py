"""Evasion: images changed within a threat model so that a trained model misreads them.

Every module but `threat_model` and `losses` has `attack(logits_fn, x, y, *, key,
threat_model, ...)`.
"""

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

__all__ = [
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
