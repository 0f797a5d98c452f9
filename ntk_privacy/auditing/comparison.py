"""What was read back against private images: pairs, controls, membership."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ntk_privacy import resume
from ntk_privacy.auditing import controls as nulls
from ntk_privacy.auditing import membership, statement, units
from ntk_privacy.auditing.attack import Attacked, again
from ntk_privacy.auditing.cases import Case
from ntk_privacy.auditing.controls import Controls
from ntk_privacy.auditing.given_images import GivenImages
from ntk_privacy.auditing.membership import Membership
from ntk_privacy.evaluation import reconstruction_curve
from ntk_privacy.evaluation.reconstruction_curve import RECOVERED_PSNR
from ntk_privacy.reconstruction import Evidence, Reconstruction
from ntk_privacy.resume import Stage, straight

__all__ = ["Compared", "compared", "controlled"]


_NORM_1 = 1e-4


class _Matched(NamedTuple):
    """images: as intensities. fit: to given ones; None where there is none."""

    images: np.ndarray
    fit: units.Units | None
    pairs: reconstruction_curve.Evaluation
    up_to_brightness: int


class Compared(NamedTuple):
    """parts: of an `Audit`, by name. scaled: units of the network. counts: of all."""

    parts: dict[str, Any]
    scaled: units.Units
    counts: statement.Counts


def compared(given: Case, attacked: Attacked, notes: list[str]) -> Compared:
    """Returns images as intensities, pairs with private ones, and the counts.

    Args:
      given: to the audit.
      attacked: what was found in it.
      notes: get what is noticed of units.

    Raises:
      ValueError: shapes that differ.
    """
    found, known = attacked.found, attacked.evidence
    bounds = (0.0, 1.0) if known.bounds is None else known.bounds
    scaled = units.told_by_bounds(bounds, known.image_shape[2])
    images = scaled.intensities(found.images)
    certified = np.asarray(found.certified, bool)
    num_certified = int(certified.sum())
    pairs = recovered = certain = None
    scaled_too, sizeless = 0, _has_no_size(found.images)
    if given.private is not None:
        matched = _matched(given.private.images, found, scaled)
        images, other, pairs, scaled_too = matched
        if other is not None:
            scale = other.scale * scaled.scale
            shift = other.scale * scaled.shift + other.shift
            told = (
                f"images that were read are given ones times {_list(1 / scale)} after "
                f"{_list(shift)} is subtracted, per channel; they are compared so."
            )
            if sizeless:
                notes.append(f"The weights do not tell the images' size: {told}")
            else:
                scaled = units.Units(scale, shift)
                notes.append(
                    "The network saw intensities in other units than the bounds say: "
                    f"{told}"
                )
        recovered = pairs.num_recovered
        above = pairs.psnr >= RECOVERED_PSNR
        certain = int(np.sum(certified[pairs.reconstruction_index] & above))
    estimated = found.estimated_num_images
    estimated = None if estimated is None else int(estimated)
    private = None if given.private is None else len(given.private.images)
    counts = statement.Counts(
        *(len(images), num_certified, estimated, private, recovered, certain),
        up_to_brightness=scaled_too,
    )
    made = {
        "reconstruction": found,
        "images": images,
        "pairs": pairs,
        "num_recovered": recovered,
        "num_certified": num_certified,
        "estimated_num_images": estimated,
    }
    return Compared(made, scaled, counts)


def _matched(real: np.ndarray, found: Reconstruction, scaled: units.Units) -> _Matched:
    """Pairs images with given ones, in the units that fit these."""
    images, certified = scaled.intensities(found.images), np.asarray(found.certified)
    # Without a certificate half of all images must fit, in the same units.
    some = certified if certified.any() else np.ones(len(images), bool)
    fit = units.fitted(real, images[some])
    images = images if fit is None else fit.intensities(images)
    pairs = reconstruction_curve.evaluate(real, images, mean=np.zeros(real.shape[-1]))
    alike = 0
    if _has_no_size(found.images) or not pairs.num_recovered:
        alike = units.num_up_to_brightness(real, found.images)
    return _Matched(images, fit, pairs, alike)


def _has_no_size(images: np.ndarray) -> bool:
    """Whether readers gave images norm 1, for want of a bias that tells it."""
    norms = np.sqrt(np.sum(np.square(images, dtype=np.float64), axis=(1, 2, 3)))
    return len(norms) > 1 and bool(np.all(np.abs(norms - 1) < _NORM_1))


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def controlled(
    given: Case,
    attacked: Attacked,
    seen: Compared,
    key: Array,
    notes: list[str],
    *,
    stage: Stage = straight,
) -> dict[str, Any]:
    """Returns controls and membership, as far as they can be had.

    Args:
      given: to the audit.
      attacked: what was found in it.
      seen: of `compared`.
      key: of the controls.
      notes: get what was left out.
      stage: runs the loops of attacks on wrong weights.

    Raises:
      ValueError: shapes that differ.
    """
    known, images = attacked.evidence, seen.parts["images"]
    wrong = Controls()
    if known.params_0 is not None and not known.is_adapter:
        wrong = _attacked_wrongly(given, attacked, seen, key, notes, stage)
    found: dict[str, Any] = {}
    private, unseen = given.private, given.unseen
    if private is not None:
        shuffled = nulls.recovered_when_shuffled(private.images, images)
        if shuffled:
            notes.append(
                f"{shuffled} of the given images count as recovered with their pixels "
                "in another order too: of images with so little in them 25 dB proves "
                "nothing."
            )
        equal = len(private.images) - len(np.unique(private.images, axis=0))
        if equal:
            notes.append(
                f"{equal} of the given images equal others of them; what is read back "
                "counts for one of each, so at most "
                f"{len(private.images) - equal} can count as recovered."
            )
        wrong = dataclasses.replace(
            wrong,
            shuffled_recovered=shuffled,
            identified=nulls.among_decoys(private, images, unseen),
        )
        if unseen is None:
            notes.append(
                "Membership was not measured, and decoys are the images themselves "
                "with their pixels in other orders: give unseen images for both."
            )
        elif known.params_0 is None or known.is_adapter:
            notes.append("Membership was not measured: it needs whole weights before.")
        else:
            found["membership"] = _members(known, private, unseen, seen, notes)
    return {"controls": wrong, **found}


def _attacked_wrongly(
    given: Case,
    attacked: Attacked,
    seen: Compared,
    key: Array,
    notes: list[str],
    stage: Stage,
) -> Controls:
    """The same attacks, where the change meets weights that it does not belong to."""
    key = jax.random.fold_in(key, 1)
    other = nulls.on_wrong_weights(attacked.evidence, key=key)
    try:
        found = again(attacked, other, key=key, stage=resume.named(stage, "control"))
    except ValueError as error:
        return Controls(wrong_weights_told=f"Not run: {error}")
    recovered = None
    if given.private is not None:
        recovered = 0
        if len(found.images):
            # As what the attack found is counted.
            matched = _matched(given.private.images, found, seen.scaled)
            recovered = max(matched.pairs.num_recovered, matched.up_to_brightness)
        if recovered:
            notes.append(
                f"{recovered} of the given images count as recovered from wrong "
                "weights too: what is recovered without a certificate proves little."
            )
    return Controls(
        wrong_weights=int(np.sum(found.certified)),
        wrong_weights_told=found.verdict.reason,
        wrong_weights_recovered=recovered,
    )


def _members(
    known: Evidence,
    private: GivenImages,
    unseen: GivenImages,
    seen: Compared,
    notes: list[str],
) -> Membership | None:
    most = membership.MOST_ROWS // known.num_outputs - len(private.images)
    if most < 1:
        notes.append("Membership was not measured: there are too many images.")
        return None
    others = unseen.images[:most]
    if len(others) < len(unseen.images):
        notes.append(f"Membership was measured against {len(others)} unseen images.")
    both = seen.scaled.as_seen(np.concatenate([private.images, others]))
    shares = membership.explained_shares(known, both)
    return membership.measured(
        shares[: len(private.images)], shares[len(private.images) :]
    )
