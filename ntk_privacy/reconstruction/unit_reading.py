"""A change of known rank, read: the search, its verdict, and images in their order."""

import json
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_privacy import _checks, resume
from ntk_privacy.models.mlp import MLP
from ntk_privacy.reconstruction import (
    closed_rows,
    result,
    unit_set,
    unit_space,
    unit_verdict,
)
from ntk_privacy.reconstruction.change_factors import Factors
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.resume import Stage

__all__ = ["kept", "searched"]

_ARRAYS = ("images", "certified", "residuals", "errors")
_FEW = 512  # random starts at least


def searched(
    space: unit_space.Space,
    factors: Factors,
    image_shape: tuple[int, int, int],
    starts,
    *,
    key: Array,
    roundoff: float,
    decay: float,
    num_starts: int | None,
    max_rounds: int,
    dtype=jnp.float32,
) -> result.Reconstruction:
    """Returns the images of a change whose rank is known; see `closed_units`.

    Args:
      space: its coordinates.
      factors: of the change.
      image_shape: in pixels.
      starts: images to begin from; None is none.
      key: of the random starts.
      roundoff: of the stored weights.
      decay: what is left of the weights before training.
      num_starts: a round; None is N, 512 at least.
      max_rounds: at most.
      dtype: of the search.

    Raises:
      ValueError: starts that are not finite, or of another shape.
    """
    n, m = space.signals.shape
    given = None
    if starts is not None:
        _checks.finite(starts=starts)
        if tuple(starts.shape[1:]) != tuple(image_shape):
            raise ValueError(
                f"starts have shape {starts.shape[1:]} but image_shape is "
                f"{image_shape}: preprocess them like the training images."
            )
        flat = np.asarray(starts, np.float64).reshape(len(starts), -1)
        given = flat @ (space.left / space.values**2)
    if n == 1:
        return unit_verdict.single(space, factors, image_shape)
    if m < 3 * n:
        reason = (
            f"The change has rank {n}, and only {m} units move: about half of them "
            "close for an image, too few to tell so many images, or forms of augmented "
            "ones; or it is no sum of images, as after Adam."
        )
        return unit_verdict.nothing(
            image_shape, Verdict("nothing found", reason, gap=factors.gap)
        )
    found = closed_rows.find(
        space, key=key, starts=given, num_starts=num_starts or max(_FEW, n),
        max_rounds=max_rounds, dtype=dtype,
    )  # fmt: skip
    whole = found.whole
    if whole is not None:
        u, residuals = whole.u, whole.ratios
        inside = float(np.sum(space.values**2))
        outside = space.noise**2 * len(space.left) * len(space.alive)
        explained = 1 - (whole.unexplained * inside + outside) / (inside + outside)
    else:
        rows = found.rows
        u = np.array([row.u for row in rows]).reshape(-1, n)
        if space.scale is not None:
            u = u / np.where(u @ space.scale == 0, 1, u @ space.scale)[:, None]
        residuals = np.array([row.ratio for row in rows])
        explained = unit_set.share_explained(space, u)
    flat = u @ space.left.T
    if space.scale is None:
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
    judged = unit_verdict.judge(
        found, space, factors, roundoff=roundoff, explained=explained, decay=decay
    )
    order = np.lexsort((residuals, judged.errors, ~judged.certified))
    images = flat[order].reshape(-1, *image_shape)
    return result.Reconstruction(
        images=images if roundoff < 1e-12 else images.astype(np.float32),
        duals=np.zeros((1, len(images), 1)),
        losses=np.zeros(0),
        verdict=judged.verdict,
        sources=("closed units",) * len(images),
        certified=judged.certified[order],
        residuals=residuals[order],
        errors=judged.errors[order],
        estimated_num_images=n,
        message=judged.message,
    )


def kept(
    stage: Stage,
    name: str,
    make: Callable[[], result.Reconstruction],
    evidence: Evidence,
) -> result.Reconstruction:
    """Returns what was read, now or by an earlier process, in the network's units.

    Args:
      stage: keeps it; it cannot be cut short.
      name: of the method.
      make: reads.
      evidence: what of.
    """

    def arrays_of():
        found = make()
        told = {
            "verdict": found.verdict._asdict(),
            "message": found.message,
            "estimated_num_images": found.estimated_num_images,
        }
        arrays = {each: np.asarray(getattr(found, each)) for each in _ARRAYS}
        return {"told": np.asarray(json.dumps(told)), **arrays}

    arrays = resume.once(stage, name, arrays_of)
    told, images = json.loads(str(arrays["told"])), arrays["images"]
    network = evidence.network
    if isinstance(network, MLP) and network.parametrization == "ntk":
        # Images enter that layer divided by the square root of their size.
        images = images * np.sqrt(np.prod(evidence.image_shape)).astype(images.dtype)
    m = len(images)
    return result.Reconstruction(
        images=images,
        duals=np.zeros((1, m, evidence.num_outputs)),
        losses=np.zeros(0),
        verdict=Verdict(**told["verdict"]),
        sources=(name.replace("_", " "),) * m,
        certified=arrays["certified"],
        residuals=arrays["residuals"],
        errors=arrays["errors"],
        estimated_num_images=told["estimated_num_images"],
        message=told["message"],
    )
