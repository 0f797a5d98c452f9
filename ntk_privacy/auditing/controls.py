"""What the attack finds where there is nothing to be found.

An attack that reads images from wrong weights too, or whose images resemble private
ones as much as any, proves nothing. Three controls: the true change on weights whose
units were shuffled, where the same attacks must certify nothing; private images with
their pixels in another order, of which none may be recovered; and each private image
among decoys, of which the nearest to anything reconstructed is picked.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ntk_privacy import _tree
from ntk_privacy._types import Params
from ntk_privacy.auditing.given_images import GivenImages
from ntk_privacy.evaluation import identification, reconstruction_curve
from ntk_privacy.reconstruction import Evidence
from ntk_privacy.reconstruction.evidence import of_gradient

__all__ = [
    "NUM_DECOYS",
    "Controls",
    "Identified",
    "among_decoys",
    "on_wrong_weights",
    "recovered_when_shuffled",
    "shuffled_units",
]

NUM_DECOYS = 99
"""Beside each private image, at most."""


class Identified(NamedTuple):
    """Each private image among decoys.

    Attributes:
      ranks: 1 is nearer to a reconstruction than any decoy; (n,).
      num_decoys: beside each.
      p_values: chance of a rank as good, were the image one of the decoys; (n,).
      decoys: what they are, in words.
    """

    ranks: Int[np.ndarray, " n"]
    num_decoys: int
    p_values: Float[np.ndarray, " n"]
    decoys: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls:
    """What the controls show; None of what was not run.

    Attributes:
      wrong_weights: images certified on weights with shuffled units.
      wrong_weights_told: what the attack says of them, or why it was not run.
      wrong_weights_recovered: private images that count as recovered from them.
      shuffled_recovered: private images with shuffled pixels that count as recovered.
      identified: private images among decoys.
    """

    wrong_weights: int | None = None
    wrong_weights_told: str = ""
    wrong_weights_recovered: int | None = None
    shuffled_recovered: int | None = None
    identified: Identified | None = None


def shuffled_units(params: Params, *, key: Array) -> Params:
    """Returns a network whose units stand in another order, layer by layer.

    Every unit keeps its weights and bias; those of the next layer do not follow it.

    Args:
      params: a dict of layers, each of arrays whose last axis is its units.
      key: of the orders.

    Example:
      >>> import jax
      >>> from ntk_privacy.auditing import controls
      >>> params = {"Dense_0": {"kernel": jax.numpy.ones((2, 8))}}
      >>> params["Dense_0"]["bias"] = jax.numpy.arange(8.0)
      >>> other = controls.shuffled_units(params, key=jax.random.key(0))
      >>> float(other["Dense_0"]["bias"].sum())
      28.0
    """
    found = {}
    for i, (name, layer) in enumerate(params.items()):
        units = np.shape(jax.tree.leaves(layer)[0])[-1]
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, i), units))
        found[name] = jax.tree.map(lambda leaf, o=order: leaf[..., o], layer)
    return found


def on_wrong_weights(evidence: Evidence, *, key: Array) -> Evidence:
    """Returns the true change on weights whose units were shuffled.

    The change keeps its rank and its spectrum; the gates that it is read by are those
    of other units.

    Args:
      evidence: of an MLP, with weights before training.
      key: of the order.

    Raises:
      ValueError: the weights before training are not known.
    """
    evidence.needs("controls", "params_0")
    wrong = shuffled_units(evidence.params_0, key=key)
    change = _tree.sub(evidence.params_t, evidence.params_0)
    if not evidence.is_gradient:
        params_t = _tree.add(wrong, change)
        return dataclasses.replace(
            evidence, params_0=wrong, params_t=params_t, auxiliary=None
        )
    shown = change if evidence.step is None else evidence.step
    gradient = jax.tree.map(lambda leaf: -leaf, shown)
    about: dict[str, Any] = {
        name: getattr(evidence, name)
        for name in ("image_shape", "bounds", "num_images", "num_outputs")
    }
    return of_gradient(evidence.network, wrong, gradient, **about)


def recovered_when_shuffled(
    images: Float[np.ndarray, "n h w c"],
    found: Float[np.ndarray, "m h w c"],
    *,
    seed: int = 0,
) -> int:
    """Returns how many private images count as recovered with shuffled pixels.

    Args:
      images: private ones, in [0, 1].
      found: reconstructed ones, as intensities.
      seed: of the order, which is the same for all.

    Raises:
      ValueError: see `evaluation.evaluate`.
    """
    n, h, w, c = images.shape
    order = np.random.default_rng(seed).permutation(h * w)
    other = images.reshape(n, h * w, c)[:, order].reshape(images.shape)
    pairs = reconstruction_curve.evaluate(other, found, mean=np.zeros(c))
    return pairs.num_recovered


def among_decoys(
    given: GivenImages,
    found: Float[np.ndarray, "m h w c"],
    unseen: GivenImages | None = None,
    *,
    seed: int = 0,
) -> Identified:
    """Returns each private image's rank among decoys.

    Decoys are unseen images, of its class where there are enough; without any they are
    the image itself with its pixels in other orders, which tells less.

    Args:
      given: private images.
      found: reconstructed ones, as intensities.
      unseen: images that were not trained on.
      seed: of the choice.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy.auditing import controls, given_images
      >>> x = np.random.default_rng(0).random((3, 4, 4, 1))
      >>> given = given_images.read(x, name="images")
      >>> controls.among_decoys(given, x).p_values
      array([0.01, 0.01, 0.01])
    """
    images, rng = given.images, np.random.default_rng(seed)
    n, h, w, c = images.shape
    if unseen is None:
        orders = np.stack([rng.permutation(h * w) for _ in range(NUM_DECOYS)])
        flat = images.reshape(n, h * w, c)
        decoys = flat[:, orders].reshape(n, NUM_DECOYS, h, w, c)
        told = "the image itself with its pixels in other orders"
    else:
        rows, told = _chosen(given, unseen, rng, seed)
        decoys = unseen.images[rows]
    count = decoys.shape[1]
    ranks = identification.rank_among(found, images, decoys)
    return Identified(ranks, count, ranks / (count + 1), told)


def _chosen(
    given: GivenImages, unseen: GivenImages, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, str]:
    # Numbers of folders are those of their names.
    alike = given.class_names == unseen.class_names
    if given.classes is not None and unseen.classes is not None and alike:
        there = np.bincount(unseen.classes, minlength=int(given.classes.max()) + 1)
        if there[np.unique(given.classes)].min() >= NUM_DECOYS:
            rows = identification.choose_decoys(
                given.classes, unseen.classes, count=NUM_DECOYS, seed=seed
            )
            return rows, "unseen images of its class"
    most = min(NUM_DECOYS, len(unseen.images))
    rows = [rng.permutation(len(unseen.images))[:most] for _ in given.images]
    return np.stack(rows), "unseen images"
