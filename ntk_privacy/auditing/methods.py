"""The table of audits: one row, of the contract that every kind of method has."""

import dataclasses

from jaxtyping import Array

from ntk_privacy import _checks
from ntk_privacy.auditing.auditor import Audit, examine
from ntk_privacy.auditing.cases import Case
from ntk_privacy.method import Method, by_name, field
from ntk_privacy.resume import Stage, straight

__all__ = ["METHODS", "Config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How long an audit may take; attributes: see the help of each field.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import auditing
      >>> x = np.random.default_rng(0).random((4, 8, 8, 1))
      >>> row = auditing.METHODS["auto"]
      >>> one = auditing.case(distilled=x[:2], images=x)
      >>> row.run(one, row.configured(minutes=1.0), key=jax.random.key(0))
      <audit: 2 of 2 distilled images are copies of private images.>
    """

    minutes: float = field(
        5.0, "After which searches stop; what is read exactly is finished."
    )

    def __post_init__(self):
        _checks.positive(minutes=self.minutes)


def _run(case: Case, config: Config, *, key: Array, stage: Stage = straight) -> Audit:
    return examine(case, minutes=config.minutes, key=key, stage=stage)


METHODS = by_name(
    Method(
        name="auto",
        about="The strongest attack that the evidence allows, its controls, and "
        "membership.",
        config=Config,
        presets={"fast": Config},
        run=_run,
    )
)
