"""RKIP-finite as a method: a network is trained on all images, and attacked for fewer.

Source: Loo et al., ICLR 2024 (arXiv:2302.01428).
"""

import dataclasses
import functools
from pathlib import Path

import jax

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import rkip
from ntk_privacy.distillation.networks import AttackedConfig, attacked_network
from ntk_privacy.distillation.regressed import images_per_class, targets
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.kernels import structured
from ntk_privacy.method import Method, field
from ntk_privacy.reconstruction import kkt
from ntk_privacy.resume import Stage, straight

__all__ = ["METHOD", "Config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AttackedConfig):
    """Flags of RKIP-finite.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> row = distillation.METHODS["rkip_finite"]
      >>> config = row.configured(num_distilled=2, width=16, attack_steps=2)
      >>> row.run(images, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    num_distilled: int = field(20, "Distilled images, balanced over the classes.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, num_distilled=self.num_distilled)


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
    attacked = attacked_network(
        dataset.x_train, dataset.y_train, config, key=key, stage=stage
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
