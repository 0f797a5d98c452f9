"""From evidence to a verdict, in one word and one sentence.

The limits were measured in 104 searches of 1,200 steps, widths 32 to 256, 8 to 24
images: linearized training, early stops, gradient descent, momentum, minibatches;
foreign, noisy and permuted weights, Adam, weight decay, layer normalisation, other
activations, parametrisations and bounds. Images of honest training within a third of
the truth's norm explain 0.90 to 1.00 of the change and predict 0.84 to 1.00 of it.
Wrong images explain at most 0.87 (foreign weights 0.1, Adam 0.4, layer normalisation
0.65, GELU 0.83), or lie outside the bounds by 0.09 to 0.3 (honest ones by 0.006). Leaky
ReLU comes to 0.90, with images a quarter off.
"""

import numpy as np

from ntk_privacy.reconstruction.explanation import Explained
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["completed", "of_replay", "of_search", "percent", "replayed"]

EXPLAINED, PREDICTED = 0.9, 0.8
"""The least shares of a search that found something."""

BEYOND_CHANCE = 0.25
"""The most that may be left, of what random images leave."""

OUTSIDE = 0.04
"""Share of the images' squared norm beyond the bounds that contradicts them."""

FIRST_POSSIBLE = 0.99
"""Least share of the first layer's change within the rank that the images can have."""

MISS = 0.5
"""The most that a replay may miss; random images miss 0.8 to 1."""


def percent(share: float) -> str:
    """Returns a share in words; never 100% of what is less, nor less than 0%.

    Args:
      share: of 1.
    """
    value = 100 * max(share, 0.0)
    if value >= 99.995:
        return "100%"
    return f"{min(value, 99.99):.2f}%" if value > 99 else f"{value:.0f}%"


def of_search(found: Explained | None) -> Verdict:
    """Judges a search that knows the parameters before and after.

    Args:
      found: of its images; None if its loss became NaN, or they overflow.
    """
    if found is None:
        return Verdict(
            "nothing found",
            "The search was lost, its loss or images too large for numbers to hold: "
            "lower the learning rate.",
        )
    e = found
    told = (
        f"the images and their best duals explain {percent(e.explained)} of the "
        f"squared change of the weights (as many random images: {percent(e.chance)})"
    )
    if np.isfinite(e.predicted):
        told += f", and duals of the other layers predict {percent(e.predicted)} of it"
    enough = (
        e.explained >= EXPLAINED
        and not e.predicted < PREDICTED
        and 1 - e.explained <= BEYOND_CHANCE * (1 - e.chance)
    )
    # An unfinished search may be anywhere; one that fits has gone where it had to.
    if enough and e.outside > OUTSIDE:
        return Verdict(
            "assumptions do not hold",
            f"{percent(e.outside)} of the images' squared norm lies outside the bounds "
            f"given: they are not those of the training images; {told}.",
            explained=e.explained,
        )
    if enough:
        return Verdict(
            "approximate",
            f"No certificate, but {told}.",
            explained=e.explained,
        )
    best, first, m = e.possible, e.first_possible, len(e.contributions)
    if best < EXPLAINED or first < FIRST_POSSIBLE:
        which = (
            f"no {m} images whatever could explain more than "
            f"{percent(best)} of the change"
            if best < EXPLAINED
            else f"{percent(1 - first)} of the first layer's change lies "
            f"beyond the rank that {m} images leave"
        )
        return Verdict(
            "assumptions do not hold",
            f"These weights were not made from those before by gradient steps on "
            f"{m} images: {which}, as after other initial weights, Adam, "
            f"weight decay, added noise or more images than candidates; {told}.",
            explained=e.explained,
        )
    return Verdict(
        "nothing found",
        f"Too little to tell from a fit: {told}, where images found explain "
        f"{percent(EXPLAINED)} and predict {percent(PREDICTED)} at least; the network "
        "was trained otherwise than assumed, or the search ended short of its images.",
        explained=e.explained,
    )


def of_replay(miss: float) -> Verdict:
    """Judges images by the training that they make.

    Args:
      miss: distance of its end from the trained weights, over the length of the way.
    """
    told = f"training again on these images ends {percent(miss)} of the way off"
    explained = max(1 - miss**2, 0.0)
    if miss <= MISS:
        return Verdict(
            "approximate",
            f"No certificate, but {told} (on random images: 80% or more).",
            explained=explained,
            replay_misses=miss,
        )
    return Verdict(
        "nothing found",
        f"Too far to tell from random images: {told}, where theirs end 80% off or more "
        "and images that are nearly right less than 50%.",
        explained=explained,
        replay_misses=miss,
    )


def replayed(verdict: Verdict, miss: float) -> Verdict:
    """Adds how far a training on the images found ends from the trained weights.

    Args:
      verdict: of the search that found them.
      miss: of the last replay that was kept.
    """
    ends = f"training again on them ends {percent(miss)} of the way off"
    if verdict.word == "approximate" and miss > MISS:
        return verdict._replace(
            word="nothing found",
            reason=f"{verdict.reason.rstrip('.')}, yet {ends} (random images: 80% or "
            "more), so they are not what the network was trained on.",
            replay_misses=miss,
        )
    return verdict._replace(
        reason=f"{verdict.reason.rstrip('.')}; {ends}.", replay_misses=miss
    )


def completed(decoded: Verdict, searched: Verdict) -> Verdict:
    """Judges certified images together with others that a search has added to them.

    Args:
      decoded: of the decoding; its certified images were held.
      searched: of the search, all images together.
    """
    if not decoded.num_certified:
        return searched._replace(gap=decoded.gap)
    return decoded._replace(
        reason=f"{decoded.reason.rstrip('.')}; the others were searched for: "
        f"{searched.reason}",
        explained=searched.explained,
    )
