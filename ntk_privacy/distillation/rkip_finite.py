"""RKIP-finite as a method: a network is trained on all images, and attacked for fewer.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import rkip
from ntk_privacy.distillation.regressed import TaskConfig, images_per_class, targets
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.kernels import structured
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import kkt
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import victim

__all__ = ["METHOD", "Config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """Flags of RKIP-finite."""

    num_distilled: int = field(20, "Distilled images, balanced over the classes.")
    width: int = field(4096, "Units of every hidden layer.")
    depth: int = field(2, "Hidden layers, of networks and of the kernel.")
    dynamics: Literal["linearized", "standard"] = field(
        "linearized", "Training of the networks that are attacked."
    )
    stop_loss: float = field(1e-10, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = field(5000, "Limit of iterative training.")
    attack_steps: int | None = field(
        None, "Steps of the attack's search; none is its own default."
    )

    def __post_init__(self):
        _checks.at_least(
            1,
            num_distilled=self.num_distilled,
            width=self.width,
            depth=self.depth,
            max_train_steps=self.max_train_steps,
            attack_steps=1 if self.attack_steps is None else self.attack_steps,
        )
        _checks.positive(stop_loss=self.stop_loss)


def _check(images: ImageSet, config: Config) -> None:
    images_per_class(targets(images, config)[1], config.num_distilled)


def _run(
    images: ImageSet,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
    chunk: int = 50,
    folder: Path | None = None,
) -> Distilled:
    del chunk, folder
    dataset = images.regression(config.task)
    attacked = victim.train(
        dataset.x_train,
        dataset.y_train,
        key=key,
        width=config.width,
        depth=config.depth,
        dynamics=config.dynamics,
        stop_loss=config.stop_loss,
        max_steps=config.max_train_steps,
        dtype=jnp.dtype(config.precision),
        stage=stage,
    )
    settings, points = kkt.plan(
        kkt.Config(num_steps=config.attack_steps), config.dynamics
    )
    if config.dynamics == "standard":
        # The labels belong to one kernel: that of the trained network.
        points = kkt.parse_points("final")
    params = attacked.params_0 if points == (0.0,) else attacked.params_t

    def attack(num_images):
        ready = kkt.prepare(
            attacked.model,
            attacked.params_0,
            attacked.params_t,
            key=jax.random.fold_in(key, 1),
            image_shape=dataset.x_train.shape[1:],
            num_images=num_images,
            bounds=dataset.bounds,
            points=points,
            settings=settings,
        )
        return kkt.run_staged(ready, stage=stage, name="rkip_finite")

    return rkip.distill_finite(
        attack,
        kernel_fn=functools.partial(
            structured.ntk, attacked.model, params, trace_outputs=False
        ),
        num_images=config.num_distilled,
    )


METHOD = Method(
    name="rkip_finite",
    about="attacks a network trained on all images (Loo et al., ICLR 2024).",
    config=Config,
    presets={"paper": Config},
    run=_run,
    check=_check,
)
