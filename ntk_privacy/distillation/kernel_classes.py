"""KIP and RKIP beside methods that match classes: their pixels, their labels.

The same objectives as in `kernel_methods`, of normalised images, whose labels stay one
per class; a kernel is made of some of the images only.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, kip, rkip, search
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.kernels import infinite
from ntk_privacy.method import Method, field
from ntk_privacy.resume import Stage, straight

__all__ = ["METHODS", "Config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of both."""

    images_per_class: int = field(10, "Distilled images of each class.")
    num_steps: int = field(1000, "Steps of the search.")
    # In deviations rather than intensities, of which they are a third.
    learning_rate: float = field(1e-2, "Of Adam, in deviations per step.")
    num_targets: int = field(1000, "Images of which the kernel is made.")

    def __post_init__(self):
        _checks.at_least(
            1,
            images_per_class=self.images_per_class,
            num_steps=self.num_steps,
            num_targets=self.num_targets,
        )
        _checks.positive(learning_rate=self.learning_rate)


# One object for all calls: compiled loops are looked up by it.
@functools.cache
def _kernel():
    return infinite.mlp(depth=2)


@functools.cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate)


def _check(images: ImageSet, config: Config) -> None:
    least, c = int(class_images.sizes(images).min()), images.num_classes
    each = config.num_targets // c
    if not config.images_per_class <= each <= least:
        raise ValueError(
            f"num_targets={config.num_targets} is {each} of each class: use "
            f"{config.images_per_class * c} to {least * c}."
        )


def _run(
    objective: Any,
    noise: dict[str, float],
    images: ImageSet,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = 50,
    folder: Path | None = None,
) -> Distilled:
    del folder
    x, _ = class_images.arrays(images)
    each, c = config.num_targets // images.num_classes, images.num_classes
    rows = [np.flatnonzero(images.class_train == k)[:each] for k in range(c)]
    chosen = np.concatenate(rows)
    eye = np.eye(c, dtype=np.float32) - 1 / c
    problem = x[chosen], jnp.asarray(eye[images.class_train[chosen]], jnp.float32)
    shared = {
        "key": key,
        "images_per_class": config.images_per_class,
        "optimizer": _adam(config.learning_rate),
        **noise,
    }

    def go(state, done, callback):
        del done  # the state knows
        return objective.distill(
            *problem,
            kernel_fn=_kernel(),
            num_steps=config.num_steps,
            state=state,
            chunk=chunk,
            callback=callback,
            **shared,
        )

    ran = stage("distill", search.init(*problem, **shared), go, config.num_steps)
    found = ran.result
    labels = jnp.asarray(np.asarray(found.labels).argmax(1), jnp.int32)
    return found._replace(labels=labels, losses=ran.losses.astype(np.float32))


def _method(name: str, about: str, objective: Any, **noise: float) -> Method[Config]:
    return Method(
        name=name,
        about=about,
        config=Config,
        presets={"cpu": Config, "paper": Config},
        run=functools.partial(_run, objective, noise),
        check=_check,
    )


METHODS = (
    _method("kip", "matches predictions (Nguyen et al., ICLR 2021).", kip),
    _method("rkip", "matches regressors (Loo et al., ICLR 2024).", rkip),
    # The published "RKIP 5% noise".
    _method(
        "rkip_noise",
        "is RKIP with pixels that stay noise (ibid.).",
        rkip,
        noise_ratio=0.05,
    ),
)
"""Of the names that `distillation.METHODS` has too: the same objectives."""
