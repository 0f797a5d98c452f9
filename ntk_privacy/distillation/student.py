"""The student of trajectory matching: its images, its loss, its learnt step size.

Source: Cazenavette et al., CVPR 2022 (MTT, arXiv:2203.11932).
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ntk_privacy import _checks, sharding
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.models.convnet import Classifier

__all__ = [
    "VANISHING",
    "StudentPart",
    "check_experts",
    "step_size_fault",
    "student_loss",
    "student_parts",
    "watched",
]

VANISHING = 1e-3
"""Below this part of the first step size a student no longer moves to speak of."""


class StudentPart(NamedTuple):
    """A step of a student: rows and weights of its images, key_data of augmentation."""

    rows: Array
    weights: Array
    key_data: Array


def student_parts(
    key: Array, num_images: int, *, student_steps: int, batch_size: int | None
) -> StudentPart:
    """Returns what each step of a student sees, leaves (steps, ...).

    The set is shuffled and cut; when it is used up it is shuffled again. The last batch
    of a pass may be smaller: what fills it up has weight 0.

    Args:
      key: typed key.
      num_images: m.
      student_steps: batches.
      batch_size: images of each; with m, more or None all see the whole set in order.
    """
    key_order, key_augment = jax.random.split(key)
    numbers = jnp.arange(student_steps, dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_augment, numbers)
    size = min(batch_size or num_images, num_images)
    per_pass = -(-num_images // size)
    if per_pass == 1:
        rows = jnp.arange(num_images, dtype=jnp.int32)[None]
        rows = jnp.broadcast_to(rows, (student_steps, num_images))
        weights = jnp.ones(rows.shape, jnp.float32)
        return StudentPart(rows, weights, jax.random.key_data(keys))
    passes = -(-student_steps // per_pass)
    order = jax.vmap(lambda k: jax.random.permutation(k, num_images))(
        jax.random.split(key_order, passes)
    )
    spare = per_pass * size - num_images
    rows = jnp.pad(order, ((0, 0), (0, spare))).reshape(-1, size)
    weights = jnp.pad(jnp.ones(order.shape, jnp.float32), ((0, 0), (0, spare)))
    return StudentPart(
        rows[:student_steps].astype(jnp.int32),
        weights.reshape(-1, size)[:student_steps],
        jax.random.key_data(keys),
    )


def student_loss(
    params: Params,
    images: Float[Array, "m h w d"],
    targets: Float[Array, "m c"],
    part: StudentPart,
    *,
    model: Classifier,
    operations: tuple[str, ...],
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Returns the cross-entropy of a batch of the synthetic set, augmented.

    Args:
      params: of the student.
      images: the synthetic set.
      targets: a row of probabilities for each.
      part: of the step.
      model: the student.
      operations: of `data.augmentation`, drawn per batch with parameters per image.
      mesh: of `sharding.row_mesh`, whose devices share the batch.
    """
    if len(part.rows) < len(images):
        images, targets = images[part.rows], targets[part.rows]
    images = sharding.spread(images, mesh)
    key = jax.random.wrap_key_data(part.key_data)
    images = augmentation.augment(key, images, operations=operations)
    each = optax.softmax_cross_entropy(model.apply_fn(params, images), targets)
    weights = part.weights.astype(each.dtype)
    return jnp.sum(weights * each) / jnp.sum(weights)


@jax.jit
def _all_finite(leaf: Array) -> Array:
    return jnp.all(jnp.isfinite(leaf))


def check_experts(
    experts: Params,
    model: Classifier,
    image_shape: Sequence[int],
    dtype: Any,
    epochs_needed: int,
) -> None:
    """Raises ValueError unless experts are finite and fit the model and the images.

    Args:
      experts: leaves (k, epochs + 1, ...).
      model: of which they are parameters.
      image_shape: (height, width, depth).
      dtype: of the images.
      epochs_needed: that each of them must have.

    Raises:
      ValueError: another structure, dtype or network, a NaN, or too few epochs.
    """
    like = jax.eval_shape(
        lambda: model.init_params(jax.random.key(0), image_shape, dtype)
    )
    first = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), experts
    )
    _checks.same_structure("experts", first, "the model's parameters", like)
    own = {str(leaf.dtype) for leaf in jax.tree.leaves(experts)}
    if own != {str(dtype)}:
        raise ValueError(
            f"experts are {' and '.join(sorted(own))} but the images {dtype}: convert "
            "either, or train experts on these images."
        )
    # On the device first: many epochs of many experts are gigabytes.
    if not all(bool(_all_finite(leaf)) for leaf in jax.tree.leaves(experts)):
        _checks.finite(experts=experts)
    there = jax.tree.leaves(experts)[0].shape[1] - 1
    if there < epochs_needed:
        raise ValueError(
            f"experts have {there} epochs, but max_start_epoch and expert_epochs ask "
            f"for {epochs_needed}: lower either, or train experts for longer."
        )


def step_size_fault(step_size: float, first: float) -> str | None:
    """Returns what is wrong with a step size that was learnt, or None.

    Args:
      step_size: as it is now.
      first: as it was at first, above 0.
    """
    if math.isfinite(step_size) and step_size >= VANISHING * first:
        return None
    kind = "is not finite"
    if math.isfinite(step_size):
        kind = "has vanished" if step_size > 0 else "is not above 0"
    return (
        f"The learnt step size of the student, {step_size:.3g}, {kind} (it began at "
        f"{first:.3g}), so no network learns from these images with it: lower the step "
        "of step_size_optimizer, or use experts whose loss falls, and begin anew."
    )


def watched(callback: Callback | None, *, first: float) -> Callback:
    """Returns a callback that warns, once, of a step size with which none can learn.

    Args:
      callback: to call besides.
      first: the step size at first.
    """
    warned = False

    def after_chunk(done: int, state: Any, metrics: Any) -> bool:
        nonlocal warned
        fault = step_size_fault(float(state.step_size), first)
        if not warned and (fault or int(state.backward)):
            warned = True
            told = fault or (
                "The learnt step size of the student was not above 0 for "
                f"{int(state.backward)} steps, though it is again: lower the step of "
                "step_size_optimizer."
            )
            warnings.warn(f"Step {done}: {told}", stacklevel=2)
        return callback is not None and bool(callback(done, state, metrics))

    return after_chunk
