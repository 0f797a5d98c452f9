"""DM: match the mean features of real and synthetic images in random networks.

With a robust mean on the real side it is RDM-DC:
`distill(..., mean_fn=robust_mean.calibrated(rate=0.1))`.

Source: Zhao & Bilen, WACV 2023 (DM, arXiv:2110.04181), released code; RDM-DC, its
algorithm 3.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, sharding
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.distillation import robust_mean, search, synthetic_set
from ntk_privacy.distillation.robust_mean import MeanFn
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.distillation.synthetic_set import ClassData, MatchState
from ntk_privacy.models import convnet
from ntk_privacy.models.convnet import Network

__all__ = ["Distilled", "MatchState", "distill", "init", "loss"]


def loss(
    real: Float[Array, "c b h w d"],
    synthetic: Float[Array, "c m h w d"],
    *,
    model: Network,
    params: Params,
    keys: Array,
    mean_fn: MeanFn = robust_mean.mean,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    r"""Squared distance of mean features, summed over features and classes.

    $$\sum_c \| \mu(\{\Phi(A_{w_c}(x_i))\})
      - \tfrac1m \sum_j \Phi(A_{w_c}(s_j)) \|^2$$

    Args:
      real: a batch of each class; a constant for the gradient.
      synthetic: the synthetic images of each class.
      model: the network whose `embed_fn` is the feature map.
      params: its parameters.
      keys: one per class, of the augmentation that both batches share.
      mean_fn: of the real side.
      operations: of `data.augmentation`.
      mesh: of `sharding.row_mesh`, whose devices share the images of each class.
    """

    def features(images):
        images = synthetic_set.augmented(keys, images, operations=operations)
        c, b = images.shape[:2]
        if mesh is not None:
            # Each class over all devices: its images first, then the classes.
            flat = sharding.spread(images.swapaxes(0, 1), mesh)
            flat = model.embed_fn(params, flat.reshape(b * c, *images.shape[2:]))
            return flat.reshape(b, c, -1).swapaxes(0, 1)
        flat = images.reshape(c * b, *images.shape[2:])
        return convnet.embed_in_blocks(model, params, flat).reshape(c, b, -1)

    target = jax.vmap(mean_fn)(features(jax.lax.stop_gradient(real)))
    found = jnp.mean(features(synthetic), axis=1)
    return jnp.sum(jnp.square(jax.lax.stop_gradient(target) - found))


@dataclasses.dataclass(frozen=True)
class _Step:
    """The step of one problem; equal ones share a compiled program."""

    model: Network
    mean_fn: MeanFn
    operations: tuple[str, ...]
    optimizer: optax.GradientTransformation
    batch_size: int
    largest: int
    mesh: Mesh | None = None

    def __call__(self, state: MatchState, step, data: ClassData):
        key = jax.random.fold_in(jax.random.wrap_key_data(data.key_data), step)
        key_network, key_batch, key_augment = jax.random.split(key, 3)
        c = len(data.sizes)
        image_shape = data.x.shape[1:]
        params = self.model.init_params(key_network, image_shape, data.x.dtype)
        keys = jax.random.split(key_augment, c)
        real = synthetic_set.class_batch(
            data,
            key_batch,
            batch_size=self.batch_size,
            largest=self.largest,
            mesh=self.mesh,
        )

        def loss_fn(images):
            return loss(
                real,
                images.reshape(c, -1, *image_shape),
                model=self.model,
                params=params,
                keys=keys,
                mean_fn=self.mean_fn,
                operations=self.operations,
                mesh=self.mesh,
            )

        value, grads = jax.value_and_grad(loss_fn)(state.images)
        images, opt_state = synthetic_set.moved(
            self.optimizer, state.images, grads, state.opt_state
        )
        new = state._replace(images=images, opt_state=opt_state)
        finite = jnp.isfinite(images).all()
        return search.guarded(state, new, value, finite), {"loss": value}


@functools.cache
def _sgd() -> optax.GradientTransformation:
    # One object for all calls: the compiled loop is looked up by it.
    return optax.sgd(1.0, momentum=0.5)


def init(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 50,
    initial: str = "noise",
    optimizer: optax.GradientTransformation | None = None,
) -> MatchState:
    """Returns the state before the first step.

    Args: those of `distill`.

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
    model: Network,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 50,
    num_steps: int = 20_000,
    batch_size: int = 256,
    mean_fn: MeanFn = robust_mean.mean,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    initial: str = "noise",
    optimizer: optax.GradientTransformation | None = None,
    state: MatchState | None = None,
    chunk: int = 100,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Moves synthetic images until their mean features are those of real ones.

    Each step draws a network, a batch of each class and an augmentation of each class;
    all classes pass the network at once, real ones without a gradient.

    Args:
      x_target: images, normalised: each channel less its mean, over its deviation.
      class_target: the class of each, an integer from 0.
      model: a network that is drawn anew at every step, such as `models.ConvNet()`.
      key: typed key; fixes the initial images and, with the step, all later draws.
      num_classes: one more than the largest class if None.
      images_per_class: synthetic images of each class.
      num_steps: steps in all, counting those in `state`.
      batch_size: real images of each class and step, drawn without replacement.
      mean_fn: of the real features of a class; of `robust_mean`.
      operations: of `data.augmentation`; without flips for digits.
      initial: "noise" is N(0, 1); "real" copies real images, of which some may be
        poison.
      optimizer: default SGD, step 1, momentum 0.5.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk; `metrics["loss"]` has the
        loss before each of its steps.
      mesh: of `sharding.row_mesh`, whose devices share the real images of every step.

    Raises:
      ValueError: images or classes are none, lengths differ, a class has no output, no
        images or fewer than `batch_size`, a number is out of range, or `state` has
        other shapes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import distribution_matching
      >>> from ntk_privacy.models import ConvNet
      >>> x = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
      >>> out = distribution_matching.distill(
      ...     x,
      ...     jnp.arange(8) % 2,
      ...     model=ConvNet(num_outputs=2, width=4, depth=1),
      ...     key=jax.random.key(1),
      ...     images_per_class=1,
      ...     num_steps=2,
      ...     batch_size=4,
      ...     operations=(),
      ... )
      >>> out.images.shape, out.labels.tolist()
      ((2, 8, 8, 1), [0, 1])
    """
    _checks.typed_key(key=key)
    _checks.at_least(1, batch_size=batch_size)
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
    begin = search.resume(state, start)
    data, largest = synthetic_set.class_data(
        x_target,
        class_target,
        key=key,
        num_classes=len(start.labels) // images_per_class,
        batch_size=batch_size,
        mesh=mesh,
    )
    # Too few samples for the mean are told here rather than from inside a trace.
    jax.eval_shape(mean_fn, jax.ShapeDtypeStruct((batch_size, 1), data.x.dtype))
    sizes = (batch_size, largest, mesh)
    step = _Step(model, mean_fn, operations, optimizer or _sgd(), *sizes)
    return search.descend(
        step,
        begin,
        data,
        num_steps=num_steps,
        chunk=chunk,
        callback=callback,
        mesh=mesh,
    )
