"""From images that are nearly right: small steps, along the training they explain.

How far a replay of that training ends from the trained network says how good the images
are: a polish after which it ends farther off is taken back.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import resume
from ntk_privacy.reconstruction import judging, kkt, replay
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.resume import Stage

__all__ = ["MAX_REPLAY_MISS", "REPLAY_POINTS", "Polished", "polish"]

REPLAY_POINTS = 8
"""Points of a replayed training at which features are taken."""

MAX_REPLAY_MISS = 0.7
"""Of a replay that is followed: images farther off explain nothing."""


class Polished(NamedTuple):
    """found: by the last polish that was kept. misses: of the replays, in order."""

    found: kkt.Reconstruction
    misses: tuple[float, ...]


def polish(
    evidence: Evidence,
    images: Float[np.ndarray, "m h w d"],
    duals: Float[np.ndarray, "q m c"],
    *,
    points: tuple[float, ...],
    replays: int,
    key: Array,
    stage: Stage,
) -> Polished:
    """Polishes images, then goes on along the training that they explain.

    Args:
      evidence: whose network is an `MLP`; weights before and after, and bounds.
      images: nearly right.
      duals: theirs.
      points: of the features at first.
      replays: how often the training is replayed at most; 0 for linearized dynamics,
        and where there are more candidates than images.
      key: typed key.
      stage: runs the loops "polish", "replay_1" and so on.
    """
    found = _moved(
        evidence, "polish", images, duals, key, stage,
        points=points, settings=kkt.POLISH,
    )  # fmt: skip
    if not replays:
        return Polished(found, ())
    path = _path(evidence, stage, found, 0)
    misses = [path.miss]
    for i in range(1, replays + 1):
        if path.miss > MAX_REPLAY_MISS:
            break
        polished = _moved(
            evidence,
            f"replay_{i}",
            found.images,
            np.asarray(found.duals),
            key,
            stage,
            features=path.features,
            settings=kkt.REPLAYED,
        )
        path = _path(evidence, stage, polished, i)
        misses.append(path.miss)
        if misses[-1] >= misses[-2]:
            break
        found = polished
    verdict = judging.replayed(found.verdict, min(misses))
    return Polished(found._replace(verdict=verdict), tuple(misses))


def _moved(evidence, name, images, duals, key, stage, **where) -> kkt.Reconstruction:
    """Searches from images, their duals spread evenly over the points of `where`."""
    q = len(where.get("features") or where["points"])
    start = kkt.prepare(
        evidence.network,
        evidence.params_0,
        evidence.params_t,
        num_images=len(images),
        initial_images=images,
        initial_duals=np.repeat(duals.sum(0)[None] / q, q, axis=0),
        **evidence.common(key),
        **where,
    )
    return kkt.run_staged(start, stage=stage, name=name)


def _labels(evidence: Evidence, images: np.ndarray) -> Array:
    """Returns the labels nearest to what the trained network makes of images."""
    outputs = np.asarray(
        evidence.mlp("polish").apply_fn(evidence.params_t, jnp.asarray(images))
    )
    codes = evidence.codes().astype(outputs.dtype)
    distances = np.sum((outputs[:, None] - codes[None]) ** 2, axis=-1)
    return jnp.asarray(codes[distances.argmin(1)])


def _path(
    evidence: Evidence, stage: Stage, found: kkt.Reconstruction, number: int
) -> replay.Replay:
    images = np.asarray(found.images)

    def make():
        return replay.replay(
            evidence.mlp("replay"),
            evidence.params_0,
            evidence.params_t,
            jnp.asarray(images),
            _labels(evidence, images),
            num_points=REPLAY_POINTS,
        )

    return resume.timed(stage, f"path_{number}", make)
