"""What every reconstruction attack returns."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ntk_privacy import _thumbnails
from ntk_privacy.reconstruction.algebraic_result import AlgebraicReconstruction
from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["Reconstruction", "figures", "uncertain"]


class Reconstruction(NamedTuple):
    """Images that were read back from weights, and what they are worth.

    Attributes:
      images: (m, height, width, depth) in the units that the network takes; m may be 0.
      duals: multipliers of each image and output, one set per point of the features.
      losses: of the last search, one per step; NaN after a step at which it was lost;
        empty where nothing was searched for.
      verdict: what the evidence says of the whole.
      sources: how each image was found: "closed units", "decoded", "kkt", "max_margin",
        with ", polished" where it was moved after that.
      certified: `errors` is a bound that was verified.
      residuals: relative error of each decoded image against itself; NaN of others.
      errors: bound on the relative L2 error of each image; inf where there is none.
      contributions: share of the squared change that no other image makes up for; None
        where it was not measured.
      nonfinite: the search was lost.
      estimated_num_images: N, told or read from the weights; None where it is hidden.
      message: what was decoded and what was not, in a sentence; "" where nothing was
        to be.
      replay_misses: how far trainings on the images ended from the trained weights, in
        order; empty where there was none.
      decoded: the decoding that the images come from; None where there was none, or it
        was no help.
      kept: what else of it is worth keeping, by name.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.reconstruction import result, verdict
      >>> found = result.Reconstruction(
      ...     images=np.zeros((2, 8, 8, 1)),
      ...     duals=np.zeros((1, 2, 1)),
      ...     losses=np.zeros(0),
      ...     verdict=verdict.Verdict("approximate", "They explain the change."),
      ...     sources=("kkt", "kkt"),
      ...     **result.uncertain(2),
      ... )
      >>> found
      <2 images, 0 certified: approximate>
    """

    images: Float[np.ndarray, "m h w d"]
    duals: Float[np.ndarray, "q m c"]
    losses: Float[np.ndarray, " steps"]
    verdict: Verdict
    sources: tuple[str, ...]
    certified: Bool[np.ndarray, " m"]
    residuals: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    contributions: Float[np.ndarray, " m"] | None = None
    nonfinite: bool = False
    estimated_num_images: int | None = None
    message: str = ""
    replay_misses: tuple[float, ...] = ()
    decoded: AlgebraicReconstruction | None = None
    kept: Mapping[str, np.ndarray] = MappingProxyType({})

    def __repr__(self) -> str:
        """Returns one line; the arrays are attributes."""
        sure = int(np.sum(self.certified))
        known = self.estimated_num_images
        of = "" if known is None else f" of {known} that the weights show"
        return f"<{len(self.images)} images{of}, {sure} certified: {self.verdict.word}>"

    def _repr_html_(self) -> str:
        """Returns the verdict above the images, as notebooks show it."""
        told = [
            f"image {i + 1}: {source}, {'certified' if sure else 'an estimate'}"
            for i, (source, sure) in enumerate(
                zip(self.sources, self.certified, strict=False)
            )
        ]
        sentence = f"{self.verdict.word}: {self.verdict.reason}"
        return _thumbnails.html(sentence, self.images, captions=told)


def uncertain(count: int) -> dict[str, Any]:
    """Returns the fields that say of so many images that nothing bounds their error.

    Args:
      count: of the images.

    Example:
      >>> from ntk_privacy.reconstruction import result
      >>> result.uncertain(2)["certified"].tolist()
      [False, False]
    """
    return {
        "certified": np.zeros(count, bool),
        "residuals": np.full(count, np.nan),
        "errors": np.full(count, np.inf),
    }


def figures(found: Reconstruction) -> dict[str, Any]:
    """Returns what a method tells of its own result, apart from images and verdict.

    Args:
      found: of any method; entries that it has no figures for are left out.
    """
    told: dict[str, Any] = {
        "sources": found.sources,
        "replay_misses": found.replay_misses,
    }
    if found.contributions is not None:
        told |= {"nonfinite": found.nonfinite, "contributions": found.contributions}
    if found.message:
        told |= {
            "estimated_num_images": found.estimated_num_images,
            "num_certified": int(np.sum(found.certified)),
            "certified": found.certified,
            "message": found.message,
        }
    if found.decoded is not None:
        told |= {
            name: getattr(found.decoded, name)
            for name in ("rank_gap", "residuals", "errors")
        }
    return told
