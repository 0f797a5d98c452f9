"""The stages of sre2l and cda, each with its checkpoints, losses and clock."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._image_sets import Images
from experiments._sre2l_config import Config
from experiments._workdir import Workdir
from ntk_privacy import curvature
from ntk_privacy.distillation import cda, sre2l
from ntk_privacy.models import ResNet18
from ntk_privacy.resume import Timer
from ntk_privacy.training import adversarial, soft_labels, squeeze

STAGES = ("squeeze", "recover", "relabel", "post_train")
_CHUNK = 20


@functools.cache
def _regularize(mode: str, weight: float, step: float) -> Callable[..., Any]:
    # One object for all calls: compiled programs are looked up by it.
    return functools.partial(curvature.regularize, mode=mode, weight=weight, step=step)


def batch_loss(config: Config, images: Images) -> Any:
    """Returns the loss of the network that is squeezed.

    Args:
      config: has the regulariser and its numbers.
      images: what normalises them.
    """
    if config.regularizer == "none":
        return squeeze.cross_entropy
    if config.regularizer == "adversarial":
        mean, deviation = (
            tuple(map(float, v)) for v in (images.mean, images.deviation)
        )
        return adversarial.PGD(mean, deviation, eps=config.eps)
    weight, share = config.penalty_weight, config.penalty_share
    assert weight is not None
    assert share is not None
    return squeeze.Regularized(
        _regularize(config.regularizer, weight, config.penalty_step), share
    )


class Stages:
    """The stages of one configuration, one method each.

    Each leaves its last state in the folder and goes on from its last checkpoint.
    """

    def __init__(self, config: Config, workdir: Workdir, images: Images) -> None:
        self.config, self.workdir, self.images = config, workdir, images
        # Larger images than those of the small stem are ImageNet's.
        stem = "cifar" if images.x.shape[1] <= 64 else "imagenet"
        self.model = ResNet18(images.num_classes, config.width or 64, stem)
        names = (*STAGES, "evaluate")
        keys = jax.random.split(jax.random.key(config.seed), len(names))
        self.keys = dict(zip(names, keys, strict=True))
        self.timers = {name: Timer() for name in names}
        self.losses: dict[str, np.ndarray] = {}
        self.x = images.normalised(images.x)
        self.classes = jnp.asarray(images.classes)

    def _stage(
        self, name: str, num_steps: int, start: Any, go: Callable[..., Any]
    ) -> Any:
        """Returns the last state of a stage, from its last checkpoint.

        Args:
          name: of `STAGES`.
          num_steps: steps in all.
          start: the state before the first step.
          go: `(state, callback)` to the last state.
        """
        stage = _progress.stage(
            self.config, self.workdir.checkpoint_folder, self.timers[name]
        )

        def checked(state, done, callback):
            if done == num_steps:
                return state

            def watch(step, state, metrics):
                stop = callback(step, state, metrics)
                if not np.isfinite(np.asarray(metrics.get("loss", 0.0))).all():
                    raise ValueError(
                        f"The loss of {name} is not finite after {step} steps: lower "
                        "its learning rate or the penalty's weight."
                    )
                return stop

            return go(state, watch)

        ran = stage(name, start, checked, num_steps)
        self.losses[name] = ran.losses.astype(np.float32)
        return ran.result

    def squeeze(self) -> tuple[Any, Any]:
        """Returns parameters and statistics of the network that bears the data."""
        config: Any = self.config
        options = {"model": self.model, "key": self.keys["squeeze"]}
        start = squeeze.init(self.x, **options)
        per_epoch = len(self.x) // min(config.squeeze_batch_size, len(self.x))

        def go(state, callback):
            return squeeze.train(
                self.x,
                self.classes,
                num_epochs=config.squeeze_epochs,
                loss=batch_loss(config, self.images),
                learning_rate=config.squeeze_learning_rate,
                warmup_epochs=config.squeeze_warmup_epochs,
                batch_size=config.squeeze_batch_size,
                weight_decay=config.squeeze_weight_decay,
                flip="flip" in self.images.operations,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **options,
            )

        state = self._stage("squeeze", per_epoch * config.squeeze_epochs, start, go)
        return state.params, state.stats

    def _min_share(self) -> sre2l.MinShare | None:
        small = self.x.shape[1] <= 32
        if self.config.method == "cda":
            return cda.curriculum(low=0.4 if small else 0.08)
        return None if small else sre2l.constant_crop()

    def recover(self, network: tuple[Any, Any]) -> Any:
        """Returns the distilled images, normalised, and their classes."""
        config: Any = self.config
        shared = {
            "key": self.keys["recover"],
            "image_shape": self.x.shape[1:],
            "num_classes": self.images.num_classes,
            "images_per_class": config.images_per_class,
            "num_steps": config.num_steps,
            "learning_rate": config.learning_rate,
        }

        def go(state, callback):
            return sre2l.recover(
                *network,
                model=self.model,
                mean=tuple(map(float, self.images.mean)),
                deviation=tuple(map(float, self.images.deviation)),
                bn_weight=config.bn_weight,
                jitter=config.jitter,
                signed_jitter=config.dataset == "tiny_imagenet",
                min_share=self._min_share(),
                flip="flip" in self.images.operations,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **shared,
            ).state

        return self._stage("recover", config.num_steps, sre2l.init(**shared), go)

    def relabel(self, images: Any, network: tuple[Any, Any]) -> Any:
        """Returns the draws and soft labels of all batches."""
        config: Any = self.config
        shared = {
            "key": self.keys["relabel"],
            "num_outputs": self.images.num_classes,
            "num_epochs": config.num_epochs,
            "batch_size": config.batch_size,
            "flip": "flip" in self.images.operations,
        }
        start = soft_labels.init_labels(images, **shared)

        def go(state, callback):
            return sre2l.relabel(
                images,
                *network,
                model=self.model,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **shared,
            )

        return self._stage("relabel", len(start.order), start, go)

    def post_train(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Returns parameters and statistics of the student."""
        config: Any = self.config
        options = {"model": self.model, "key": self.keys["post_train"]}
        start = soft_labels.init_student(images, **options)

        def go(state, callback):
            return sre2l.post_train(
                images,
                labels,
                num_epochs=config.num_epochs,
                temperature=config.temperature,
                state=state,
                chunk=_CHUNK,
                callback=callback,
                **options,
            )

        state = self._stage("post_train", len(labels.order), start, go)
        return state.params, state.stats
