"""The student of trajectory matching: which images it sees, and its loss."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ntk_privacy._types import Params
from ntk_privacy.data import augmentation
from ntk_privacy.models.convnet import Classifier

__all__ = ["student_batches", "student_loss"]


def student_batches(
    key: Array, num_images: int, *, student_steps: int, batch_size: int
) -> tuple[Int[Array, "n b"], Float[Array, "n b"]]:
    """Returns rows and weights of the images that each step of a student sees.

    The set is shuffled and cut; when it is used up it is shuffled again. The last batch
    of a pass may be smaller: what fills it up has weight 0.

    Args:
      key: typed key.
      num_images: m.
      student_steps: batches.
      batch_size: images of each; with m all see the whole set in its order.
    """
    per_pass = -(-num_images // batch_size)
    if per_pass == 1:
        shape = (student_steps, num_images)
        rows = jnp.arange(num_images, dtype=jnp.int32)
        return jnp.broadcast_to(rows[None], shape), jnp.ones(shape, jnp.float32)
    passes = -(-student_steps // per_pass)
    order = jax.vmap(lambda k: jax.random.permutation(k, num_images))(
        jax.random.split(key, passes)
    )
    spare = per_pass * batch_size - num_images
    rows = jnp.pad(order, ((0, 0), (0, spare))).reshape(-1, batch_size)
    weights = jnp.pad(jnp.ones(order.shape, jnp.float32), ((0, 0), (0, spare)))
    weights = weights.reshape(-1, batch_size)
    return rows[:student_steps].astype(jnp.int32), weights[:student_steps]


def student_loss(
    params: Params,
    images: Float[Array, "m h w d"],
    targets: Float[Array, "m c"],
    rows: Int[Array, " b"],
    weights: Float[Array, " b"],
    key: Array,
    *,
    model: Classifier,
    operations: tuple[str, ...],
) -> Float[Array, ""]:
    """Returns the cross-entropy of a batch of the synthetic set, augmented.

    Args:
      params: of the student.
      images: the synthetic set.
      targets: a row of probabilities for each.
      rows: of the batch.
      weights: of its images.
      key: of the augmentation.
      model: the student.
      operations: of `data.augmentation`, drawn per batch with parameters per image.
    """
    if len(rows) < len(images):
        images, targets = images[rows], targets[rows]
    images = augmentation.augment(key, images, operations=operations)
    each = optax.softmax_cross_entropy(model.apply_fn(params, images), targets)
    weights = weights.astype(each.dtype)
    return jnp.sum(weights * each) / jnp.sum(weights)
