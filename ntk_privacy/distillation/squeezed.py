"""SRe2L and CDA as methods: squeeze, recover and relabel in turn; records.

Source: Yin, Xing & Shen, NeurIPS 2023 (SRe2L, arXiv:2306.13092); Yin & Shen, 2023
(CDA, arXiv:2311.18838); from a robust network: GUARD (arXiv:2403.10045).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import curvature, resume
from ntk_privacy._types import Params
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import cda, class_images, crop_share, sre2l
from ntk_privacy.distillation.crop_share import MinShare
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.distillation.squeezed_settings import Config, small, suited
from ntk_privacy.evasion import threat_model
from ntk_privacy.method import Method
from ntk_privacy.models import ResNet18
from ntk_privacy.models.resnet import Stats
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import adversarial, soft_labels, squeeze
from ntk_privacy.training.soft_labels import SoftLabels
from ntk_privacy.training.squeeze import BatchLoss

__all__ = ["METHODS", "Config", "Keys", "Squeezed", "batch_loss", "keys", "network"]

REMEDY = "lower its learning rate or the penalty's weight."
# Steps between checkpoints.
_CHUNK = 20
# Larger images than those of the small stem are ImageNet's; CIFAR's are not cropped.
_SMALL_STEM, _CIFAR = 64, 32


class Squeezed(NamedTuple):
    """What images were recovered from, and what a student learns of them.

    params, stats: of the squeezed network. soft_labels: its logits of every view that a
    student sees. losses: of each stage, NaN where a step has none.
    """

    params: Params
    stats: Stats
    soft_labels: SoftLabels
    losses: dict[str, np.ndarray]


class Keys(NamedTuple):
    """One typed key for each stage, and for who judges the student."""

    squeeze: Array
    recover: Array
    relabel: Array
    post_train: Array
    evaluate: Array


def keys(key: Array) -> Keys:
    """Returns the keys of the stages of a method that is given this one.

    Args:
      key: typed key.
    """
    return Keys(*jax.random.split(key, len(Keys._fields)))


@runtime_checkable
class Sized(Protocol):
    """What says how large a network is: flags of a method, or of a judge."""

    @property
    def width(self) -> int: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...


def network(images: ImageSet, config: Sized) -> ResNet18:
    """Returns the network that is squeezed, and that of a student.

    Args:
      images: whose classes it tells apart.
      config: has its width and blocks.

    Example:
      >>> from ntk_privacy import data, distillation
      >>> sre2l = distillation.METHODS["sre2l"]
      >>> images = data.load_set("digits")
      >>> config = sre2l.configured("cpu", images)
      >>> distillation.squeezed.network(images, config).num_outputs
      10
    """
    stem = "cifar" if images.side <= _SMALL_STEM else "imagenet"
    return ResNet18(images.num_classes, config.width, stem, config.blocks)


@functools.cache
def _regularize(mode: str, weight: float, step: float) -> Callable[..., Any]:
    # One object for all calls: compiled programs are looked up by it.
    return functools.partial(curvature.regularize, mode=mode, weight=weight, step=step)


def _normal(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation as what is hashable."""
    mean, deviation = images.normal
    return tuple(map(float, mean)), tuple(map(float, deviation))


def batch_loss(images: ImageSet, config: Config) -> BatchLoss:
    """Returns the loss of the network that is squeezed.

    Args:
      images: what normalises them.
      config: has the regulariser and its numbers.
    """
    if config.regularizer == "none":
        return squeeze.cross_entropy
    if config.regularizer == "adversarial":
        return adversarial.PGD(*_normal(images), eps=threat_model.bound(config.eps))
    weight = config.penalty_weight
    assert weight is not None
    return squeeze.Regularized(
        _regularize(config.regularizer, weight, config.penalty_step),
        config.penalty_share,
    )


