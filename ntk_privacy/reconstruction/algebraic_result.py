"""What decoding returns, also as plain arrays, such as a checkpoint holds."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from ntk_privacy.reconstruction.verdict import Verdict

__all__ = ["TOLERANCE", "AlgebraicReconstruction", "from_arrays", "to_arrays"]

TOLERANCE = 0.05
"""Largest stated relative error of a certified image."""


class AlgebraicReconstruction(NamedTuple):
    """Decoded images, best first, and what certifies them without the truth.

    **What a certificate means.** The change of all parameters, beyond a disturbance
    whose size is measured, holds one gradient at this image, or within `errors` of it.
    That is a training image; or, which no weights can tell apart, several training
    images that share every gate, of which the mean weighted by their duals is decoded:
    copies, images closer to each other than a linear region is wide (`errors` is never
    below that width, so fewer than 200 hidden units in all certify nothing), and, where
    initial biases are zero, positive multiples of one image. Multiples show where
    training converged, for the network is then flat along their ray or gives them no
    label, and are not certified; where it was stopped early they do not show. An image
    whose units are all closed, such as zero with zero biases, moves the output bias
    alone: `verdict` says so, and N does not count it. Biases are taken to have been
    trained with the learning rate of the kernels: another one rescales all images
    alike.

    Attributes:
      images: (m, height, width, depth) in the units that the network takes; m may be 0.
      duals: multiplier of each image and output, of the sum over images.
      activations: that feed the last hidden layer, decoded.
      gates: of the last hidden layer.
      residuals: one relative error per image, the largest of: distance of the gate row
        to the row space; gates that the activations contradict, twice their share;
        misfit of the forward pass; distance of the image to the first layer's span.
        Consistency of an image with itself: no bound on its error.
      accepted: residual below what the noise in the singular values allows: good
        starts for an optimiser, no more.
      errors: bound on the relative L2 error of each image, by `certificate.weigh`; inf
        where there is none.
      certified: `errors` within `tolerance`, and nothing speaks against the image.
      tolerance: `TOLERANCE`.
      estimated_num_images: N, from the rank; None where noise hides it.
      rank_gap: last kept over first dropped singular value: 1 is no evidence for N,
        above 20 a clear rank, of images that are not tiny against the bias:
        those at 1e-6 of it all look like one, and read as N = 1 with a great gap.
      num_rounds: rounds of random starts that were used.
      message: what was and what was not decoded, in a sentence.
      verdict: what the evidence says of the whole.
    """

    images: Float[Array | np.ndarray, "m h w d"]
    duals: Float[Array | np.ndarray, "m c"]
    activations: Float[Array | np.ndarray, "m units0"]
    gates: Bool[Array | np.ndarray, "m units"]
    residuals: Float[Array | np.ndarray, " m"]
    accepted: Bool[Array | np.ndarray, " m"]
    errors: Float[Array | np.ndarray, " m"]
    certified: Bool[Array | np.ndarray, " m"]
    tolerance: float
    estimated_num_images: int | None
    rank_gap: float
    num_rounds: int
    message: str
    verdict: Verdict


def to_arrays(found: AlgebraicReconstruction) -> dict[str, np.ndarray]:
    """Returns the fields as arrays; None is left out, the verdict is JSON.

    Args:
      found: of `algebraic.reconstruct`.
    """
    fields = found._asdict() | {"verdict": json.dumps(found.verdict._asdict())}
    return {
        name: np.asarray(value) for name, value in fields.items() if value is not None
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> AlgebraicReconstruction:
    """Returns what `to_arrays` was given, its images as NumPy arrays.

    Args:
      arrays: by name.
    """
    count = arrays.get("estimated_num_images")
    return AlgebraicReconstruction(
        images=arrays["images"],
        duals=arrays["duals"],
        activations=arrays["activations"],
        gates=arrays["gates"],
        residuals=arrays["residuals"],
        accepted=arrays["accepted"],
        errors=arrays["errors"],
        certified=arrays["certified"],
        tolerance=arrays["tolerance"].item(),
        estimated_num_images=None if count is None else count.item(),
        rank_gap=arrays["rank_gap"].item(),
        num_rounds=arrays["num_rounds"].item(),
        message=arrays["message"].item(),
        verdict=Verdict(**json.loads(arrays["verdict"].item())),
    )
