"""MTT: a student trained on the synthetic set shall end where an expert does.

Experts are an argument: `training.trajectories.load(...).params`. The gradient in the
images passes through every step of the student; `low_memory` keeps little of each, and
`tesla` has a gradient that needs no more memory for many steps than for few.

Products are as coarse as an accelerator's default: after five steps of a small ConvNet
the gradient in the images is 1% off in TF32 and 3% in bfloat16, in norm. Inside of
`with jax.default_matmul_precision("highest"):` it is that of float32.

Source: Cazenavette et al., CVPR 2022 (MTT, arXiv:2203.11932), released code.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _class_checks, _tree, sharding
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.distillation import search, synthetic_set
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.distillation.student import (
    VANISHING,
    check_experts,
    student_loss,
    student_parts,
    watched,
)
from ntk_privacy.models import convolution
from ntk_privacy.models.convnet import Classifier

__all__ = ["Distilled", "Slope", "TrajectoryState", "distill", "init", "loss", "match"]


class TrajectoryState(NamedTuple):
    """What a distillation resumes from.

    images, labels: the synthetic set; classes, or with a teacher's labels one row of
    probabilities each. step_size: of the student, in parameter units. opt_state: of
    both optimizers. backward: steps after which the step size was zero, negative or
    less than a thousandth of the first; no network learns with such a one. steps,
    nonfinite: as `synthetic_set.MatchState`.
    """

    images: Float[Array, "m h w d"]
    labels: Int[Array, " m"] | Float[Array, "m c"]
    step_size: Float[Array, ""]
    opt_state: Any
    backward: Int[Array, ""]
    steps: Int[Array, ""]
    nonfinite: Bool[Array, ""]


Slope = Callable[..., tuple[Array, tuple[Array, Array]]]
"""`(images, targets, step_size, start, end, *, model, key, student_steps,
student_batch_size, operations, mesh)` to the loss and its gradient in images and
step_size.
"""


def loss(
    images: Float[Array, "m h w d"],
    targets: Float[Array, "m c"],
    step_size: Float[Array, ""],
    start: Params,
    end: Params,
    *,
    model: Classifier,
    key: Array,
    student_steps: int = 50,
    student_batch_size: int | None = None,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    low_memory: bool = False,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    r"""Distance from a student to where the expert went, over how far it went.

    $$\|\hat\theta_N - \theta^*_{t+M}\|^2 / \|\theta^*_t - \theta^*_{t+M}\|^2, \quad
      \hat\theta_0 = \theta^*_t, \;
      \hat\theta_{i+1} = \hat\theta_i - a \nabla L(A(S_i); \hat\theta_i)$$
    Of each step of the student its gradient keeps the parameters and the results of
    products, and computes the rest again.

    Args:
      images: the synthetic set.
      targets: a row of probabilities for each, such as one-hot rows.
      step_size: $a$.
      start: $\theta^*_t$, parameters of the expert.
      end: $\theta^*_{t+M}$, some epochs later.
      model: of expert and student.
      key: of batches and augmentation.
      student_steps: $N$.
      student_batch_size: images of a step; None is all.
      operations: of `data.augmentation`.
      low_memory: keep the parameters alone, and compute the products again too.
      mesh: of `sharding.row_mesh`, whose devices share the student's batches.
    """
    parts = student_parts(
        key, len(images), student_steps=student_steps, batch_size=student_batch_size
    )
    slope = functools.partial(
        jax.grad(student_loss), model=model, operations=operations, mesh=mesh
    )

    policy = None if low_memory else convolution.products_saveable

    @functools.partial(jax.checkpoint, prevent_cse=False, policy=policy)
    def step(params, part):
        grads = slope(params, images, targets, part)
        return jax.tree.map(lambda p, g: p - step_size * g, params, grads), None

    params, _ = jax.lax.scan(step, start, parts)
    gap = _tree.squared_norm(_tree.sub(params, end))
    return gap / _tree.squared_norm(_tree.sub(start, end))


def _slope(images, targets, step_size, start, end, **options):
    return jax.value_and_grad(loss, argnums=(0, 2))(
        images, targets, step_size, start, end, **options
    )


def _lean_slope(images, targets, step_size, start, end, **options):
    return _slope(images, targets, step_size, start, end, low_memory=True, **options)


class _Data(NamedTuple):
    experts: Any
    key_data: Any


@dataclasses.dataclass(frozen=True)
class _Step:
    """One student; equal steps share a compiled program."""

    slope: Slope
    model: Classifier
    num_outputs: int
    student_steps: int
    student_batch_size: int | None
    expert_epochs: int
    max_start_epoch: int
    teacher_labels: bool
    least_step_size: float
    operations: tuple[str, ...]
    optimizer: optax.GradientTransformation
    step_size_optimizer: optax.GradientTransformation
    num_experts: int
    mesh: Mesh | None = None

    def __call__(self, state: TrajectoryState, step, data: _Data):
        key = jax.random.fold_in(jax.random.wrap_key_data(data.key_data), step)
        key_expert, key_epoch, key_student = jax.random.split(key, 3)
        expert = jax.random.randint(key_expert, (), 0, self.num_experts)
        epoch = jax.random.randint(key_epoch, (), 0, self.max_start_epoch)
        start, end = (
            jax.tree.map(lambda leaf, at=at: leaf[expert, at], data.experts)
            for at in (epoch, epoch + self.expert_epochs)
        )
        labels: Any = state.labels
        dtype = state.images.dtype
        if self.teacher_labels:
            labels = jax.nn.softmax(self.model.apply_fn(end, state.images))
        soft = labels.ndim == 2
        targets = labels if soft else jax.nn.one_hot(labels, self.num_outputs)
        value, grads = self.slope(
            state.images,
            targets.astype(dtype),
            state.step_size,
            start,
            end,
            model=self.model,
            key=key_student,
            student_steps=self.student_steps,
            student_batch_size=self.student_batch_size,
            operations=self.operations,
            mesh=self.mesh,
        )
        (images, memory), (step_size, small_memory) = map(
            synthetic_set.moved,
            (self.optimizer, self.step_size_optimizer),
            (state.images, state.step_size),
            grads,
            state.opt_state,
        )
        lost = step_size < jnp.asarray(self.least_step_size, dtype)
        new = state._replace(
            images=images,
            labels=labels,
            step_size=step_size,
            opt_state=(memory, small_memory),
            backward=state.backward + lost.astype(jnp.int32),
        )
        finite = jnp.isfinite(images).all() & jnp.isfinite(step_size)
        metrics = {"loss": value, "step_size": state.step_size}
        return search.guarded(state, new, value, finite), metrics


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    # One object for all calls: the compiled loop is looked up by it.
    return optax.sgd(learning_rate, momentum=0.5)


def init(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 10,
    step_size: float = 0.01,
    teacher_labels: bool = False,
    initial: str = "real",
    optimizer: optax.GradientTransformation | None = None,
    step_size_optimizer: optax.GradientTransformation | None = None,
) -> TrajectoryState:
    """Returns the state before the first step.

    Args: those of `distill`.

    Raises:
      ValueError: a class without images, or too few of them for `initial="real"`.
    """
    _checks.typed_key(key=key)
    _checks.positive(step_size=step_size)
    optimizer = optimizer or _sgd(100.0)
    first = synthetic_set.init(
        x_target,
        class_target,
        key=key,
        num_classes=num_classes,
        images_per_class=images_per_class,
        initial=initial,
        optimizer=optimizer,
    )
    size, dtype = jnp.asarray(step_size, first.images.dtype), first.images.dtype
    labels: Any = first.labels
    if teacher_labels:
        c = len(labels) // images_per_class
        labels = jax.nn.one_hot(labels, c, dtype=dtype)
    memory = (step_size_optimizer or _sgd(1e-7)).init(size)
    return TrajectoryState(
        images=first.images,
        labels=labels,
        step_size=size,
        opt_state=(first.opt_state, memory),
        backward=jnp.zeros((), jnp.int32),
        steps=first.steps,
        nonfinite=first.nonfinite,
    )


def match(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    slope: Slope,
    experts: Params,
    model: Classifier,
    key: Array,
    num_classes: int | None,
    images_per_class: int,
    num_steps: int,
    student_steps: int,
    student_batch_size: int | None,
    expert_epochs: int,
    max_start_epoch: int,
    step_size: float,
    teacher_labels: bool,
    operations: tuple[str, ...],
    initial: str,
    optimizer: optax.GradientTransformation | None,
    step_size_optimizer: optax.GradientTransformation | None,
    state: TrajectoryState | None,
    chunk: int,
    callback: Callback | None,
    mesh: Mesh | None,
) -> Distilled:
    """What MTT and TESLA share: `tesla.distill` with any `Slope`.

    Args and Raises: see `tesla.distill`; `slope` is how the match is differentiated.
    """
    _checks.typed_key(key=key)
    _checks.at_least(
        1,
        student_steps=student_steps,
        expert_epochs=expert_epochs,
        max_start_epoch=max_start_epoch,
    )
    if student_batch_size is not None:
        _checks.at_least(1, student_batch_size=student_batch_size)
    augmentation.check(operations)
    names = ("x_target", "class_target")
    _class_checks.labelled(model, x_target, class_target, names=names)
    start = init(
        x_target,
        class_target,
        key=key,
        num_classes=num_classes,
        images_per_class=images_per_class,
        step_size=step_size,
        teacher_labels=teacher_labels,
        initial=initial,
        optimizer=optimizer,
        step_size_optimizer=step_size_optimizer,
    )
    needed = max_start_epoch - 1 + expert_epochs
    check_experts(experts, model, x_target.shape[1:], start.images.dtype, needed)
    outputs = _class_checks.num_outputs(model, x_target.shape[1:])
    classes = len(start.labels) // images_per_class
    if teacher_labels and outputs != classes:
        raise ValueError(
            f"The network has {outputs} outputs but there are {classes} classes: with "
            f"teacher_labels=True build it with num_outputs={classes}."
        )
    begin = search.resume(state, start)
    # Later epochs would only take room.
    seen = jax.tree.map(
        lambda leaf: sharding.share(jnp.asarray(leaf[:, : needed + 1]), mesh), experts
    )
    step = _Step(
        slope=slope,
        model=model,
        num_outputs=outputs,
        student_steps=student_steps,
        student_batch_size=student_batch_size,
        expert_epochs=expert_epochs,
        max_start_epoch=max_start_epoch,
        teacher_labels=teacher_labels,
        least_step_size=VANISHING * float(step_size),
        operations=operations,
        optimizer=optimizer or _sgd(100.0),
        step_size_optimizer=step_size_optimizer or _sgd(1e-7),
        num_experts=len(jax.tree.leaves(experts)[0]),
        mesh=mesh,
    )
    loop: dict[str, Any] = {"num_steps": num_steps, "chunk": chunk, "mesh": mesh}
    loop["callback"] = watched(callback, first=float(step_size))
    data = _Data(seen, _checks.key_data(key=key))
    return search.descend(step, begin, data, **loop)


def distill(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    experts: Params,
    model: Classifier,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 10,
    num_steps: int = 5000,
    student_steps: int = 50,
    student_batch_size: int | None = None,
    expert_epochs: int = 2,
    max_start_epoch: int = 2,
    step_size: float = 0.01,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    low_memory: bool = False,
    initial: str = "real",
    optimizer: optax.GradientTransformation | None = None,
    step_size_optimizer: optax.GradientTransformation | None = None,
    state: TrajectoryState | None = None,
    chunk: int = 50,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Moves images and a step size until students follow experts.

    Each step draws an expert and an epoch, starts a student there, trains it on the
    synthetic set and moves the set so that the student ends nearer to the expert some
    epochs later. The best size of a move grows with the images per class.

    Args:
      x_target: normalised images, of which the first synthetic ones are copies.
      class_target: the class of each, an integer from 0.
      experts: parameters of k experts after each epoch, leaves (k, epochs + 1, ...),
        such as `trajectories.load(...).params`.
      model: of experts and students.
      key: typed key; fixes the initial images and, with the step, all later draws.
      num_classes: one more than the largest class if None.
      images_per_class: synthetic images of each class.
      num_steps: students in all, counting those in `state`.
      student_steps: of each student.
      student_batch_size: synthetic images of each of these; None is all.
      expert_epochs: that the student is to catch up with.
      max_start_epoch: students start at an epoch below it.
      step_size: of the student at first; it is learnt.
      operations: of `data.augmentation`, in the student's training.
      low_memory: keep the parameters alone of a student's step: 1 MB rather than 11 at
        width 128 and ten images, for 1.15 times the time. Else products are kept too.
      initial: "real" copies real images; "noise" is N(0, 1).
      optimizer: of the images; default SGD, step 100, momentum 0.5.
      step_size_optimizer: default SGD, step 1e-7, momentum 0.5.
      state: of an earlier call with the same arguments, to continue to the bit; it has
        the step size that was learnt.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk; metrics has `loss` and
        `step_size` before each of its steps.
      mesh: of `sharding.row_mesh`, whose devices share experts and students' batches.

    Warns:
      UserWarning: the step size became zero, negative or less than a thousandth of the
        first; `state.backward` counts such steps.

    Raises:
      ValueError: images or classes are none, a class has no images or no output,
        experts are of another network or have too few epochs, a number is out of
        range, or `state` has other shapes.

    Example:
      >>> import jax
      >>> from ntk_privacy.distillation import trajectory_matching
      >>> from ntk_privacy.models import ConvNet
      >>> model = ConvNet(num_outputs=2, width=4, depth=1)
      >>> keys = jax.random.split(jax.random.key(0), (2, 8))  # experts, epochs
      >>> init = jax.vmap(jax.vmap(lambda key: model.init_params(key, (8, 8, 1))))
      >>> x = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
      >>> out = trajectory_matching.distill(
      ...     x, jax.numpy.arange(8) % 2, experts=init(keys), model=model, num_steps=2,
      ...     key=jax.random.key(2), images_per_class=1, student_steps=2, operations=()
      ... )
      >>> out.images.shape
      (2, 8, 8, 1)
    """
    return match(
        x_target, class_target, slope=_lean_slope if low_memory else _slope,
        experts=experts, model=model, key=key, num_classes=num_classes,
        images_per_class=images_per_class, num_steps=num_steps,
        student_steps=student_steps, student_batch_size=student_batch_size,
        expert_epochs=expert_epochs, max_start_epoch=max_start_epoch,
        step_size=step_size, teacher_labels=False, operations=operations,
        initial=initial, optimizer=optimizer, step_size_optimizer=step_size_optimizer,
        state=state, chunk=chunk, callback=callback, mesh=mesh,
    )  # fmt: skip
