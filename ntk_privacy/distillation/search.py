"""The search for a small image set, whatever its objective: what KIP, RKIP, DM share.

Synthetic images, and their labels if asked, descend an objective over target rows: all
of them, or a class-balanced random batch at every step.

Source: Nguyen, Chen & Lee, ICLR 2021 (arXiv:2011.00050); noise on a fixed mask of
pixels: Loo et al., ICLR 2024 (arXiv:2302.01428).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ntk_privacy import _checks, _loop, sharding
from ntk_privacy._types import Callback

__all__ = ["DistillState", "Distilled", "Kept", "Objective", "balanced_labels"]
__all__ += ["class_order", "descend", "guarded", "init", "lost", "minimize"]
__all__ += ["num_steps", "resume"]


class DistillState(NamedTuple):
    """What a distillation resumes from.

    images, labels: the synthetic set. opt_state: of the optimizer. noise: entries that
    are noise for good. steps: done so far, those of a non-finite loss left out.
    nonfinite: the loss was NaN or infinite and the rest is the last good state.
    """

    images: Float[Array, "m ..."]
    labels: Float[Array, "m c"]
    opt_state: Any
    noise: Bool[Array, "m ..."]
    steps: Int[Array, ""]
    nonfinite: Bool[Array, ""]


class Distilled(NamedTuple):
    """The result of every `distill` of this project.

    images: in the units of the targets. labels: theirs too, or the class of each.
    losses: before each step of this call. state: pass it on to continue. nonfinite:
    stopped early on NaN or infinity.

    Example:
      >>> import jax, ntk_privacy as n
      >>> images, row = n.data.load_set("digits"), n.distillation.METHODS["random"]
      >>> some = row.run(images, row.configured(num_distilled=2), key=jax.random.key(0))
      >>> some.images.shape, some.losses.size, some.noise, some.step_size
      ((2, 8, 8, 1), 0, None, None)
    """

    images: Float[Array, "m ..."]
    labels: Float[Array, "m c"] | Int[Array, " m"]
    losses: Float[Array | np.ndarray, " steps"]
    state: Any
    nonfinite: Bool[Array, ""]

    @property
    def noise(self) -> Bool[np.ndarray, "m ..."] | None:
        """Entries that are noise for good; None without any."""
        mask = getattr(self.state, "noise", None)
        return None if mask is None or not np.any(mask) else np.asarray(mask)

    @property
    def step_size(self) -> float | None:
        """What was learnt to train on the set with; None where nothing was."""
        learnt = getattr(self.state, "step_size", None)
        return None if learnt is None else float(learnt)


class Kept(NamedTuple):
    """What is kept of the state of a finished distillation.

    noise: entries that are noise for good, or None. step_size: what was learnt to train
    on the set with, or None.
    """

    noise: Bool[np.ndarray, "m ..."] | None = None
    step_size: Float[np.ndarray, ""] | None = None


State = TypeVar("State")

Objective = Callable[[Array, Array, Any, Any], Float[Array, ""]]
"""`(images, labels, rows, constants) -> loss` of a synthetic set, hashable.

`rows` is a pytree of arrays with one row per target, of which a step may see a batch;
`constants` is one that it always sees whole.
"""


def num_steps(made: Distilled) -> int:
    """Returns the steps that a set took.

    Args:
      made: of any `distill`.
    """
    return int(getattr(made.state, "steps", len(made.losses)))


def lost(method: str, config: object, made: Distilled) -> str:
    """Returns what to do about a set whose loss is not finite.

    Args:
      method: what it is of.
      config: of the method.
      made: the set.
    """
    names = ("learning_rate", "step_size", "diag_reg")
    told = {n: f"{n}={getattr(config, n)}" for n in names if hasattr(config, n)}
    ridge = f", or raise {told.pop('diag_reg')}" if "diag_reg" in told else ""
    rates = f": lower {' or '.join(told.values())}{ridge}" if told else ""
    return f"The loss of {method} is not finite after {num_steps(made)} steps{rates}."


def balanced_labels(
    images_per_class: int, num_outputs: int, dtype: Any
) -> Float[Array, "m c"]:
    """Returns -1 then +1 for one output, else the centred one-hot rows of each class.

    Args:
      images_per_class: rows of each class.
      num_outputs: c; a single output has two classes.
      dtype: of the result.
    """
    if num_outputs == 1:
        rows = jnp.asarray([[-1.0], [1.0]], dtype)
    else:
        rows = jnp.eye(num_outputs, dtype=dtype) - jnp.asarray(1 / num_outputs, dtype)
    return jnp.repeat(rows, images_per_class, axis=0)


def class_order(
    y: Float[Array, "n c"], batch_size: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns target rows sorted by class, and the number of rows of each class.

    Args:
      y: targets; the sign is the class of one output, else the largest output.
      batch_size: targets of a step, which must split evenly over the classes.

    Raises:
      ValueError: the batch does not split evenly, or a class has too few rows.
    """
    rows = np.asarray(y)
    c = rows.shape[1]
    classes = (rows[:, 0] > 0).astype(int) if c == 1 else np.argmax(rows, axis=1)
    sizes = np.bincount(classes, minlength=max(2, c))
    each = batch_size // len(sizes)
    if batch_size < 1 or batch_size % len(sizes) or each > sizes.min():
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the {len(sizes)} "
            f"classes, at most {len(sizes) * sizes.min()} for these targets."
        )
    return np.argsort(classes, kind="stable"), tuple(int(size) for size in sizes)


