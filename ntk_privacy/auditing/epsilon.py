"""What a membership test says of differential privacy: a lower bound on epsilon.

From one training, by jax_privacy's auditor, after Steinke et al., "Privacy Auditing
with One (1) Training Run", NeurIPS 2023 (arXiv:2305.08846).
"""

import importlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntk_privacy import _checks

__all__ = ["LowerBound", "lower_bound"]

# Shares of the highest scores that are called members. They are set beforehand, each at
# its part of the failure probability. The auditor's own search of all thresholds counts
# only those that turn out best: of 1,000 and 1,000 images without a difference it found
# one in 7.8% of 1,500 trials at 95% confidence.
_CALLED = (0.5, 0.25, 0.125)


class LowerBound(NamedTuple):
    """What a test rules out.

    Attributes:
      epsilon: training was not (epsilon, delta)-differentially private for any less;
        None where jax_privacy is not installed, 0 where nothing is ruled out.
      delta: of it.
      confidence: of it.
      num_images: that were told apart, half of them private.
      told: all of this, in a sentence.
    """

    epsilon: float | None
    delta: float
    confidence: float
    num_images: int
    told: str


def lower_bound(
    scores_in: Float[np.ndarray, " n"],
    scores_out: Float[np.ndarray, " k"],
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
) -> LowerBound:
    """Returns a lower bound on epsilon, from one training and one test.

    It holds where a fair coin decided of each image whether it was trained on. So as
    many of each kind are taken, the first ones.

    Args:
      scores_in: of images that were trained on, high where the test says so.
      scores_out: of images that were not.
      delta: of (epsilon, delta)-differential privacy, one image more or less.
      confidence: probability that the bound holds, over coins and training.

    Raises:
      ValueError: no scores, a NaN, or a probability outside (0, 1).

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.auditing import epsilon
      >>> found = epsilon.lower_bound(np.ones(16), np.zeros(40))
      >>> found.num_images, found.epsilon in (None, 0) or 1.2 < found.epsilon < 1.3
      (32, True)
    """
    _checks.at_least(1, num_members=len(scores_in), num_others=len(scores_out))
    _checks.finite(scores_in=scores_in, scores_out=scores_out)
    for name, value in (("delta", delta), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} must lie between 0 and 1.")
    count = min(len(scores_in), len(scores_out))
    about = (delta, confidence, 2 * count)
    try:
        auditing = importlib.import_module("jax_privacy.auditing")
    except ImportError:
        return LowerBound(
            *(None, *about),
            "A lower bound on epsilon was not computed: it needs jax_privacy, "
            "`pip install ntk_privacy[audit]`.",
        )
    members, others = (np.asarray(s[:count], float) for s in (scores_in, scores_out))
    auditor = auditing.CanaryScoreAuditor(members, others)
    ranked = np.sort(np.concatenate([members, others]))[::-1]
    calls = sorted({max(1, round(share * len(ranked))) for share in _CALLED})
    bounds = [
        auditor.epsilon_one_run(
            (1 - confidence) / len(calls),
            delta,
            threshold_strategy=auditing.Explicit(ranked[calling - 1]),
        )
        for calling in calls
    ]
    bound = max(0.0, *map(float, bounds))
    return LowerBound(bound, *about, _told(bound, *about))


def _told(bound: float, delta: float, confidence: float, count: int) -> str:
    sure = f"with {100 * confidence:g}% confidence"
    coins = f"if fair coins decided which of {count} images were trained on"
    if bound > 0:
        found = (
            f"This training was not ({bound:.2f}, {delta:g})-differentially private, "
            f"nor with a smaller epsilon, {sure}, {coins}."
        )
    else:
        found = f"No epsilon is ruled out {sure} at delta={delta:g}, {coins}."
    return (
        f"{found} This is a lower bound for this training by this test: no guarantee "
        "of privacy, and another test may show more."
    )
