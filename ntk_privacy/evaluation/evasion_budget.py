"""What an evasion may change and spend: the flags of every judge that attacks."""

import dataclasses

from ntk_privacy import _checks
from ntk_privacy.evasion import ThreatModel, threat_model
from ntk_privacy.method import field

__all__ = ["Budget"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The bound of an evasion, and its steps.

    Example:
      >>> from ntk_privacy.evaluation.evasion_budget import Budget
      >>> Budget(eps="0.5").threat_model.eps
      0.5
    """

    eps: str | float = field(
        "8/255",
        "Bound of a change of intensity, a number or a fraction.",
        means=threat_model.bound,
    )
    attack_steps: int | None = field(
        None, "Of every attack by steps; none is each one's own."
    )
    num_queries: int = field(5000, "Of Square, a part of AutoAttack.")

    def __post_init__(self):
        steps = 1 if self.attack_steps is None else self.attack_steps
        _checks.at_least(1, attack_steps=steps, num_queries=self.num_queries)
        threat_model.bound(self.eps)

    @property
    def threat_model(self) -> ThreatModel:
        """What the attacker may do."""
        return threat_model.of_text(self.eps)
