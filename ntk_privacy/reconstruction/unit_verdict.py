"""What is said of images that closed units gave, and which of them are certified."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ntk_privacy.reconstruction import result
from ntk_privacy.reconstruction.change_factors import Factors
from ntk_privacy.reconstruction.closed_rows import Found
from ntk_privacy.reconstruction.unit_space import Space
from ntk_privacy.reconstruction.verdict import Verdict, told_bound

__all__ = ["TOLERANCE", "Judged", "hidden", "judge", "nothing", "single"]

TOLERANCE = 0.05
"""Largest stated relative error of a certified image, as of decoded ones."""

# Over the standard deviation: noise of training steps is not white, and the largest
# error of a certified image is 7.1 of them on the networks of
# `tests/reconstruction/test_closed_units_sound.py`, means of several images
# and kernels that alone decayed left out.
_MARGIN = 10.0
# Of the bias's change, over its noise: 0.3 to 1.7 on the intact networks looked at, 4.4
# where the kernel alone decayed by 0.3%. Chosen on these.
_MISFIT = 5.0
# Largest relative change of a scale, over the misfit's share of the bias's change, if
# the kernel alone decayed: signals that hardly turn hide it.
_HIDDEN = 200.0
_UNEXPLAINED = 1e-3  # of the squared change: beyond it the set explains no network


class Judged(NamedTuple):
    """errors: bounds, inf where none. certified: which. verdict, message: of all."""

    errors: Float[np.ndarray, " m"]
    certified: Bool[np.ndarray, " m"]
    verdict: Verdict
    message: str


def hidden(gap: float, why: str) -> Verdict:
    """Returns the verdict on a change whose spectrum shows no rank.

    Args:
      gap: the widest of the spectrum.
      why: what else is known of it, as the end of the sentence.
    """
    return Verdict(
        "assumptions do not hold",
        f"The first layer's change shows no rank (widest gap {gap:.2g}), with weight "
        "decay taken out or not: it is no sum of a few images times signals, as after "
        "Adam, normalisation before the ReLU, augmentation, or training on more images "
        f"than the layer has inputs or units{why}.",
        gap=gap,
    )


def _missing(found: Found, space: Space, *, nothing: bool) -> str:
    n, m = space.signals.shape
    why = (
        f"{len(found.rows)} of {n} rows vanish on units that an image closes, after "
        f"{found.rounds} rounds"
    )
    if len(found.rows) == n:
        why = f"rows were found for all {n} images, but not all agree with their units"
    if n > m / 4:
        return (
            f"{why}; about half of {m} units close for an image, too few to tell {n} "
            "images apart with certainty"
        )
    # However many rows seemed to vanish: where nothing is explained, none did.
    if nothing or len(found.rows) < n / 2:
        why += (
            ": no ReLU follows the layer, or normalisation stands between, or hardly a "
            "unit stayed closed throughout training, or the weights before training "
            "are others"
        )
    return why


def judge(
    found: Found,
    space: Space,
    factors: Factors,
    *,
    roundoff: float,
    explained: float,
    decay: float,
) -> Judged:
    """Says what a search is worth.

    Args:
      found: by `closed_rows.find`.
      space: that it searched.
      factors: of the change.
      roundoff: of the stored weights.
      explained: share of the squared change that the images account for.
      decay: factor of the weights before training.
    """
    n, gap = len(space.values), factors.gap
    whole = found.whole
    notes = []
    if decay != 1.0:
        notes.append(f"weight decay left {decay:.6f} of the weights before training")
    if space.scale is None:
        notes.append(
            "no bias tells the scale: images are known up to their size, and are "
            "returned with norm 1"
        )
    told = f"; {'; '.join(notes)}" if notes else ""
    if whole is None:
        count = len(found.rows)
        word = "approximate" if count and explained > 0.5 else "nothing found"
        why = _missing(found, space, nothing=word == "nothing found") + told
        return Judged(
            np.full(count, np.inf),
            np.zeros(count, bool),
            Verdict(word, f"Too few to be exact: {why}.", explained, gap),
            f"0 of {n} images certified: {why}.",
        )
    errors = np.maximum(_MARGIN * whole.errors + whole.moved, 4 * roundoff)
    if decay != 1.0 and space.scale is not None:
        rest = space.misfit * np.sqrt(len(space.alive)) / np.linalg.norm(space.scale)
        errors = errors + min(abs(1 / decay - 1), _HIDDEN * float(rest))
    fits = whole.misfit < _MISFIT
    sound = bool(found.good.all()) and whole.unexplained < _UNEXPLAINED and fits
    certified = (errors <= TOLERANCE) & sound & (space.scale is not None)
    errors = np.where(certified, errors, np.inf)
    count = int(certified.sum())
    share = (
        f"{1 - explained:.1g} of the change's squared norm is left unexplained, the "
        f"spectrum's gap is {gap:.3g}"
    )
    if count:
        worst = told_bound(float(errors[certified].max()))
        reason = (
            f"{count} of {n} images are within {worst} of their norm of training "
            "images, or of a mean of nearly equal ones, which no weights tell apart: "
            f"each row of signals vanishes on the units that its image closes, "
            f"{_agreeing(whole.agreement.min())}; {share}{told}."
        )
        message = f"{count} of {n} images certified{told}."
        return Judged(
            errors, certified, Verdict("exact", reason, explained, gap, count), message
        )
    if not found.good.all():
        why = f"{int(found.good.sum())} of {n} rows agree with what their images close"
    elif space.scale is None:
        why = "rows and units agree"
    elif not fits:
        why = (
            f"{whole.misfit:.2g} times as much of the bias's change as its noise fits "
            "no image, as where one image is a multiple of another, or the bias was "
            "trained otherwise than the kernel: the scale is not certain"
        )
    else:
        why = "noise leaves no bound on the error of any image"
    word = "approximate" if explained > 0.5 else "nothing found"
    return Judged(
        errors,
        certified,
        Verdict(word, f"No certificate: {why}; {share}{told}.", explained, gap),
        f"0 of {n} images certified: {why}{told}.",
    )


def nothing(
    image_shape: tuple[int, int, int], verdict: Verdict
) -> result.Reconstruction:
    """Returns no image, and why.

    Args:
      image_shape: in pixels.
      verdict: the reason.
    """
    return result.Reconstruction(
        images=np.zeros((0, *image_shape)),
        duals=np.zeros((1, 0, 1)),
        losses=np.zeros(0),
        verdict=verdict,
        sources=(),
        message=f"0 images: {verdict.reason}",
        **result.uncertain(0),
    )


def single(
    space: Space, factors: Factors, image_shape: tuple[int, int, int]
) -> result.Reconstruction:
    """Returns the one image of a change of rank 1: its direction, without a search.

    Args:
      space: the coordinates.
      factors: of the change.
      image_shape: in pixels.
    """
    scale = 1.0 if space.scale is None else float(space.scale[0])
    image = space.left[:, 0] / (scale or 1.0)
    size = "" if space.scale is not None else "; its size is not known, nor its sign"
    if size:
        image = image / np.linalg.norm(image)
    reason = (
        "The change has rank 1: it is one image, or several that all but share their "
        f"signals, and closed units have nothing to tell it from{size}."
    )
    total = float(np.sum(factors.values**2))
    rest = space.noise**2 * len(space.left) * len(space.alive)
    verdict = Verdict("approximate", reason, total / (total + rest), factors.gap)
    return result.Reconstruction(
        images=image.reshape(1, *image_shape).astype(np.float32),
        duals=np.zeros((1, 1, 1)),
        losses=np.zeros(0),
        verdict=verdict,
        sources=("closed units",),
        estimated_num_images=1,
        message=f"0 of 1 images certified: {reason}",
        **result.uncertain(1),
    )


def _agreeing(share: float) -> str:
    """Says how many units agree; never all of what is less."""
    if share == 1.0:
        return "and all of these agree"
    return f"{np.floor(1000 * share) / 10:g}% or more agree"
