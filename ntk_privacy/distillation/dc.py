"""DC and DSA as methods: flags, presets, records.

Sources: Zhao, Mopuri & Bilen, ICLR 2021 (arXiv:2006.05929); Zhao & Bilen, ICML 2021
(arXiv:2102.08259).

Products are as coarse as an accelerator's default: with a small ConvNet the gradient in
the images is 3% off in TF32 and 6% in bfloat16, in norm. Inside of
`with jax.default_matmul_precision("highest"):` it is that of float32.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_privacy import _checks, curvature, sharding
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, gradient_matching
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet
from ntk_privacy.resume import Stage, straight

__all__ = ["METHODS", "Config", "real_loss", "regularize"]

# One step takes minutes at the published loops.
_CHUNK = 1
_KNOWN = (1, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of both.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> sizes = {"images_per_class": 1, "width": 1, "num_steps": 1, "batch_size": 2}
      >>> for name in ("dc", "dsa"):
      ...     row = distillation.METHODS[name]
      ...     made = row.run(images, row.configured(**sizes), key=jax.random.key(0))
      ...     print(name, made.images.shape)
      dc (2, 8, 8, 1)
      dsa (2, 8, 8, 1)
    """

    images_per_class: int = field(10, "Condensed images of each class.")
    width: int = field(128, "Channels of the ConvNet.")
    num_steps: int = field(1000, "Random networks, one after the other.")
    batch_size: int = field(256, "Real images of each class that a step sees.")
    learning_rate: float = field(0.1, "Of the images' SGD.")
    outer_steps: int = field(10, "Moves of the images per network.")
    inner_epochs: int = field(
        50, "Of training a network on the images between two moves."
    )
    penalty_weight: float | None = field(
        None, "Of the curvature in the loss of real images; none is 0."
    )
    penalty_step: float | None = field(
        None, "Length of the step that tells the curvature; none is 3."
    )

    def __post_init__(self):
        _checks.at_least(
            1,
            images_per_class=self.images_per_class,
            width=self.width,
            num_steps=self.num_steps,
            batch_size=self.batch_size,
            outer_steps=self.outer_steps,
            inner_epochs=self.inner_epochs,
        )
        _checks.positive(learning_rate=self.learning_rate)
        for name in ("penalty_weight", "penalty_step"):
            if getattr(self, name) is not None:
                _checks.positive(**{name: getattr(self, name)})
        if self.penalty_step is not None and self.penalty_weight is None:
            raise ValueError(
                f"penalty_step={self.penalty_step} has no effect without "
                "penalty_weight: give that too, or leave it out."
            )


# GUARD's length of the step that tells the curvature, in normalised units.
_PENALTY_STEP = 3.0


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.5)


@functools.cache
def regularize(weight: float, step: float) -> Callable[..., Any]:
    """Returns the curvature regulariser; one object, by which programs are looked up.

    Args:
      weight: of the curvature in the loss.
      step: that tells the curvature.
    """
    return functools.partial(curvature.regularize, weight=weight, step=step)


@functools.cache
def real_loss(model: ConvNet, weight: float, step: float) -> Callable[..., Any]:
    """Returns the loss of real images whose gradient is matched, regularised.

    Args:
      model: the network.
      weight: of `regularize`.
      step: of `regularize`.

    Example:
      >>> import jax
      >>> from ntk_privacy import models
      >>> from ntk_privacy.distillation import dc
      >>> net, key = models.ConvNet(2, width=1, depth=1), jax.random.key(0)
      >>> loss = dc.real_loss(net, 1.0, 0.1)
      >>> params = net.init_params(key, (4, 4, 3))
      >>> x, y = jax.random.uniform(key, (2, 4, 4, 3)), jax.numpy.asarray([0, 1])
      >>> loss(params, x, y).shape
      ()
    """

    def losses(params, images, labels):
        logits = model.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    flat = regularize(weight, step)(losses)
    return lambda params, images, labels: jnp.mean(flat(params, images, labels))


def _check(initial: str, images: ImageSet, config: Config) -> None:
    class_images.check_batch(images, config.batch_size)
    if initial == "real":
        class_images.check_start(images, config.images_per_class, "where dsa starts")


def _run(
    initial: str,
    images: ImageSet,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = _CHUNK,
    folder: Path | None = None,
) -> Distilled:
    del folder
    x, classes = class_images.arrays(images)
    model = ConvNet(images.num_classes, config.width)
    shared = {
        "key": key,
        "num_classes": images.num_classes,
        "images_per_class": config.images_per_class,
        "initial": initial,
        "optimizer": _sgd(config.learning_rate),
    }
    loss = None
    if config.penalty_weight is not None:
        step = config.penalty_step or _PENALTY_STEP
        weight = config.penalty_weight
        loss = real_loss(model, weight, step)  # pyright: ignore[reportArgumentType]  # flax's dataclass is hashable

    def go(state, done, callback):
        del done  # the state knows
        return gradient_matching.distill(
            x,
            classes,
            model=model,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            outer_steps=config.outer_steps,
            inner_epochs=config.inner_epochs,
            operations=images.operations if initial == "real" else (),
            real_loss=loss,
            state=state,
            chunk=chunk,
            callback=callback,
            mesh=sharding.all_devices(),
            **shared,
        )

    start = gradient_matching.init(x, classes, **shared)
    ran = stage("distill", start, go, config.num_steps)
    return ran.result._replace(losses=ran.losses.astype(np.float32))


def _short(images_per_class: int) -> int:
    """What two cores finish of the published loops; says so for other images."""
    if images_per_class not in _KNOWN:
        nearest = min(_KNOWN, key=lambda known: abs(known - images_per_class))
        warnings.warn(
            f"images_per_class={images_per_class} has no loops of its own in the cpu "
            f"preset: taking those of {nearest}.",
            stacklevel=3,
        )
    return 1 if images_per_class == 1 else 5


def _small(num_steps: int, learning_rate: float, /, **given: Any) -> Config:
    """What two cores finish; the numbers are for many images per class."""
    each = given.get("images_per_class", 10)
    sizes: dict[str, Any] = {
        "width": 32,
        "num_steps": 400 if each == 1 else num_steps,
        "batch_size": 64,
        "learning_rate": 0.2 if each == 1 else learning_rate,
    }
    if not {"outer_steps", "inner_epochs"} <= set(given):
        loops = _short(each)
        sizes |= {"outer_steps": loops, "inner_epochs": loops}
    return Config(**{**sizes, **given})


def _paper(**given: Any) -> Config:
    sizes: dict[str, Any] = {}
    if not {"outer_steps", "inner_epochs"} <= set(given):
        outer, inner = gradient_matching.loops(given.get("images_per_class", 10))
        sizes = {"outer_steps": outer, "inner_epochs": inner}
    return Config(**{**sizes, **given})


# From noise there is more way to go than from real images.
METHODS = (
    Method(
        name="dc",
        about="matches gradients (Zhao, Mopuri & Bilen, ICLR 2021).",
        config=Config,
        presets={
            "cpu": functools.partial(_small, 240, 2.0),
            "paper": _paper,
        },
        run=functools.partial(_run, "noise"),
        check=functools.partial(_check, "noise"),
        loss="distance of gradients, by layer",
    ),
    Method(
        name="dsa",
        about="matches gradients of augmented images (Zhao & Bilen, ICML 2021).",
        config=Config,
        presets={
            "cpu": functools.partial(_small, 60, 0.5),
            "paper": _paper,
        },
        run=functools.partial(_run, "real"),
        check=functools.partial(_check, "real"),
        loss="distance of gradients, by layer",
    ),
)
