"""DC and DSA: match the gradients of real and of synthetic images, class by class.

DC is the default; DSA is `distill(..., operations=augmentation.OPERATIONS,
initial="real")`: both batches of a class pass one siamese augmentation, and networks
are trained on augmented images.

Source: Zhao, Mopuri & Bilen, ICLR 2021 (DC, arXiv:2006.05929); Zhao & Bilen, ICML 2021
(DSA, arXiv:2102.08259); released code. A loss of the real side that is regularised by
curvature: GUARD (arXiv:2403.10045), appendix C.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, _platform, sharding
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.distillation import search, synthetic_set
from ntk_privacy.distillation.gradient_distance import METRICS, distance
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.distillation.synthetic_set import ClassData, MatchState
from ntk_privacy.models.convnet import Classifier, ConvNet

__all__ = [
    "LOOPS",
    "METRICS",
    "Distilled",
    "LossFn",
    "MatchState",
    "distance",
    "distill",
    "init",
    "loops",
    "loss",
]

LossFn = Callable[[Params, Float[Array, "n h w d"], Int[Array, " n"]], Any]
"""`(params, images, labels) -> scalar`, a mean over images; hashable."""

LOOPS: Mapping[int, tuple[int, int]] = {
    1: (1, 1),
    10: (10, 50),
    20: (20, 25),
    30: (30, 20),
    40: (40, 15),
    50: (50, 10),
}
"""Images per class to moves of the images per network and epochs between two moves."""


def loops(images_per_class: int) -> tuple[int, int]:
    """Returns the published loops, of the nearest images per class if there are none.

    Args:
      images_per_class: of the synthetic set; a warning says if it has no entry.
    """
    nearest = min(LOOPS, key=lambda known: abs(known - images_per_class))
    if nearest != images_per_class:
        outer, inner = LOOPS[nearest]
        warnings.warn(
            f"images_per_class={images_per_class} has no published loops: taking "
            f"outer_steps={outer} and inner_epochs={inner} of {nearest}; give both to "
            "choose them.",
            stacklevel=3,
        )
    return LOOPS[nearest]


# Images that a core's cache holds.
_BLOCK = 8


@functools.lru_cache(maxsize=64)
def _cross_entropy(model: Classifier) -> LossFn:
    def mean(params, images, labels):
        logits = model.apply_fn(params, images)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(each)

    return mean


def _constant_gradient(
    model: Classifier,
    params: Params,
    images: Array,
    labels: Array,
    mesh: Mesh | None = None,
) -> Params:
    """Returns the gradient of the cross-entropy, in the fastest way without another.

    On CPU a few images at a time stay in the cache; batch normalisation mixes images.
    """
    blocks = len(images) // _BLOCK
    if (
        not isinstance(model, ConvNet)
        or model.norm == "batch"
        or _platform.name() != "cpu"
        or blocks * _BLOCK != len(images)
        or mesh is not None
    ):
        return jax.grad(_cross_entropy(model))(params, images, labels)
    mean = _cross_entropy(model)  # pyright: ignore[reportArgumentType]  # flax's dataclass is hashable
    slope = jax.grad(mean)

    def add(total, part):
        grads = slope(params, *part)
        return jax.tree.map(lambda t, g: t + g / blocks, total, grads), None

    parts = tuple(a.reshape(blocks, _BLOCK, *a.shape[1:]) for a in (images, labels))
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)[0]


def loss(
    real: Float[Array, "c b h w d"],
    synthetic: Float[Array, "c m h w d"],
    *,
    model: Classifier,
    params: Params,
    keys: Array,
    labels: Int[Array, " c"] | None = None,
    real_loss: LossFn | None = None,
    metric: str = "layerwise",
    operations: tuple[str, ...] = (),
    parallel: bool = True,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    r"""Distance of the gradients of real and synthetic images, summed over classes.

    $$\sum_c D(\nabla_\theta L_R(A_{w_c}(x^c)), \nabla_\theta L(A_{w_c}(s^c)))$$

    Args:
      real: a batch of each class; a constant for the gradient.
      synthetic: the synthetic images of each class.
      model: the network; $L$ is its cross-entropy.
      params: its parameters.
      keys: one per class, of the augmentation that both batches share.
      labels: of the classes; 0, 1, ... if None.
      real_loss: $L_R$, if not the cross-entropy; such as one regularised by curvature.
      metric: of `distance`.
      operations: of `data.augmentation`; none for DC.
      parallel: all classes in one pass rather than one after the other.
      mesh: of `sharding.row_mesh`, whose devices share the images of each class.
    """
    c = len(real)
    labels = jnp.arange(c, dtype=jnp.int32) if labels is None else labels
    own = _cross_entropy(model)

    augmented = functools.partial(synthetic_set.augmented, keys, operations=operations)
    real, synthetic = (
        sharding.spread(augmented(images), mesh, axis=1) for images in (real, synthetic)
    )

    def one(real, synthetic, label):
        known, wanted = (jnp.full((len(a),), label) for a in (real, synthetic))
        if real_loss is None:
            target = _constant_gradient(model, params, real, known, mesh)
        else:
            target = jax.grad(real_loss)(params, real, known)
        found = jax.grad(own)(params, synthetic, wanted)
        return distance(jax.lax.stop_gradient(target), found, metric=metric)

    parts = (jax.lax.stop_gradient(real), synthetic, labels)
    if parallel:
        return jnp.sum(jax.vmap(one)(*parts))
    return jnp.sum(jax.lax.map(lambda part: one(*part), parts))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One random network; equal steps share a compiled program."""

    model: Classifier
    real_loss: LossFn | None
    metric: str
    operations: tuple[str, ...]
    optimizer: optax.GradientTransformation
    batch_size: int
    largest: int
    outer_steps: int
    inner_epochs: int
    inner_learning_rate: float
    inner_batch_size: int
    parallel: bool
    mesh: Mesh | None = None

    def slope(self, images, params, key, data: ClassData):
        """Returns the loss and its gradient in the images."""
        key_batch, key_augment = jax.random.split(key)
        sizes: dict[str, Any] = {"batch_size": self.batch_size, "mesh": self.mesh}
        real = synthetic_set.class_batch(data, key_batch, largest=self.largest, **sizes)
        c = len(data.sizes)
        keys = jax.random.split(key_augment, c)
        labels = jnp.arange(c, dtype=jnp.int32)

        def value(images, real, keys, labels):
            return loss(
                real,
                images,
                model=self.model,
                params=params,
                keys=keys,
                labels=labels,
                real_loss=self.real_loss,
                metric=self.metric,
                operations=self.operations,
                parallel=self.parallel,
                mesh=self.mesh,
            )

        both = jax.value_and_grad(value)
        each = images.reshape(c, -1, *images.shape[1:])
        if self.parallel:
            total, grads = both(each, real, keys, labels)
        else:
            # Class by class: only one has its intermediate values in memory.
            values, grads = jax.lax.map(
                lambda part: both(*(leaf[None] for leaf in part)),
                (each, real, keys, labels),
            )
            total = jnp.sum(values)
        return total, grads.reshape(images.shape)

    def train(self, params, images, labels, key):
        """Returns the network after some epochs of SGD on the synthetic set."""
        m = len(images)
        size = min(self.inner_batch_size, m)
        per_epoch = -(-m // size)
        rate = jnp.asarray(self.inner_learning_rate, images.dtype)
        key_order, key_augment = jax.random.split(key)

        def mean(params, chosen, weights, key):
            seen = sharding.spread(chosen[0], self.mesh)
            seen = augmentation.augment(key, seen, operations=self.operations)
            logits = self.model.apply_fn(params, seen)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, chosen[1])
            return jnp.sum(weights * each) / jnp.sum(weights)

        def step(params, i):
            chosen, weights = (images, labels), jnp.ones((m,), images.dtype)
            if size < m:
                epoch, place = i // per_epoch, i % per_epoch * size
                order = jax.random.permutation(jax.random.fold_in(key_order, epoch), m)
                order = jnp.pad(order, (0, per_epoch * size - m))
                rows = jax.lax.dynamic_slice_in_dim(order, place, size)
                chosen = (images[rows], labels[rows])
                # The last batch of an epoch is smaller: its rest counts nothing.
                there = place + jnp.arange(size, dtype=place.dtype) < m
                weights = there.astype(images.dtype)
            grads = jax.grad(mean)(
                params, chosen, weights, jax.random.fold_in(key_augment, i)
            )
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        count = self.inner_epochs * per_epoch
        return jax.lax.scan(step, params, jnp.arange(count, dtype=jnp.int32))[0]

    def __call__(self, state: MatchState, step, data: ClassData):
        key = jax.random.fold_in(jax.random.wrap_key_data(data.key_data), step)
        key_network, key_loop = jax.random.split(key)
        params = self.model.init_params(key_network, data.x.shape[1:], data.x.dtype)

        def move(carry, number):
            images, opt_state, params = carry
            key = jax.random.fold_in(key_loop, number)
            key_match, key_train = jax.random.split(key)
            value, grads = self.slope(images, params, key_match, data)
            moved, opt_state = synthetic_set.moved(
                self.optimizer, images, grads, opt_state
            )
            if self.outer_steps > 1:
                # After the last move the network has nothing left to be trained for.
                params = jax.lax.cond(
                    number < self.outer_steps - 1,
                    lambda params: self.train(params, moved, state.labels, key_train),
                    lambda params: params,
                    params,
                )
            return (moved, opt_state, params), value

        carry = (state.images, state.opt_state, params)
        numbers = jnp.arange(self.outer_steps, dtype=jnp.int32)
        (images, opt_state, _), values = jax.lax.scan(move, carry, numbers)
        value = jnp.mean(values)
        new = state._replace(images=images, opt_state=opt_state)
        finite = jnp.isfinite(images).all()
        return search.guarded(state, new, value, finite), {"loss": value}


