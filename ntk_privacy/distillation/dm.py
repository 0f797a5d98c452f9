"""DM and its robust kin as methods: flags, presets, records.

Sources: Zhao & Bilen, WACV 2023 (arXiv:2110.04181); robust means: the RDM-DC paper.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_privacy import _checks, sharding
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import class_images, distribution_matching, robust_mean
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.method import Method, field
from ntk_privacy.models import ConvNet
from ntk_privacy.resume import Stage, straight

__all__ = ["METHODS", "Config", "RobustConfig", "mean_fn"]

# Steps between checkpoints.
_CHUNK = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of a mean that drops nothing, or nothing that depends on a rate.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> sizes = {"images_per_class": 1, "width": 1, "num_steps": 1, "batch_size": 2}
      >>> for name in ("dm", "dm_median"):
      ...     row = distillation.METHODS[name]
      ...     made = row.run(images, row.configured(**sizes), key=jax.random.key(0))
      ...     print(name, made.images.shape)
      dm (2, 8, 8, 1)
      dm_median (2, 8, 8, 1)
    """

    images_per_class: int = field(50, "Condensed images of each class.")
    width: int = field(128, "Channels of the ConvNet.")
    num_steps: int = field(20_000, "Steps of the search.")
    batch_size: int = field(256, "Real images of each class that a step sees.")
    learning_rate: float = field(1.0, "Of the images' SGD.")

    def __post_init__(self):
        _checks.at_least(
            1,
            images_per_class=self.images_per_class,
            width=self.width,
            num_steps=self.num_steps,
            batch_size=self.batch_size,
        )
        _checks.positive(learning_rate=self.learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustConfig(Config):
    """Flags of a mean that drops as much as there may be poison.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> sizes = {"images_per_class": 1, "width": 1, "num_steps": 1, "batch_size": 2}
      >>> for name in ("rdm", "dm_truncated", "dm_trimmed", "dm_entropy"):
      ...     row = distillation.METHODS[name]
      ...     made = row.run(images, row.configured(**sizes), key=jax.random.key(0))
      ...     print(name, made.images.shape)
      rdm (2, 8, 8, 1)
      dm_truncated (2, 8, 8, 1)
      dm_trimmed (2, 8, 8, 1)
      dm_entropy (2, 8, 8, 1)
    """

    rate: float = field(0.01, "Poison to expect, as a share of all images.")


@functools.cache
def mean_fn(name: str, rate: float) -> robust_mean.MeanFn:
    """Returns the mean of a method; one object, by which programs are looked up.

    Args:
      name: of `METHODS`.
      rate: share of poison within a class.
    """
    makers: dict[str, Callable[[], robust_mean.MeanFn]] = {
        "dm": lambda: robust_mean.mean,
        "dm_median": lambda: robust_mean.median,
        "rdm": lambda: robust_mean.calibrated(rate=rate),
        "dm_truncated": lambda: robust_mean.truncated(rate=rate),
        "dm_trimmed": lambda: robust_mean.trimmed(rate=rate),
        "dm_entropy": lambda: robust_mean.quantum_entropy(rate=rate),
    }
    return makers[name]()


@functools.cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.5)


def _rate_in_class(images: ImageSet, config: Config) -> float:
    return getattr(config, "rate", 0.0) * images.num_classes


def _check(name: str, images: ImageSet, config: Config) -> None:
    class_images.check_batch(images, config.batch_size)
    in_class = _rate_in_class(images, config)
    if not 0 <= in_class < 1 / 3:
        raise ValueError(
            f"rate={getattr(config, 'rate', 0.0)} of all images is {in_class:g} of one "
            "class, which must lie in [0, 1/3): use a rate below "
            f"{1 / 3 / images.num_classes:.4f}."
        )
    shape = jax.ShapeDtypeStruct((config.batch_size, 1), jnp.float32)
    try:
        jax.eval_shape(mean_fn(name, in_class), shape)
    except ValueError as error:
        raise ValueError(f"batch_size={config.batch_size}: {error}") from error


def _run(
    name: str,
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
    shared = {
        "key": key,
        "num_classes": images.num_classes,
        "images_per_class": config.images_per_class,
        "optimizer": _sgd(config.learning_rate),
    }

    def go(state, done, callback):
        del done  # the state knows
        return distribution_matching.distill(
            x,
            classes,
            model=ConvNet(images.num_classes, config.width),
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            mean_fn=mean_fn(name, _rate_in_class(images, config)),
            operations=images.operations,
            state=state,
            chunk=chunk,
            callback=callback,
            mesh=sharding.all_devices(),
            **shared,
        )

    start = distribution_matching.init(x, classes, **shared)
    ran = stage("distill", start, go, config.num_steps)
    return ran.result._replace(losses=ran.losses.astype(np.float32))


# What two cores finish.
_SMALL: dict[str, Any] = {
    "images_per_class": 10,
    "width": 32,
    "num_steps": 300,
    # Half the paper's: of fewer images a calibration sees less of the poison.
    "batch_size": 128,
    "learning_rate": 50.0,
}


def _method(name: str, about: str, config: type[Config] = RobustConfig) -> Method:
    return Method(
        name=name,
        about=about,
        config=config,
        presets={"cpu": functools.partial(config, **_SMALL), "paper": config},
        run=functools.partial(_run, name),
        check=functools.partial(_check, name),
        loss="squared feature distance",
    )


METHODS = (
    _method(
        "dm",
        "matches mean features in random ConvNets (Zhao & Bilen, WACV 2023).",
        Config,
    ),
    _method("rdm", "DM with a mean calibrated against poison (RDM-DC)."),
    _method("dm_truncated", "DM with a mean of the least distant features."),
    _method("dm_trimmed", "DM with a trimmed mean of each feature."),
    _method("dm_median", "DM with a median of each feature.", Config),
    _method("dm_entropy", "DM with a mean weighted by quantum entropy."),
)