def init(
    x_target: Float[Array, "n ..."],
    y_target: Float[Array, "n c"],
    *,
    key: Array,
    images_per_class: int = 10,
    noise_ratio: float = 0.0,
    learn_labels: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    initial_images: Float[Array, "m ..."] | None = None,
    initial_labels: Float[Array, "m k"] | None = None,
) -> DistillState:
    """Returns the state before the first step.

    Args:
      x_target: images to distil.
      y_target: their targets.
      key: fixes images, mask and noise.
      images_per_class: synthetic images of each class; `initial_images` overrides it.
      noise_ratio: share of the entries that hold N(0, 1) noise for good.
      learn_labels: whether the optimizer has moments for labels too.
      optimizer: Adam with step size 1e-3 when absent.
      initial_images: to start from, in place of 0.2 N(0, 1).
      initial_labels: theirs, in place of balanced ones.

    Raises:
      ValueError: sizes do not fit, or a number is out of range.
    """
    _checks.typed_key(key=key)
    if y_target.ndim != 2:
        raise ValueError(
            f"y_target has shape {y_target.shape}: give one row per image and one "
            "column per output, such as y[:, None]."
        )
    _checks.same_length(x_target=x_target, y_target=y_target)
    _checks.floating(x_target=x_target, y_target=y_target)
    _checks.solvable_dtype(x_target=x_target, y_target=y_target)
    _checks.finite_data(x_target=x_target, y_target=y_target)
    _checks.in_range(0, 1, noise_ratio=noise_ratio)
    n, c = y_target.shape
    dtype = x_target.dtype
    key_images, key_mask, key_noise = jax.random.split(key, 3)
    if initial_images is None:
        classes = 2 if c == 1 else c
        m = images_per_class * classes
        if not 1 <= m <= n:
            raise ValueError(
                f"images_per_class={images_per_class} makes {m} images of {n} targets: "
                f"use between 1 and {n // classes}."
            )
        images = 0.2 * jax.random.normal(key_images, (m, *x_target.shape[1:]), dtype)
    else:
        images = jnp.asarray(initial_images, dtype)
        m = len(images)
        if not 1 <= m <= n or images.shape[1:] != x_target.shape[1:]:
            raise ValueError(
                f"initial_images has shape {images.shape}: give between 1 and {n} "
                f"images of shape {x_target.shape[1:]}."
            )
        if initial_labels is None:
            raise ValueError("initial_images has no labels: give initial_labels too.")
    if initial_labels is None:
        labels = balanced_labels(images_per_class, c, y_target.dtype)
    else:
        labels = jnp.asarray(initial_labels, y_target.dtype)
        if labels.shape != (m, c):
            raise ValueError(
                f"initial_labels has shape {labels.shape}, not {(m, c)}: give one row "
                "per synthetic image, as wide as the targets."
            )
    _checks.finite_data(initial_images=images, initial_labels=labels)
    # The mask is drawn even if unused: the images do not depend on the ratio.
    noise = jax.random.uniform(key_mask, images.shape, dtype) <= noise_ratio
    noise &= noise_ratio > 0
    images = jnp.where(noise, jax.random.normal(key_noise, images.shape, dtype), images)
    variables = (images, labels) if learn_labels else (images,)
    return DistillState(
        images=images,
        labels=labels,
        opt_state=(optimizer or _adam()).init(variables),
        noise=noise,
        steps=jnp.zeros((), jnp.int32),
        nonfinite=jnp.zeros((), bool),
    )


@functools.cache
def _adam() -> optax.GradientTransformation:
    # One object for all calls: the compiled loop is looked up by it.
    return optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class _Step:
    objective: Objective
    optimizer: optax.GradientTransformation
    learn_labels: bool
    batch_size: int | None
    class_sizes: tuple[int, ...]
    mesh: Mesh | None = None

    def batch(self, rows, key_data, step):
        """Returns a class-balanced random batch of rows sorted by class."""
        if self.batch_size is None:
            return rows
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), step)
        each = self.batch_size // len(self.class_sizes)
        chosen, offset = [], 0
        keys = jax.random.split(key, len(self.class_sizes))
        for key, size in zip(keys, self.class_sizes, strict=True):
            chosen.append(offset + jax.random.permutation(key, size)[:each])
            offset += size
        indices = jnp.concatenate(chosen)
        return jax.tree.map(
            lambda leaf: sharding.spread(leaf[indices], self.mesh), rows
        )

    def __call__(self, state: DistillState, step, data):
        rows, constants, key_data = data
        rows = self.batch(rows, key_data, step)

        def loss_fn(variables):
            images, labels = (*variables, state.labels)[:2]
            return self.objective(images, labels, rows, constants)

        variables = (state.images, state.labels)[: 1 + self.learn_labels]
        loss, grads = jax.value_and_grad(loss_fn)(variables)
        # optax raises decay rates to an integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimizer.update(
                grads, state.opt_state, variables
            )
        moved: Any = optax.apply_updates(variables, updates)
        images, labels = (*moved, state.labels)[:2]
        finite = jnp.isfinite(images).all() & jnp.isfinite(labels).all()
        new = state._replace(
            images=jnp.where(state.noise, state.images, images),
            labels=labels,
            opt_state=opt_state,
        )
        return guarded(state, new, loss, finite), {"loss": loss}


