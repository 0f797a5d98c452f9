"""Sets for `experiments.compare`: every method distils for the same seconds."""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _condensed, _distill_config
from experiments._image_sets import Images
from experiments._progress import Progress
from ntk_privacy import kip, rkip
from ntk_privacy.condensation import distribution_matching
from ntk_privacy.kernels import infinite
from ntk_privacy.resume import Timer

KERNEL_METHODS = ("kip", "rkip", "rkip_noise")
CONDENSING = ("dm", "rdm", "dc", "dsa", "mtt", "tesla")
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


def _by_kernel(method: str, config, images: Images, x, key, **loop) -> Any:
    """KIP and RKIP in the same normalised pixels, with the labels fixed."""
    each = config.num_targets // images.num_classes
    rows = [
        np.flatnonzero(images.classes == c)[:each] for c in range(images.num_classes)
    ]
    chosen = np.concatenate(rows)
    eye = np.eye(images.num_classes, dtype=np.float32) - 1 / images.num_classes
    noise = {"noise_ratio": _NOISE_RATIO} if method == "rkip_noise" else {}
    return (kip if method == "kip" else rkip).distill(
        x[chosen],
        jnp.asarray(eye[images.classes[chosen]], jnp.float32),
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
    images: Images,
    x: jax.Array,
    key: jax.Array,
    *,
    folder: pathlib.Path,
    rate: float | None = None,
    **options: Any,
) -> TimedSet:
    """Runs a method until its time is over.

    Args:
      method: of `KERNEL_METHODS` or `CONDENSING`.
      config: of `experiments.compare`.
      images: the classes.
      x: normalised training images, poisoned or not.
      key: typed key.
      folder: of experts, for the methods that train some.
      rate: poison to expect, of the methods that do; None is their own.
      **options: of the method's `distill`.

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

    loop: dict[str, Any] = {"chunk": CHUNK, "callback": callback, **options}
    total = math.ceil(config.seconds)
    told = f"{method}, seconds"
    with (
        timer(),
        Progress(total, description=told, show=config.progress or None) as bar,
    ):
        if method in KERNEL_METHODS:
            loop["num_steps"] = _LIMIT
            _by_kernel(method, config, images, x, key, **loop)
        else:
            flags = flags_of(method, config, folder, rate=rate)
            _condensed.METHODS[method].condense(flags, images, x, key, **loop)
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


def random(config: Any, images: Images, x: jax.Array, key: jax.Array) -> TimedSet:
    """Returns as many real images, drawn blindly.

    Args:
      config: has images_per_class.
      images: the classes.
      x: normalised training images.
      key: typed key.
    """
    made = distribution_matching.init(
        x,
        jnp.asarray(images.classes),
        key=key,
        num_classes=images.num_classes,
        images_per_class=config.images_per_class,
        initial="real",
    )
    return TimedSet(np.asarray(made.images), np.asarray(made.labels), 0, 0.0)


def flags_of(
    method: str,
    config: Any,
    folder: pathlib.Path | str = "runs",
    *,
    rate: float | None = None,
) -> Any:
    """Returns the flags of `experiments.distill` that a method would have.

    Args:
      method: of `CONDENSING`.
      config: of `experiments.compare`.
      folder: of the run.
      rate: see `make`.
    """
    takes = "rate" in _condensed.METHODS[method].presets[config.preset]
    return _distill_config.Config(
        method=method,
        dataset=config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        fingerprint=config.fingerprint,
        preset=config.preset,
        images_per_class=config.images_per_class,
        width=config.width,
        num_steps=_LIMIT,
        rate=rate if takes else None,
        seed=config.seed,
        workdir=str(folder),
    )
