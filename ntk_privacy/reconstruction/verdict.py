"""What a reconstruction attack says of its own result, and the numbers behind it.

An attacker has no ground truth, and neither has a user who audits a checkpoint. Every
attack therefore judges what it returns by the evidence alone: how much of the change of
the parameters its images explain, and which of its assumptions that evidence bears out.
"""

import math
from typing import Literal, NamedTuple

__all__ = ["Verdict", "Word", "told_bound"]

Word = Literal["exact", "approximate", "assumptions do not hold", "nothing found"]


class Verdict(NamedTuple):
    """One word, why, and what it rests on. Figures that were not measured are None.

    Attributes:
      word: "exact": certified images, within their stated error. "approximate": images
        that explain the change, but no certificate. "assumptions do not hold": the
        evidence contradicts what the attack rests on, and what it returns may be
        anything. "nothing found": no image.
      reason: one sentence in plain words, with the figures that decided.
      explained: share of the squared norm of the change that the images and their duals
        account for, at most 1.
      gap: last kept over first dropped singular value of the decoded layer.
      num_certified: images whose stated error is certain.
      replay_misses: relative distance between the trained weights and those of training
        again on the images found.

    Example:
      >>> from ntk_privacy.reconstruction import verdict
      >>> verdict.Verdict("nothing found", "No unit is closed.").num_certified
      0
    """

    word: Word
    reason: str
    explained: float | None = None
    gap: float | None = None
    num_certified: int = 0
    replay_misses: float | None = None


def told_bound(bound: float) -> str:
    """Returns a bound in words of one digit, rounded up: what is told holds too.

    Args:
      bound: at least 0.

    Example:
      >>> from ntk_privacy.reconstruction import verdict
      >>> verdict.told_bound(0.00014), verdict.told_bound(0.0002)
      ('0.0002', '0.0002')
    """
    near = f"{bound:.1g}"
    if float(near) >= bound or not math.isfinite(bound):
        return near
    digit, _, power = f"{bound:.0e}".partition("e")
    return f"{float(f'{int(digit) + 1}e{power}'):.1g}"
