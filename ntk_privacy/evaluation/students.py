"""Networks trained from scratch on a set of classes, then tested.

Source: the evaluation of DC, DSA and DM (Zhao & Bilen), see `evaluation.protocol`; the
curvature regulariser is GUARD's (arXiv:2403.10045).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntk_privacy import _checks
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import protocol
from ntk_privacy.evaluation.judged import Judged, has_classes
from ntk_privacy.method import Method, field
from ntk_privacy.models import MLP, ConvNet, convnet
from ntk_privacy.models.convnet import Classifier
from ntk_privacy.resume import Stage, straight

__all__ = ["JUDGES", "SMALL", "ArchitecturesConfig", "Config", "network", "train"]

SMALL: dict[str, Any] = {
    "width": 32,
    "num_networks": 3,
    "num_epochs": 100,
    "train_learning_rate": 0.1,
}
"""What two cores finish: a tenth of the epochs, ten times the step."""

_CHUNK = 50
_BATCH = 256
# The step of the others breaks it: it has no normalisation.
_LARGEST_RATES = {"MLP": 0.01}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Networks trained on the set.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> from ntk_privacy.distillation import real
      >>> some = real.of_classes(images, images_per_class=1, key=key)
      >>> judge = evaluation.JUDGES["students"]
      >>> config = judge.configured(width=1, num_networks=1, num_epochs=1)
      >>> found = judge.run(images, some, config, key=key)
      >>> len(found.figures["accuracy"])
      1
    """

    width: int = field(128, "Channels of the ConvNet.")
    num_networks: int = field(5, "Networks that are trained on the set.")
    num_epochs: int = field(1000, "Of their training.")
    train_learning_rate: float | None = field(
        0.01, "Of their training; none is the step size that was learnt."
    )

    def __post_init__(self):
        _checks.at_least(
            1,
            width=self.width,
            num_networks=self.num_networks,
            num_epochs=self.num_epochs,
        )
        if self.train_learning_rate is not None:
            _checks.positive(train_learning_rate=self.train_learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchitecturesConfig(Config):
    """Networks of several architectures trained on the set.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> from ntk_privacy.distillation import real
      >>> some = real.of_classes(images, images_per_class=1, key=key)
      >>> judge = evaluation.JUDGES["architectures"]
      >>> config = judge.configured(
      ...     width=1, num_networks=1, num_epochs=1, architectures=("MLP",)
      ... )
      >>> found = judge.run(images, some, config, key=key)
      >>> list(found.figures["accuracy"])
      ['ConvNetW1', 'MLP']
    """

    architectures: tuple[str, ...] = field(
        ("MLP", "ConvNetW32D2", "ConvNetW32ASNN"),
        "To train besides the ConvNet that condenses: MLP, or names of ConvNets with "
        "D and W and a number, AS, AR, AL, ASwish, NN, BN, LN, IN, GN, NP, MP, AP.",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.named(architectures=self.architectures)
        for name in self.architectures:
            network(name, 10)

    def names(self) -> tuple[str, ...]:
        """Returns all architectures, that which condenses first."""
        own = f"ConvNetW{self.width}"
        return (own, *(name for name in self.architectures if name != own))


@functools.cache
def network(name: str, num_classes: int) -> MLP | ConvNet:
    """Returns an architecture by its name.

    Args:
      name: MLP, or that of a ConvNet, see `models.convnet.named`.
      num_classes: outputs.

    Raises:
      ValueError: an unknown name.
    """
    if name == "MLP":
        return MLP((128, 128), num_classes)
    return convnet.named(name, num_outputs=num_classes)


def train(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
    model: Classifier | None = None,
    targets: Float[Array, "t h w d"] | None = None,
    regularize: Callable[..., Any] | None = None,
    name: str = "students",
) -> protocol.Evaluated:
    """Trains networks on a set and tests them.

    Args:
      images: to test on; they say how to augment.
      distilled: normalised images with their classes.
      config: of the training.
      key: typed key.
      stage: runs the training.
      model: of the networks; None is the ConvNet of the config's width.
      targets: normalised images to classify besides.
      regularize: a transform of the loss.
      name: of the stage.

    Raises:
      ValueError: the set has targets for labels or images of another shape, or a learnt
        step size is of no use.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, distillation
      >>> from ntk_privacy.evaluation import students
      >>> images = data.load_set("digits").subset(num_train=300, num_test=50)
      >>> method = distillation.METHODS["dm"]
      >>> sizes = {"width": 4, "num_steps": 2, "batch_size": 4, "images_per_class": 1}
      >>> made = method.run(images, method.configured(**sizes), key=jax.random.key(0))
      >>> config = students.Config(width=4, num_networks=2, num_epochs=2)
      >>> found = students.train(images, made, config, key=jax.random.key(1))
      >>> found.accuracy.shape
      (2,)
    """
    if not has_classes(distilled):
        raise ValueError(
            "labels are targets to regress on: give a set with one class per image, "
            "or use the judge transfer."
        )
    shape = tuple(distilled.images.shape[1:])
    if shape != images.image_shape:
        raise ValueError(
            f"the set has images of shape {shape}, the test images "
            f"{images.image_shape}: give those that it was made of."
        )
    rate = config.train_learning_rate
    if rate is None:
        learnt = distilled.step_size
        rate = 0.01 if learnt is None else learnt
        _checks.positive(step_size=rate)
    model = model or ConvNet(images.num_classes, config.width)
    x, labels = jnp.asarray(distilled.images), jnp.asarray(distilled.labels, jnp.int32)

    def go(state, done, callback):
        del done  # the state knows
        return protocol.evaluate(
            x,
            labels,
            jnp.asarray(images.normalised(images.x_test)),
            jnp.asarray(images.class_test),
            model=model,
            key=key,
            num_networks=config.num_networks,
            num_epochs=config.num_epochs,
            targets=targets,
            operations=images.operations,
            learning_rate=rate,
            batch_size=_BATCH,
            regularize=regularize,
            chunk=_CHUNK,
            state=state,
            callback=callback,
        )

    start = protocol.init(x, model=model, key=key, num_networks=config.num_networks)
    num_steps = (config.num_epochs + 1) * -(-len(x) // min(_BATCH, len(x)))
    return stage(name, start, go, num_steps).result


def _run(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: jax.Array,
    stage: Stage = straight,
) -> Judged:
    found = train(images, distilled, config, key=key, stage=stage)
    return Judged({"accuracy": found.accuracy.tolist()}, found.state.params)


def _run_architectures(
    images: ImageSet,
    distilled: Distilled,
    config: ArchitecturesConfig,
    *,
    key: jax.Array,
    stage: Stage = straight,
) -> Judged:
    told, made = {}, {}
    for name in config.names():
        rate = config.train_learning_rate
        if rate is not None:
            rate = min(rate, _LARGEST_RATES.get(name, rate))
        found = train(
            images,
            distilled,
            dataclasses.replace(config, train_learning_rate=rate),
            key=key,
            stage=stage,
            model=network(name, images.num_classes),
            name=f"students_{name}",
        )
        told[name], made[name] = found.accuracy.tolist(), found.state.params
    return Judged({"accuracy": told}, made)


JUDGES = (
    Method(
        name="students",
        about="trains ConvNets on the set and tests them (Zhao & Bilen).",
        config=Config,
        presets={"cpu": functools.partial(Config, **SMALL), "paper": Config},
        run=_run,
    ),
    Method(
        name="architectures",
        about="trains networks of several architectures on the set and tests them.",
        config=ArchitecturesConfig,
        presets={
            "cpu": functools.partial(ArchitecturesConfig, **SMALL),
            "paper": ArchitecturesConfig,
        },
        run=_run_architectures,
    ),
)