def guarded(state: State, new: State, loss: Array, finite: Array) -> State:
    """Returns the state after a step, or the last good one, marked as such.

    Args:
      state: before the step, with fields `steps` and `nonfinite`.
      new: after it, these two as they were.
      loss: before the step; the step is lost if it is not finite.
      finite: whether what the step moved is; a finite loss may have a gradient that is
        none.
    """
    before: Any = state
    ok = jnp.isfinite(loss) & finite & ~before.nonfinite
    counted = cast(Any, new)._replace(steps=before.steps + 1)
    last = before._replace(nonfinite=jnp.ones((), bool))
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), counted, last)


def minimize(
    objective: Objective,
    rows: Any,
    constants: Any,
    *,
    key: Array,
    state: DistillState,
    num_steps: int,
    learn_labels: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    class_sizes: tuple[int, ...] = (),
    chunk: int = 500,
    callback: Callback | None = None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Runs the search from `state` to `num_steps`.

    Args:
      objective: see `Objective`; equal ones share a compiled program.
      rows: pytree of arrays, one row per target, sorted by class if in batches.
      constants: pytree of arrays.
      key: the draw of step i depends on it and i alone.
      state: of `init`, or of an earlier call.
      num_steps: in all, counting those in `state`.
      learn_labels: as given to `init`.
      optimizer: as given to `init`.
      batch_size: rows of a step; None is all.
      class_sizes: rows of each class, if in batches.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk.
      mesh: of `sharding.row_mesh`, whose devices share the rows; those that do not
        divide are filled up with zeros, which the objective must take for nothing.

    Raises:
      ValueError: key is no typed key.
    """
    rows = jax.tree.map(lambda leaf: sharding.share(leaf, mesh), rows)
    options = (learn_labels, batch_size, class_sizes, mesh)
    step = _Step(objective, optimizer or _adam(), *options)
    data = (rows, constants, _checks.key_data(key=key))
    loop: dict[str, Any] = {"num_steps": num_steps, "chunk": chunk, "mesh": mesh}
    return descend(step, state, data, callback=callback, **loop)


def descend(
    step: Callable[..., Any],
    state: Any,
    data: Any,
    *,
    num_steps: int,
    chunk: int,
    callback: Callback | None,
    mesh: Mesh | None = None,
) -> Distilled:
    """Runs any step on images, from `state` to `num_steps` or a loss that is lost.

    Args:
      step: `(state, number, data) -> (state, metrics)`; the state has images, labels,
        steps and nonfinite, the metrics `loss`. Equal steps share a compiled program.
      state: to start from.
      data: pytree of arrays.
      num_steps: in all, counting those in `state`.
      chunk: steps between calls of `callback`.
      callback: `(steps, state, metrics)` after each chunk.
      mesh: of `_loop.run`.
    """
    losses = []

    def after_chunk(done, state, metrics):
        losses.append(np.asarray(metrics["loss"]))
        stop = _loop.asks_to_stop(callback, done, state, metrics)
        return stop or bool(state.nonfinite)

    first_step = int(state.steps)
    state, _ = _loop.run(
        step,
        state._replace(nonfinite=jnp.zeros((), bool)),
        data,
        num_steps=num_steps,
        first_step=first_step,
        chunk=chunk,
        callback=after_chunk,
        mesh=mesh,
    )
    history = np.concatenate(losses) if losses else np.zeros(0, state.images.dtype)
    # Up to and with the loss that was not finite.
    count = int(state.steps) - first_step + int(state.nonfinite)
    return Distilled(
        images=state.images,
        labels=state.labels,
        losses=jnp.asarray(history[:count]),
        state=state,
        nonfinite=state.nonfinite,
    )


def resume(state: State | None, start: State) -> State:
    """Returns `state`, or `start` without one.

    Args:
      state: of an earlier call.
      start: of `init` with the arguments of this call.

    Raises:
      ValueError: their shapes differ.
    """
    if state is None:
        return start
    same = jax.tree.structure(state) == jax.tree.structure(start) and all(
        (np.shape(a), a.dtype) == (np.shape(b), b.dtype)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True)
    )
    if not same:
        raise ValueError(
            f"state has images of shape {_images_shape(state)}, this call makes "
            f"{_images_shape(start)}, or options differ: repeat the options of the "
            "first call, or leave state out."
        )
    return state


def _images_shape(state: Any) -> tuple[int, ...]:
    return np.shape(state.images)
