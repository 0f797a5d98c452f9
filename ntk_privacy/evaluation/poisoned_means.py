"""What a mean of features does to poison: how much it drops, how far it is moved."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntk_privacy.data import augmentation
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import robust_mean
from ntk_privacy.distillation.robust_mean import MeanFn
from ntk_privacy.models import convnet
from ntk_privacy.models.convnet import Network
from ntk_privacy.poisoning import Scene

__all__ = ["Deviation", "deviation"]

_NUM_DRAWS = 16


class Deviation(NamedTuple):
    """What is left of poison in a mean, over fresh random networks.

    None where it has no meaning: a median and a trimmed mean drop values, not images.

    Attributes:
      poison_dropped: share of the poison that the mean drops.
      clean_dropped: share of the clean images.
      deviation_of_mean: norm of what poison adds to the plain mean of its class, over
        the root mean square distance of clean features from theirs.
      deviation: the same of what the mean keeps.
    """

    poison_dropped: float | None
    clean_dropped: float | None
    deviation_of_mean: float
    deviation: float | None


def deviation(
    scene: Scene,
    poisoned: ImageSet,
    mean_fn: MeanFn,
    *,
    model: Network,
    batch_size: int,
) -> Deviation:
    """Measures a mean on batches of the adversarial class.

    Args:
      scene: says which rows are poison.
      poisoned: the set with poison in place.
      mean_fn: of `distillation.robust_mean`.
      model: drawn anew each time.
      batch_size: images of the class in each batch.
    """
    x = jnp.asarray(poisoned.normalised(poisoned.x_train))
    members = np.flatnonzero(poisoned.class_train == scene.adversarial_class)
    is_poison = np.isin(members, scene.where)
    keys = jax.random.split(jax.random.fold_in(scene.key, 4), _NUM_DRAWS)
    sums = _sums(
        model,
        mean_fn,
        poisoned.operations,
        batch_size,
        (x[members], jnp.asarray(is_poison)),
        keys,
    )
    poison, poison_dropped, clean, clean_dropped, before, after = map(float, sums)
    before, after = before / _NUM_DRAWS, after / _NUM_DRAWS
    if isinstance(mean_fn, robust_mean.Selection) or mean_fn is robust_mean.mean:
        shares = poison_dropped / max(poison, 1), clean_dropped / max(clean, 1)
        return Deviation(*shares, before, after)
    return Deviation(None, None, before, None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sums(
    model: Network,
    mean_fn: MeanFn,
    operations: tuple[str, ...],
    batch_size: int,
    data: tuple[Array, Array],
    keys: Array,
) -> Array:
    x, is_poison = data

    def one(key):
        key_network, key_batch, key_augment = jax.random.split(key, 3)
        params = model.init_params(key_network, x.shape[1:], x.dtype)
        rows = jax.random.permutation(key_batch, len(x))[:batch_size]
        bad = is_poison[rows]
        batch = augmentation.augment(
            key_augment, x[rows], operations=operations, siamese=True
        )
        features = convnet.embed_in_blocks(model, params, batch)
        kept = jnp.ones_like(bad)
        if isinstance(mean_fn, robust_mean.Selection):
            kept = mean_fn.kept(features)
        good = (~bad).astype(x.dtype)
        centre = jnp.sum(good[:, None] * features, axis=0) / jnp.sum(good)
        features = features - centre[None]
        squares = jnp.sum(jnp.square(features), axis=1)
        spread = jnp.sqrt(jnp.sum(good * squares) / jnp.sum(good))
        return jnp.stack(
            [
                *(jnp.sum(a).astype(x.dtype) for a in (bad, bad & ~kept)),
                *(jnp.sum(a).astype(x.dtype) for a in (~bad, ~bad & ~kept)),
                robust_mean.poisoned_deviation(features, bad) / spread,
                robust_mean.poisoned_deviation(features, bad, kept) / spread,
            ]
        )

    return jnp.sum(jax.lax.map(one, keys), axis=0)
