"""What an audit looks at: weights, pictures, and what was inferred of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntk_privacy import _checks
from ntk_privacy.auditing import given_images, recipes, units
from ntk_privacy.auditing.given_images import GivenImages
from ntk_privacy.auditing.recipes import KnownTraining
from ntk_privacy.reconstruction import Evidence, evidence_files

__all__ = ["Case", "case"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What an audit looks at.

    Attributes:
      evidence: weights, a gradient or an adapter; None if only a distilled set is.
      private: images that were trained on.
      unseen: images that were not.
      distilled: a set that is to be published.
      seeds: of the weights before training, from the first up to the second.
      training: what is known of it.
      notes: what was inferred, in sentences.
    """

    evidence: Evidence | None = None
    private: GivenImages | None = None
    unseen: GivenImages | None = None
    distilled: GivenImages | None = None
    seeds: tuple[int, int] | None = None
    training: KnownTraining | None = None
    notes: tuple[str, ...] = ()


def case(
    after: Any = None,
    *,
    images: Any = None,
    unseen: Any = None,
    distilled: Any = None,
    seeds: tuple[int, int] | None = None,
    image_shape: Sequence[int] | None = None,
    bounds: tuple[Any, Any] | None = None,
    num_images: int | None = None,
    recipe: Any = None,
    **weights: Any,
) -> Case:
    """Reads what an audit looks at.

    Args: those of `audit`; `weights` are those that say what was before, a gradient or
      an adapter.

    Raises:
      ValueError, FileNotFoundError: see `audit`.
    """
    about: list[str] = []
    shape = None
    if image_shape is not None:
        if len(image_shape) != 3:
            raise ValueError(
                f"image_shape={tuple(image_shape)} must be height, width, channels."
            )
        shape = (int(image_shape[0]), int(image_shape[1]), int(image_shape[2]))
        for size in shape:
            _checks.at_least(1, image_shape=size)
    if seeds is not None:
        _check_seeds(seeds, before=weights.get("before"))
    training = None if recipe is None else recipes.read(recipe)
    private = None
    if images is not None:
        private = given_images.read(images, name="images", image_shape=shape)
        if shape is None:
            _, h, w, c = private.images.shape
            shape = (h, w, c)
    has = after is not None or any(
        weights.get(name) is not None for name in ("before", "gradient", "adapter")
    )
    if not has and distilled is None:
        raise ValueError(
            "There is nothing to audit: give after (and before), a gradient, an "
            "adapter, or a distilled set."
        )
    known = None
    if has:
        if after is None and not any(
            weights.get(name) is not None for name in ("gradient", "adapter")
        ):
            raise ValueError(
                "before alone shows nothing: give after, a gradient or an adapter too."
            )
        told = {name: value for name, value in weights.items() if value is not None}
        told |= _of_training(training, num_images, is_gradient="gradient" in told)
        read = evidence_files.from_file(after, image_shape=shape, bounds=bounds, **told)
        known, shape = read.evidence, read.evidence.image_shape
        about += read.notes
        edges = (0.0, 1.0) if known.bounds is None else known.bounds
        units.told_by_bounds(edges, shape[2])
        known = dataclasses.replace(known, bounds=edges)
    others = [
        None if one is None else given_images.read(one, name=name, image_shape=shape)
        for name, one in (("unseen", unseen), ("distilled", distilled))
    ]
    if others[1] is not None and private is None:
        raise ValueError("distilled is compared with private images: give images too.")
    if private is not None:
        # Of an image shape that was inferred.
        private = given_images.read(private, name="images", image_shape=shape)
        if others[0] is not None:
            others[0] = _without(others[0], private, about)
    return Case(
        evidence=known,
        private=private,
        unseen=others[0],
        distilled=others[1],
        seeds=seeds,
        training=training,
        notes=tuple(about),
    )


def _without(
    unseen: GivenImages, private: GivenImages, notes: list[str]
) -> GivenImages:
    """Leaves out unseen images that are private ones: they were trained on."""
    known = {image.tobytes() for image in np.asarray(private.images, np.float32)}
    flat = np.asarray(unseen.images, np.float32)
    kept = np.asarray([image.tobytes() not in known for image in flat])
    if kept.all():
        return unseen
    if not kept.any():
        raise ValueError(
            "unseen images are all among images: give ones that were not trained on, "
            "or leave unseen out."
        )
    count = int(np.sum(~kept))
    are = "is" if count == 1 else "are"
    notes.append(f"{count} of the unseen images {are} among images, and left out.")
    classes = None if unseen.classes is None else unseen.classes[kept]
    return unseen._replace(images=unseen.images[kept], classes=classes)


def _of_training(
    training: KnownTraining | None, num_images: int | None, *, is_gradient: bool
) -> dict[str, Any]:
    """Returns fields of evidence, by the recipe and by what is told beside it."""
    told = {} if training is None else training.of_evidence(is_gradient=is_gradient)
    if num_images is None:
        return told
    if told.get("num_images", num_images) != num_images:
        raise ValueError(
            f"num_images={num_images}, and the recipe says {told['num_images']}: give "
            "one of them."
        )
    return {**told, "num_images": num_images}


def _check_seeds(seeds: tuple[int, int], *, before: Any) -> None:
    if before is not None:
        raise ValueError("seeds are tried where before is not known: give one of them.")
    first, end = seeds
    if not 0 <= first < end:
        raise ValueError(
            f"seeds={first}:{end} must be the first and, above it, the end, such as "
            "0:100000."
        )
