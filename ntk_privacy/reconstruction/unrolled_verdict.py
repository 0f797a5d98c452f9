"""What is said of images on which a simulated training ends near the weights."""

import numpy as np

from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["NUM_CONTROLS", "judge"]

NUM_CONTROLS = 20
"""Sets of other images that what was found is compared with."""

_EXPLAINED = 0.9  # of the squared change, for an approximate result
_MARGIN = 4.0  # times as much is left by the best of the sets of other images


def judge(
    left: float, control: float, *, num_unknowns: int, num_weights: int
) -> Verdict:
    """Returns the verdict.

    Args:
      left: of the squared change of the weights, by training on what was found.
      control: the least that training on one of the sets of other images leaves.
      num_unknowns: numbers that were searched for.
      num_weights: that were trained.

    Example:
      >>> from ntk_privacy.reconstruction import unrolled_verdict
      >>> sizes = {"num_unknowns": 100, "num_weights": 1000}
      >>> unrolled_verdict.judge(0.01, 0.6, **sizes).word
      'approximate'
      >>> unrolled_verdict.judge(0.3, 0.6, **sizes).word
      'nothing found'
    """
    explained = max(1 - left, 0.0) if np.isfinite(left) else 0.0
    miss = float(np.sqrt(left)) if np.isfinite(left) else None
    if num_unknowns >= num_weights:
        # Whatever explains so few numbers may be anything.
        reason = (
            f"{num_unknowns} numbers are searched for, and {num_weights} weights were "
            "trained: many other sets of images would end there too."
        )
        word = "assumptions do not hold"
        return Verdict(word, reason, explained=explained, replay_misses=miss)
    told = (
        f"Training on what was found leaves {left:.2g} of the squared change of the "
        f"weights, the best of {NUM_CONTROLS} random sets {control:.2g}"
    )
    good = explained >= _EXPLAINED and control >= _MARGIN * left
    word = "approximate" if good else "nothing found"
    rest = (
        "; nothing bounds the error of one image."
        if good
        else f": it takes at most {1 - _EXPLAINED:.2g}, and {_MARGIN:.0f} times less."
    )
    return Verdict(word, told + rest, explained=explained, replay_misses=miss)
