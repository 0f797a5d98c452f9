"""What a reconstruction attack says of its own result, and the numbers behind it.

An attacker has no ground truth, and neither has a user who audits a checkpoint. Every
attack therefore judges what it returns by the evidence alone: how much of the change of
the parameters its images explain, and which of its assumptions that evidence bears out.
"""

from typing import Literal, NamedTuple

__all__ = ["Verdict", "Word"]

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
    """

    word: Word
    reason: str
    explained: float | None = None
    gap: float | None = None
    num_certified: int = 0
    replay_misses: float | None = None