@functools.cache
def _sgd() -> optax.GradientTransformation:
    # One object for all calls: the compiled loop is looked up by it.
    return optax.sgd(0.1, momentum=0.5)


def init(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 10,
    initial: str = "noise",
    optimizer: optax.GradientTransformation | None = None,
) -> MatchState:
    """Returns the state before the first step. Args: those of `distill`.

    Raises:
      ValueError: a class without images, or too few of them for `initial="real"`.
    """
    _checks.typed_key(key=key)
    return synthetic_set.init(
        x_target,
        class_target,
        key=key,
        num_classes=num_classes,
        images_per_class=images_per_class,
        initial=initial,
        optimizer=optimizer or _sgd(),
    )


def distill(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    model: Classifier,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 10,
    num_steps: int = 1000,
    batch_size: int = 256,
    outer_steps: int | None = None,
    inner_epochs: int | None = None,
    inner_learning_rate: float = 0.01,
    inner_batch_size: int = 256,
    real_loss: LossFn | None = None,
    metric: str = "layerwise",
    operations: tuple[str, ...] = (),
    initial: str = "noise",
    optimizer: optax.GradientTransformation | None = None,
    parallel: bool | None = None,
    state: MatchState | None = None,
    chunk: int = 10,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Moves synthetic images until they train networks in the direction of real ones.

    Each step draws a network, then alternates `outer_steps` moves of the images with
    training the network on them; after the last move it is thrown away, so that with a
    single move no network is ever trained. The released code sets the statistics of
    batch normalisation by real images; here each batch has its own.

    Args:
      x_target: images, normalised: each channel less its mean, over its deviation.
      class_target: the class of each, an integer from 0.
      model: a network that is drawn anew at every step, such as `models.ConvNet()`.
      key: typed key; fixes the initial images and, with the step, all later draws.
      num_classes: one more than the largest class if None.
      images_per_class: synthetic images of each class.
      num_steps: networks in all, counting those in `state`.
      batch_size: real images of each class and move, drawn without replacement.
      outer_steps: moves of the images per network; None is that of `loops`.
      inner_epochs: epochs of training between two moves; None likewise.
      inner_learning_rate: of that training, by SGD without momentum.
      inner_batch_size: of that training.
      real_loss: of the real side; None is the cross-entropy, which the synthetic side
        always has.
      metric: of `distance`.
      operations: of `data.augmentation`; none is DC.
      initial: "noise" is N(0, 1); "real" copies real images.
      optimizer: default SGD, step 0.1, momentum 0.5 over all moves.
      parallel: all classes in one pass rather than one after the other; None does so
        on accelerators.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk; `metrics["loss"]` has the
        mean loss over the moves of each of its steps.
      mesh: of `sharding.row_mesh`, whose devices share the images of every move.

    Raises:
      ValueError: images or classes are none, lengths differ, a class has no output, no
        images or fewer than `batch_size`, a number is out of range, or `state` has
        other shapes.

    Example:
      >>> import jax, ntk_privacy
      >>> images = ntk_privacy.data.load_set("digits").subset(num_train=100, num_test=9)
      >>> dc = ntk_privacy.distillation.METHODS["dc"]
      >>> few = dc.configured(width=4, num_steps=1, batch_size=4, images_per_class=1)
      >>> assert len(dc.run(images, few, key=jax.random.key(0)).images) == 10
    """
    _checks.typed_key(key=key)
    _checks.at_least(1, batch_size=batch_size, inner_batch_size=inner_batch_size)
    _checks.positive(inner_learning_rate=inner_learning_rate)
    _checks.one_of(METRICS, metric=metric)
    augmentation.check(operations)
    _class_checks.labelled(
        model, x_target, class_target, names=("x_target", "class_target")
    )
    start = init(
        x_target,
        class_target,
        key=key,
        num_classes=num_classes,
        images_per_class=images_per_class,
        initial=initial,
        optimizer=optimizer,
    )
    if outer_steps is None or inner_epochs is None:
        outer, inner = loops(images_per_class)
        outer_steps = outer if outer_steps is None else outer_steps
        inner_epochs = inner if inner_epochs is None else inner_epochs
    _checks.at_least(1, outer_steps=outer_steps, inner_epochs=inner_epochs)
    begin = search.resume(state, start)
    data, largest = synthetic_set.class_data(
        x_target,
        class_target,
        key=key,
        num_classes=len(start.labels) // images_per_class,
        batch_size=batch_size,
        mesh=mesh,
    )
    step = _Step(
        model=model,
        real_loss=real_loss,
        metric=metric,
        operations=operations,
        optimizer=optimizer or _sgd(),
        batch_size=batch_size,
        largest=largest,
        outer_steps=outer_steps,
        inner_epochs=inner_epochs,
        inner_learning_rate=inner_learning_rate,
        inner_batch_size=inner_batch_size,
        parallel=_platform.name() != "cpu" if parallel is None else parallel,
        mesh=mesh,
    )
    loop: dict[str, Any] = {"num_steps": num_steps, "chunk": chunk, "mesh": mesh}
    return search.descend(step, begin, data, callback=callback, **loop)
