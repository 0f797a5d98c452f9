"""Sets for `experiments.compare`: every method distils for the same seconds."""

import dataclasses
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _condensed
from experiments._progress import Progress
from ntk_privacy import distillation, kip, rkip
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import distribution_matching, squeezed
from ntk_privacy.distillation.class_images import arrays
from ntk_privacy.distillation.regressed import TaskConfig
from ntk_privacy.kernels import infinite
from ntk_privacy.resume import Ran, Timer

KERNEL_METHODS = ("kip", "rkip", "rkip_noise")
CONDENSING = ("dm", "rdm", "dc", "dsa", "mtt", "tesla")


def matching_classes() -> tuple[str, ...]:
    """Returns the methods whose sets have classes for labels, and no soft ones."""
    return tuple(
        name
        for name, method in distillation.METHODS.items()
        if not issubclass(method.config, TaskConfig | squeezed.Config)
    )


# A step of DC at many images per class may take all the time there is.
CHUNK = 1
_LIMIT = 10**8
# The published "RKIP 5% noise".
_NOISE_RATIO = 0.05


class TimedSet(NamedTuple):
    """images: normalised. labels: classes. noise: entries that are noise for good."""

    images: np.ndarray
    labels: np.ndarray
    steps: int
    seconds: float
    noise: np.ndarray | None = None


def _by_kernel(method: str, config, images: ImageSet, key, **loop) -> Any:
    """KIP and RKIP in the same normalised pixels, with the labels fixed."""
    x, _ = arrays(images)
    each = config.num_targets // images.num_classes
    rows = [
        np.flatnonzero(images.class_train == c)[:each]
        for c in range(images.num_classes)
    ]
    chosen = np.concatenate(rows)
    eye = np.eye(images.num_classes, dtype=np.float32) - 1 / images.num_classes
    noise = {"noise_ratio": _NOISE_RATIO} if method == "rkip_noise" else {}
    return (kip if method == "kip" else rkip).distill(
        x[chosen],
        jnp.asarray(eye[images.class_train[chosen]], jnp.float32),
        kernel_fn=_kernel(),
        key=key,
        images_per_class=config.images_per_class,
        optimizer=_adam(),
        **noise,
        **loop,
    )


@functools.cache
def _kernel():
    return infinite.mlp(depth=2)


@functools.cache
def _adam():
    # In deviations rather than intensities, of which they are a third.
    return optax.adam(1e-2)


def make(
    method: str,
    config: Any,
    images: ImageSet,
    key: jax.Array,
    *,
    folder: pathlib.Path,
    **given: Any,
) -> TimedSet:
    """Runs a method until its time is over.

    Args:
      method: of `KERNEL_METHODS` or `CONDENSING`.
      config: of `experiments.compare`.
      images: to distil, poisoned or not.
      key: typed key.
      folder: of experts, for the methods that train some.
      **given: see `flags_of`.

    Raises:
      ValueError: the loss is not finite.
    """
    timer, last = Timer(), {}
    # Experts of a run that was killed would be free.
    _condensed.remove(folder / "experts")

    def callback(step, state, metrics):
        del step
        jax.block_until_ready(state.images)
        last["state"] = state
        over = timer.elapsed() >= config.seconds
        bar(total if over else int(timer.elapsed()), state, metrics)
        return over or bool(state.nonfinite)

    def stage(name, start, go, num_steps):
        del name, num_steps
        return Ran(go(start, 0, callback), np.zeros(0))

    total = math.ceil(config.seconds)
    told = f"{method}, seconds"
    with (
        timer(),
        Progress(total, description=told, show=config.progress or None) as bar,
    ):
        if method in KERNEL_METHODS:
            loop = {"num_steps": _LIMIT, "chunk": CHUNK, "callback": callback}
            _by_kernel(method, config, images, key, **loop)
        else:
            flags = flags_of(method, config, **given)
            run = distillation.METHODS[method].run
            options = {"chunk": CHUNK, "folder": folder / "experts"}
            run(images, flags, key=key, stage=stage, **options)
    state = last["state"]
    if bool(state.nonfinite):
        raise ValueError(
            f"The loss of {method} is not finite after {int(state.steps)} steps."
        )
    labels = np.asarray(state.labels)
    labels = labels.argmax(1) if labels.ndim == 2 else labels
    noise = getattr(state, "noise", None)
    noise = None if noise is None or not np.any(noise) else np.asarray(noise)
    made = np.asarray(state.images)
    return TimedSet(made, labels, int(state.steps), timer.run, noise)


def random(config: Any, images: ImageSet, key: jax.Array) -> TimedSet:
    """Returns as many real images, drawn blindly.

    Args:
      config: has images_per_class.
      images: to draw from.
      key: typed key.
    """
    made = distribution_matching.init(
        *arrays(images),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        initial="real",
    )
    return TimedSet(np.asarray(made.images), np.asarray(made.labels), 0, 0.0)


def flags_of(method: str, config: Any, **given: Any) -> Any:
    """Returns a method's config, at the budget of a comparison.

    Args:
      method: of `CONDENSING`.
      config: of `experiments.compare`.
      **given: further flags, of which a method takes those that it has.
    """
    record = distillation.METHODS[method]
    shared = {"images_per_class": config.images_per_class, "num_steps": _LIMIT}
    if config.width is not None:
        shared["width"] = config.width
    names = {entry.name for entry in dataclasses.fields(record.config)}
    own = {k: v for k, v in given.items() if k in names and v is not None}
    return record.configured(config.preset, **shared, **own)
