"""Flags of SRe2L and CDA, and the published sizes by the image set they are like.

Sources: Yin, Xing & Shen, NeurIPS 2023 (SRe2L, arXiv:2306.13092); Yin & Shen, 2023
(CDA, arXiv:2311.18838); GUARD (arXiv:2403.10045): CIFAR-10, ImageNette, regularisers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ntk_privacy import _checks
from ntk_privacy.data import Foretold
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evasion import threat_model
from ntk_privacy.method import field

__all__ = ["Config", "small", "suited"]

_NO_PENALTY = ("none", "adversarial")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of both; the defaults are the papers' for CIFAR-10.

    Example:
      >>> from ntk_privacy.distillation import squeezed
      >>> squeezed.Config(regularizer="curvature", width=8).penalty_weight
      100.0
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> row, sizes = distillation.METHODS["cda"], {"width": 1, "blocks": (1,)}
      >>> config = row.configured(
      ...     **sizes, images_per_class=1, squeeze_epochs=1, num_steps=1, num_epochs=1
      ... )
      >>> row.run(images, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    regularizer: Literal[
        "none", "curvature", "loss_difference", "gradient", "adversarial"
    ] = field(
        "none",
        "Of the network that is squeezed: the curvature of its loss at the data, two "
        "cheaper penalties, or training on attacked images.",
    )
    images_per_class: int = field(10, "Distilled images of each class.")
    width: int = field(64, "Channels of ResNet18's first stage; 64 is whole.")
    blocks: tuple[int, ...] = field(
        (2, 2, 2, 2), "Blocks of each of its stages; fewer make a smaller network."
    )
    penalty_weight: float | None = field(
        None, "Of the regulariser in the loss; none is what the preset says."
    )
    penalty_step: float = field(
        3.0, "Length of the step that tells the curvature, in normalised units."
    )
    penalty_share: float = field(1.0, "Part of each batch that the regulariser sees.")
    eps: str | float = field(
        "1/255",
        "Bound of attacks, l_inf, in intensity: in training, and to judge by; number "
        "or fraction.",
        means=threat_model.bound,
    )
    squeeze_epochs: int = field(200, "Of the network that is squeezed.")
    squeeze_warmup: float = field(0.0, "Part of them in which its step grows.")
    squeeze_learning_rate: float = field(0.1, "Of its SGD.")
    squeeze_batch_size: int = field(128, "Of its training.")
    squeeze_weight_decay: float = field(5e-4, "Of its training.")
    num_steps: int = field(1000, "Of the recovery.")
    learning_rate: float = field(0.25, "Of the recovery's Adam.")
    bn_weight: float = field(0.01, "Of the match of batch statistics.")
    jitter: int = field(4, "Pixels that images are rolled by at most.")
    signed_jitter: bool = field(False, "Roll them up and left, too.")
    num_epochs: int = field(400, "Of training on the distilled set.")
    batch_size: int = field(128, "Of training on the distilled set.")
    temperature: float = field(30.0, "Of the soft labels.")

    def __post_init__(self):
        if self.regularizer in _NO_PENALTY:
            if self.penalty_weight is not None:
                raise ValueError(
                    f"penalty_weight={self.penalty_weight} is for a penalty: leave it "
                    f"out for regularizer={self.regularizer!r}."
                )
        elif self.penalty_weight is None:
            object.__setattr__(self, "penalty_weight", _WEIGHTS[self.regularizer])
        for count in (*self.blocks, len(self.blocks)):
            _checks.at_least(1, blocks=count)
        _checks.at_least(
            1,
            images_per_class=self.images_per_class,
            width=self.width,
            squeeze_epochs=self.squeeze_epochs,
            squeeze_batch_size=self.squeeze_batch_size,
            num_steps=self.num_steps,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
        )
        _checks.positive(
            penalty_weight=1.0 if self.penalty_weight is None else self.penalty_weight,
            penalty_step=self.penalty_step,
            penalty_share=self.penalty_share,
            eps=threat_model.bound(self.eps),
            squeeze_learning_rate=self.squeeze_learning_rate,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
        )
        _checks.in_range(
            0,
            1,
            penalty_share=self.penalty_share,
            eps=threat_model.bound(self.eps),
            squeeze_warmup=self.squeeze_warmup,
        )
        _checks.at_least(
            0,
            jitter=self.jitter,
            bn_weight=self.bn_weight,
            squeeze_weight_decay=self.squeeze_weight_decay,
        )

    @property
    def eps_is_read(self) -> bool:
        """Whether the bound of attacks changes what is made."""
        return self.regularizer == "adversarial"


# That of curvature is the paper's, which on few images starves the network. The others
# are ours, chosen by nothing; 1e-4 is the released code's default for both.
_WEIGHTS = {"curvature": 100.0, "loss_difference": 1.0, "gradient": 1.0}
# Of 0.1 and 1, by PGD100 on 300 validation images, seed 0.
_SMALL_WEIGHT = 1.0

_TINY: Mapping[str, Any] = {
    "squeeze_epochs": 50,
    "squeeze_warmup": 0.1,
    "squeeze_learning_rate": 0.2,
    "squeeze_batch_size": 256,
    "squeeze_weight_decay": 1e-4,
    "num_steps": 4000,
    "learning_rate": 0.1,
    "bn_weight": 1.0,
    "num_epochs": 300,
    "batch_size": 100,
    "temperature": 20.0,
}
# Of GUARD for ImageNette, but that images are shifted where it crops them in squeezing.
_IMAGENET: Mapping[str, Any] = {
    "squeeze_epochs": 50,
    "squeeze_learning_rate": 0.025,
    "squeeze_batch_size": 32,
    "squeeze_weight_decay": 1e-4,
    "num_steps": 2000,
    "num_epochs": 300,
    "batch_size": 100,
    "temperature": 20.0,
}
# Smaller images are rolled by less.
_LARGE, _LARGE_JITTER = 64, 32
# CDA's own where they differ.
_TINY_CDA: Mapping[str, Any] = {"learning_rate": 0.4, "bn_weight": 0.05}


def suited(name: str, preset: str, problem: ImageSet | Foretold) -> dict[str, Any]:
    """Returns what the papers take for the set that images are like.

    Args:
      name: of the method.
      preset: of its presets.
      problem: the images.
    """
    tiny = problem.kin == "tiny_imagenet"
    found: dict[str, Any] = {"signed_jitter": True} if tiny else {}
    if preset == "paper" and tiny:
        found |= {**_TINY, **(_TINY_CDA if name == "cda" else {})}
    if preset == "paper" and problem.kin == "imagenet":
        found |= _IMAGENET
        if problem.side is not None and problem.side > _LARGE:
            found["jitter"] = _LARGE_JITTER
    return found


def small(**given: Any) -> Config:
    """Returns what two cores finish, with some values in its place.

    Args:
      **given: fields.
    """
    sizes: dict[str, Any] = {
        "width": 8,
        # Of 8 and 16, as the weight.
        "squeeze_epochs": 8,
        "squeeze_batch_size": 64,
        "penalty_share": 0.25,
        "num_steps": 120,
        "num_epochs": 100,
        "batch_size": 50,
        "temperature": 20.0,
    }
    if given.get("regularizer") == "curvature" and given.get("penalty_weight") is None:
        sizes["penalty_weight"] = _SMALL_WEIGHT
        given.pop("penalty_weight", None)
    return Config(**{**sizes, **given})