def _squeeze(
    images: ImageSet, config: Config, *, key: Array, stage: Stage, chunk: int
) -> resume.Ran[Any]:
    x, classes = class_images.arrays(images)
    options = {"model": network(images, config), "key": key}

    def go(state, done, callback):
        del done  # the state knows
        return squeeze.train(
            x,
            classes,
            num_epochs=config.squeeze_epochs,
            loss=batch_loss(images, config),
            learning_rate=config.squeeze_learning_rate,
            warmup_epochs=int(config.squeeze_warmup * config.squeeze_epochs),
            batch_size=config.squeeze_batch_size,
            weight_decay=config.squeeze_weight_decay,
            flip=images.flips,
            state=state,
            chunk=chunk,
            callback=callback,
            **options,
        )

    per_epoch = len(x) // min(config.squeeze_batch_size, len(x))
    start = squeeze.init(x, **options)
    return stage("squeeze", start, go, per_epoch * config.squeeze_epochs)


def _recover(
    images: ImageSet,
    config: Config,
    params: Params,
    stats: Stats,
    *,
    min_share: MinShare | None,
    key: Array,
    stage: Stage,
    chunk: int,
) -> resume.Ran[Distilled]:
    mean, deviation = _normal(images)
    shared = {
        "key": key,
        "image_shape": images.image_shape,
        "num_classes": images.num_classes,
        "images_per_class": config.images_per_class,
        "num_steps": config.num_steps,
        "learning_rate": config.learning_rate,
    }

    def go(state, done, callback):
        del done
        return sre2l.recover(
            params,
            stats,
            model=network(images, config),
            mean=mean,
            deviation=deviation,
            bn_weight=config.bn_weight,
            jitter=config.jitter,
            signed_jitter=config.signed_jitter,
            min_share=min_share,
            flip=images.flips,
            state=state,
            chunk=chunk,
            callback=callback,
            **shared,
        )

    return stage("recover", sre2l.init(**shared), go, config.num_steps)


def _relabel(
    found: Float[Array, "m h w d"],
    images: ImageSet,
    config: Config,
    params: Params,
    stats: Stats,
    *,
    key: Array,
    stage: Stage,
    chunk: int,
) -> resume.Ran[SoftLabels]:
    shared = {
        "key": key,
        "num_outputs": images.num_classes,
        "num_epochs": config.num_epochs,
        "batch_size": config.batch_size,
        "flip": images.flips,
    }

    def go(state, done, callback):
        del done
        return soft_labels.relabel(
            found,
            params,
            stats,
            model=network(images, config),
            state=state,
            chunk=chunk,
            callback=callback,
            **shared,
        )

    start = soft_labels.init_labels(found, **shared)
    return stage("relabel", start, go, len(start.order))


def _run(
    crop: Callable[[int], MinShare | None],
    images: ImageSet,
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
    chunk: int = _CHUNK,
    folder: Path | None = None,
) -> Distilled:
    del folder
    each = keys(key)
    loop = {"stage": resume.finite(stage, REMEDY), "chunk": chunk}
    squeezed = _squeeze(images, config, key=each.squeeze, **loop)
    teacher = squeezed.result.params, squeezed.result.stats
    recovered = _recover(
        images,
        config,
        *teacher,
        min_share=crop(images.side),
        key=each.recover,
        **loop,
    )
    made = recovered.result
    labelled = _relabel(made.images, images, config, *teacher, key=each.relabel, **loop)
    losses = {
        name: ran.losses.astype(np.float32)
        for name, ran in (
            ("squeeze", squeezed),
            ("recover", recovered),
            ("relabel", labelled),
        )
    }
    return Distilled(
        images=made.images,
        labels=made.labels,
        losses=losses["recover"],
        state=Squeezed(*teacher, labelled.result, losses),
        nonfinite=jnp.asarray(False),
    )


def _constant(side: int) -> MinShare | None:
    return None if side <= _CIFAR else crop_share.constant_crop()


def _shrinking(side: int) -> MinShare | None:
    return cda.curriculum(low=0.4 if side <= _CIFAR else 0.08)


METHODS = tuple(
    Method(
        name=name,
        about=about,
        config=Config,
        presets={"cpu": small, "paper": Config},
        run=functools.partial(_run, crop),
        loss="loss of the recovery",
        suited=functools.partial(suited, name),
    )
    for name, about, crop in (
        (
            "sre2l",
            "recovers images from a trained network, softly labelled (NeurIPS 2023).",
            _constant,
        ),
        (
            "cda",
            "is SRe2L with crops that grow smaller (Yin & Shen, 2023).",
            _shrinking,
        ),
    )
)
