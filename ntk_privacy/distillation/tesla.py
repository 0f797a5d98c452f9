r"""TESLA: trajectory matching whose memory does not grow with the student's steps.

The loss is that of MTT (`trajectory_matching`). Its gradient takes the student's
parameters at step i as constants in the gradient of that step, $g_i$, so that the end
of the student is $\theta^*_t - a \sum_i g_i$ and

$$\frac{dL}{dS} = \frac{2}{\|\theta^*_t - \theta^*_{t+M}\|^2} \sum_i
  [a (\theta^*_{t+M} - \theta^*_t) + a^2 \textstyle\sum_j g_j]^\top
  \frac{\partial g_i}{\partial S}$$

is a sum of terms of which one at a time is in memory. The student is trained twice:
for the sum of the $g_j$, and for their derivatives.

Products are as coarse as an accelerator's default: see `trajectory_matching`.

Source: Cui et al., ICML 2023 (TESLA, arXiv:2211.10586), released code. That code loses
the factor 2: half the step size compares with it.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ntk_privacy import _tree
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.distillation import trajectory_matching
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.distillation.student import student_loss, student_parts
from ntk_privacy.distillation.trajectory_matching import TrajectoryState, init, loss
from ntk_privacy.models.convnet import Classifier

__all__ = ["Distilled", "TrajectoryState", "distill", "init", "loss", "slope"]


def slope(
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
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "m h w d"], Float[Array, ""]]]:
    """Returns the loss and its gradient in images and step size.

    Args:
      images: the synthetic set.
      targets: a row of probabilities for each; constants.
      step_size: of the student.
      start: parameters of the expert.
      end: its parameters some epochs later.
      model: of expert and student.
      key: of batches and augmentation.
      student_steps: of the student.
      student_batch_size: images of a step; None is all.
      operations: of `data.augmentation`.
      mesh: of `sharding.row_mesh`, whose devices share the student's batches.
    """
    parts = student_parts(
        key, len(images), student_steps=student_steps, batch_size=student_batch_size
    )

    def gradient(images, params, part):
        slope = jax.grad(student_loss)
        options = {"model": model, "operations": operations, "mesh": mesh}
        return slope(params, images, targets, part, **options)

    def params_after(total):
        return jax.tree.map(lambda p, g: p - step_size * g, start, total)

    def first_pass(total, part):
        return _tree.add(total, gradient(images, params_after(total), part)), None

    zero = jax.tree.map(jnp.zeros_like, start)
    total, _ = jax.lax.scan(first_pass, zero, parts)
    far = _tree.squared_norm(_tree.sub(start, end))
    gap = _tree.sub(params_after(total), end)
    # What each g_i is multiplied by: the derivative of the loss in their sum.
    weight = _tree.scale(-2 * step_size / far, gap)

    def second_pass(carry, part):
        summed, moved = carry
        params = params_after(summed)
        g, pull = jax.vjp(lambda images: gradient(images, params, part), images)
        return (_tree.add(summed, g), moved + pull(weight)[0]), None

    begin = (zero, jnp.zeros_like(images))
    (_, moved), _ = jax.lax.scan(second_pass, begin, parts)
    rate = -2 / far * _tree.dot(gap, total)
    return _tree.squared_norm(gap) / far, (moved, rate)


def distill(
    x_target: Float[Array, "n h w d"],
    class_target: Int[Array, " n"],
    *,
    experts: Params,
    model: Classifier,
    key: Array,
    num_classes: int | None = None,
    images_per_class: int = 10,
    num_steps: int = 10_000,
    student_steps: int = 50,
    student_batch_size: int | None = None,
    expert_epochs: int = 2,
    max_start_epoch: int = 5,
    step_size: float = 0.01,
    teacher_labels: bool = False,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    initial: str = "real",
    optimizer: optax.GradientTransformation | None = None,
    step_size_optimizer: optax.GradientTransformation | None = None,
    state: TrajectoryState | None = None,
    chunk: int = 50,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Moves images and a step size until students follow experts, in constant memory.

    Args:
      x_target: normalised images, of which the first synthetic ones are copies.
      class_target: the class of each, an integer from 0.
      experts: parameters of k experts after each epoch, leaves (k, epochs + 1, ...).
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
      teacher_labels: the expert, at the epoch that the student is to reach, labels the
        images anew at every step; the labels of the result are the last ones, a row of
        probabilities per image.
      operations: of `data.augmentation`, in the student's training.
      initial: "real" copies real images; "noise" is N(0, 1).
      optimizer: of the images; default SGD, step 100, momentum 0.5.
      step_size_optimizer: default SGD, step 1e-7, momentum 0.5.
      state: of an earlier call with the same arguments, to continue to the bit.
      chunk: steps between calls of `callback`, in one compiled scan.
      callback: `(steps, state, metrics)` after each chunk; metrics has `loss` and
        `step_size` before each of its steps.
      mesh: of `sharding.row_mesh`, whose devices share experts and students' batches.

    Raises:
      ValueError: see `trajectory_matching.distill`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ntk_privacy.distillation import tesla
      >>> from ntk_privacy.models import ConvNet
      >>> model = ConvNet(num_outputs=2, width=4, depth=1)
      >>> def start(key):
      ...     return model.init_params(key, (8, 8, 1))
      >>> keys = jax.random.split(jax.random.key(0), (2, 8))  # experts, epochs
      >>> x = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
      >>> out = tesla.distill(
      ...     x,
      ...     jnp.arange(8) % 2,
      ...     experts=jax.vmap(jax.vmap(start))(keys),
      ...     model=model,
      ...     key=jax.random.key(2),
      ...     images_per_class=1,
      ...     num_steps=2,
      ...     student_steps=2,
      ...     operations=(),
      ... )
      >>> out.images.shape
      (2, 8, 8, 1)
    """
    return trajectory_matching.match(
        x_target,
        class_target,
        slope=slope,
        experts=experts,
        model=model,
        key=key,
        num_classes=num_classes,
        images_per_class=images_per_class,
        num_steps=num_steps,
        student_steps=student_steps,
        student_batch_size=student_batch_size,
        expert_epochs=expert_epochs,
        max_start_epoch=max_start_epoch,
        step_size=step_size,
        teacher_labels=teacher_labels,
        operations=operations,
        initial=initial,
        optimizer=optimizer,
        step_size_optimizer=step_size_optimizer,
        state=state,
        chunk=chunk,
        callback=callback,
        mesh=mesh,
    )
