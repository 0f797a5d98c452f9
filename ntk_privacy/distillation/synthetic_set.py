"""What all methods of condensation share: the set, its start, batches of each class."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _class_checks, sharding
from ntk_privacy.data import augmentation

__all__ = [
    "ClassData",
    "MatchState",
    "augmented",
    "class_batch",
    "class_data",
    "class_sizes",
    "init",
    "moved",
]


class MatchState(NamedTuple):
    """What a condensation resumes from.

    images, labels: the synthetic set, sorted by class. opt_state: of the optimizer.
    steps: done so far, one of a non-finite loss left out. nonfinite: the loss or the
    images became NaN or infinite and the rest is the last good state.
    """

    images: Float[Array, "m h w d"]
    labels: Int[Array, " m"]
    opt_state: Any
    steps: Int[Array, ""]
    nonfinite: Bool[Array, ""]


class ClassData(NamedTuple):
    """x: images sorted by class. offsets, sizes: of each class. key_data: of draws."""

    x: Any
    offsets: Any
    sizes: Any
    key_data: Any


def class_sizes(class_target: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the number of images of each class.

    Args:
      class_target: classes from 0.
      num_classes: all of which must be there.

    Raises:
      ValueError: a class is out of range or has no images.
    """
    if class_target.min() < 0 or class_target.max() >= num_classes:
        raise ValueError(
            f"class_target lies in [{class_target.min()}, {class_target.max()}]: with "
            f"num_classes={num_classes} give classes in [0, {num_classes - 1}]."
        )
    sizes = np.bincount(class_target, minlength=num_classes)
    if not sizes.all():
        raise ValueError(
            f"Class {int(np.argmin(sizes))} of {num_classes} has no images: leave the "
            "class out and number the others from 0, or give images of it."
        )
    return sizes


def class_data(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    key: Array,
    num_classes: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> tuple[ClassData, int]:
    """Returns images sorted by class, and the size of the largest class.

    Args:
      x_target: images.
      class_target: their classes.
      key: of all draws.
      num_classes: all of which must be there.
      batch_size: that `class_batch` will ask for.
      mesh: of `sharding.row_mesh`, whose devices share the images.

    Raises:
      ValueError: a class has fewer images than the batch.
    """
    classes = np.asarray(class_target)
    sizes = class_sizes(classes, num_classes)
    if batch_size > sizes.min():
        raise ValueError(
            f"batch_size={batch_size} is more than the {sizes.min()} images of class "
            f"{int(np.argmin(sizes))}: use at most {sizes.min()}."
        )
    order = np.argsort(classes, kind="stable")
    data = ClassData(
        x=sharding.share(jnp.asarray(x_target)[order], mesh),
        offsets=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        key_data=_checks.key_data(key=key),
    )
    return data, int(sizes.max())


def class_batch(
    data: ClassData,
    key: Array,
    *,
    batch_size: int,
    largest: int,
    mesh: Mesh | None = None,
) -> Float[Array, "c b h w d"]:
    """Returns random images of each class, without replacement.

    Args:
      data: of `class_data`.
      key: typed key.
      batch_size: images of each class.
      largest: size of the largest class.
      mesh: whose devices share the images of each class.
    """
    order = jax.random.uniform(key, (len(data.sizes), largest), jnp.float32)
    absent = jnp.arange(largest, dtype=jnp.int32)[None] >= data.sizes[:, None]
    _, chosen = jax.lax.top_k(jnp.where(absent, -1, order), batch_size)
    return sharding.spread(data.x[data.offsets[:, None] + chosen], mesh, axis=1)


def augmented(
    keys: Array, images: Float[Array, "c n h w d"], *, operations: tuple[str, ...]
) -> Float[Array, "c n h w d"]:
    """Augments the images of each class alike.

    Args:
      keys: one per class.
      images: of each class.
      operations: of `data.augmentation`.
    """

    def of_class(pair):
        return augmentation.augment(*pair, operations=operations, siamese=True)

    # A loop: each class takes its own operation, and runs it alone.
    return jax.lax.map(of_class, (keys, images)) if operations else images


def moved(
    optimizer: optax.GradientTransformation, variable: Any, gradient: Any, memory: Any
) -> tuple[Any, Any]:
    """Returns a variable after a step, and the optimizer's memory.

    Args:
      optimizer: of the step.
      variable: what it moves.
      gradient: of the loss in it.
      memory: of the optimizer.
    """
    # optax raises decay rates to an integer count.
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = optimizer.update(gradient, memory, variable)
    return optax.apply_updates(variable, updates), memory


def init(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    key: Array,
    num_classes: int | None,
    images_per_class: int,
    initial: str,
    optimizer: optax.GradientTransformation,
) -> MatchState:
    """Returns the state before the first step.

    Args:
      x_target: images.
      class_target: their classes.
      key: fixes the images.
      num_classes: one more than the largest class if None.
      images_per_class: synthetic images of each class.
      initial: "noise" is N(0, 1), "real" copies images.
      optimizer: of the images.

    Raises:
      ValueError: images or classes that are none, a class without images, or too few
        of them for `initial="real"`.
    """
    _class_checks.images(x_target=x_target)
    _class_checks.numbers(class_target=class_target)
    _checks.same_length(x_target=x_target, class_target=class_target)
    _checks.at_least(1, images_per_class=images_per_class)
    _checks.one_of(("noise", "real"), initial=initial)
    classes = np.asarray(class_target)
    c = int(classes.max()) + 1 if num_classes is None else num_classes
    sizes = class_sizes(classes, c)
    x = jnp.asarray(x_target)
    key = jax.random.fold_in(key, 2**31 - 1)  # no step has this number
    if initial == "noise":
        shape = (c * images_per_class, *x.shape[1:])
        images = jax.random.normal(key, shape, x.dtype)
    else:
        if images_per_class > sizes.min():
            raise ValueError(
                f"images_per_class={images_per_class} is more than the {sizes.min()} "
                f"images of class {int(np.argmin(sizes))}: use fewer, or "
                "initial='noise'."
            )
        order = np.asarray(jax.random.permutation(key, len(x)))
        first = [order[classes[order] == k][:images_per_class] for k in range(c)]
        images = x[np.concatenate(first)]
    return MatchState(
        images=images,
        labels=jnp.repeat(jnp.arange(c, dtype=jnp.int32), images_per_class),
        opt_state=optimizer.init(images),
        steps=jnp.zeros((), jnp.int32),
        nonfinite=jnp.zeros((), bool),
    )
