"""What a network gives away that is trained on a distilled set: the set, or more.

Source: the defence of Loo et al., ICLR 2024 (arXiv:2302.01428): what is read back from
such a network should be the distilled images, and none of those they were made of.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy.auditing import attack
from ntk_privacy.auditing.given_images import GivenImages
from ntk_privacy.evaluation import defence
from ntk_privacy.reconstruction import evidence
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import victim

__all__ = ["Decoded", "decoded"]

WIDTH = 1024


class Decoded(NamedTuple):
    """What was read back from a network of two hidden layers of `WIDTH` units.

    Attributes:
      own: distilled images that came back at 25 dB: whether the attack worked at all.
      originals: private images that did.
      best_psnr: of a private image, in dB.
    """

    own: int
    originals: int
    best_psnr: float


def _once(distilled: GivenImages) -> GivenImages:
    """Leaves out what is there twice: with two labels, no network learns it."""
    flat = distilled.images.reshape(len(distilled.images), -1)
    kept = np.sort(np.unique(flat, axis=0, return_index=True)[1])
    classes = None if distilled.classes is None else distilled.classes[kept]
    return distilled._replace(images=distilled.images[kept], classes=classes)


def _targets(distilled: GivenImages) -> Float[np.ndarray, "m k"]:
    """Centred one-hot rows of the classes; without classes, signs in turn."""
    m, classes = len(distilled.images), distilled.classes
    if classes is None or len(np.unique(classes)) < 2:
        return np.where(np.arange(m) % 2, 1.0, -1.0)[:, None].astype(np.float32)
    found, rows = np.unique(classes, return_inverse=True)
    if len(found) == 2:
        return (2.0 * rows - 1.0)[:, None].astype(np.float32)
    return (np.eye(len(found))[rows] - 1 / len(found)).astype(np.float32)


def decoded(
    distilled: GivenImages,
    private: GivenImages,
    *,
    key: Array,
    seconds: float | int,
    stage: Stage = straight,
) -> Decoded:
    """Trains a network on a distilled set, attacks it, and looks for private images.

    It is trained by the linearized gradient flow, in closed form, which leaves the most
    to read; where classes are not told, labels alternate.

    Args:
      distilled: the set.
      private: what it was made of, of the same shape.
      key: of weights and of the attack.
      seconds: after which searches stop.
      stage: runs the loops.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from ntk_privacy.auditing import distilled_sets
      >>> from ntk_privacy.auditing.given_images import GivenImages
      >>> x = np.random.default_rng(0).random((6, 6, 6, 1)).astype(np.float32)
      >>> made = GivenImages(x[:4], None, "made")
      >>> told = distilled_sets.decoded(
      ...     made, GivenImages(x[4:], None, "given"), key=jax.random.key(0), seconds=60
      ... )
      >>> told.own, told.originals
      (4, 0)
    """
    distilled = _once(distilled)
    mean = distilled.images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    x = (distilled.images - mean).astype(np.float32)
    key_train, key_attack = jax.random.split(key)
    trained = victim.train(
        x, _targets(distilled), width=WIDTH, key=key_train, stage=stage
    )
    known = evidence.of(trained, bounds=(-mean, 1 - mean))
    tried = attack.attack(known, key=key_attack, seconds=float(seconds), stage=stage)
    found = tried.found
    if not len(found.images):
        return Decoded(0, 0, -np.inf)
    told = defence.found_of(
        (private.images - mean).astype(np.float32),
        x,
        np.asarray(found.images, np.float32),
        mean=mean,
    )
    return Decoded(
        told["num_distilled_recovered"], told["num_recovered"], told["best_psnr"]
    )
