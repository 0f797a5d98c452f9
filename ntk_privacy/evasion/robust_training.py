"""A ConvNet to attack: trained on images as they are, or on adversarial ones of PGD.

`METHODS` has a record of each: `run(images, config, *, key, threat_model, stage)`
returns `Trained`. For images in pixel space; `training.adversarial` has the losses of
networks with running statistics.

Source of adversarial training: Madry et al., ICLR 2018 (arXiv:1706.06083).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, _loop
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.evasion import losses, pgd
from ntk_privacy.evasion import task as tasks
from ntk_privacy.evasion.task import LogitsFn
from ntk_privacy.evasion.threat_model import ThreatModel
from ntk_privacy.method import Method, by_name, field
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.resume import Stage, straight

__all__ = ["METHODS", "Config", "RobustConfig", "Trained"]

_CHUNK = 20
_MOMENTUM, _DECAY = 0.9, 5e-4
# Share of the steps over which the rate rises.
_RISE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of a training on images as they are.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, evasion
      >>> from ntk_privacy.evasion.robust_training import METHODS
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> bound = evasion.ThreatModel(eps=0.1)
      >>> for name in ("plain", "adversarial"):
      ...     row = METHODS[name]
      ...     config = row.configured(width=1, num_epochs=1)
      ...     made = row.run(images, config, key=key, threat_model=bound)
      ...     print(name, made.model.num_outputs)
      plain 2
      adversarial 2
    """

    width: int = field(32, "Channels of the ConvNet.")
    num_train: int | None = field(
        5000, "Training images, at most; none is all of them."
    )
    num_epochs: int = field(15, "Of training.")
    train_batch_size: int = field(128, "Of training.")
    learning_rate: float = field(0.1, "Greatest rate of training.")

    def __post_init__(self):
        _checks.at_least(
            1,
            width=self.width,
            num_train=1 if self.num_train is None else self.num_train,
            num_epochs=self.num_epochs,
            train_batch_size=self.train_batch_size,
        )
        _checks.positive(learning_rate=self.learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustConfig(Config):
    """Flags of a training on adversarial images."""

    train_attack_steps: int = field(7, "Of PGD in training.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, train_attack_steps=self.train_attack_steps)


class Trained(NamedTuple):
    """A network, and the statistics that normalise its images."""

    model: ConvNet
    params: Params
    mean: Float[np.ndarray, " d"]
    deviation: Float[np.ndarray, " d"]

    @property
    def logits_fn(self) -> LogitsFn:
        """Of images in [0, 1]."""
        return saved.logits_fn(**self._asdict())


class _State(NamedTuple):
    params: Any
    velocity: Any
    steps: jax.Array


class _Data(NamedTuple):
    x: jax.Array
    y: jax.Array
    mean: jax.Array
    deviation: jax.Array
    key_data: jax.Array


def _keyed(inner: Any, images: jax.Array, key: jax.Array) -> Any:
    del key
    return inner(images)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of SGD with a rate that rises, then falls to 0 (one cycle)."""

    model: ConvNet
    batch_size: int
    num_steps: int
    learning_rate: float
    flip: bool
    threat_model: ThreatModel | None
    attack_steps: int

    def attacked(self, logits_fn, x, y, key):
        """Returns the images of PGD from a random start, 2.5 eps / steps a step."""
        threat_model = self.threat_model
        if threat_model is None or threat_model.eps == 0:
            return x
        every = jnp.ones(y.shape, bool)
        partial = jax.tree_util.Partial
        task = tasks.Task(
            partial(_keyed, logits_fn),
            x,
            y,
            jnp.zeros((len(y), 2), x.dtype),
            every,
            threat_model.limits(x.dtype),
        )
        found = pgd.run(
            task,
            step=2.5 * threat_model.eps / self.attack_steps,
            decay=0,
            key=key,
            norm=threat_model.norm,
            num_steps=self.attack_steps,
            start=True,
            remember=False,
        )
        return jax.lax.stop_gradient(found.images)

    def __call__(self, state: _State, step, data: _Data):
        key = jax.random.fold_in(jax.random.wrap_key_data(data.key_data), step)
        key_batch, key_shift, key_flip, key_attack = jax.random.split(key, 4)
        n = self.batch_size
        chosen = jax.random.randint(key_batch, (n,), 0, len(data.x), jnp.int32)
        x, y = data.x[chosen], data.y[chosen]
        most = max(x.shape[1] // 8, 1)
        down, right = jax.random.randint(key_shift, (2, n), -most, most + 1)
        x = augmentation.translate(x, down, right)
        if self.flip:
            turned = jax.random.bernoulli(key_flip, shape=(n,))[:, None, None, None]
            x = jnp.where(turned, x[:, :, ::-1], x)

        def function(params):
            return saved.logits_fn(
                self.model, params, mean=data.mean, deviation=data.deviation
            )

        x = self.attacked(function(state.params), x, y, key_attack)

        def loss(params):
            return jnp.mean(losses.cross_entropy(function(params)(x), y, y))

        value, grads = jax.value_and_grad(loss)(state.params)
        done = (step + 1).astype(x.dtype) / (self.num_steps + 1)
        rate = self.learning_rate * jnp.minimum(done / _RISE, (1 - done) / (1 - _RISE))
        velocity = jax.tree.map(
            lambda v, g, p: _MOMENTUM * v + g + _DECAY * p,
            state.velocity,
            grads,
            state.params,
        )
        params = jax.tree.map(lambda p, v: p - rate * v, state.params, velocity)
        return _State(params, velocity, state.steps + 1), {"loss": value}


def _train(
    images: ImageSet,
    config: Config,
    *,
    key: Array,
    threat_model: ThreatModel,
    stage: Stage = straight,
) -> Trained:
    """Trains on all images of a set: who loads it reads `num_train`.

    Raises:
      ValueError: the loss is not finite.
    """
    model = ConvNet(images.num_classes, config.width)
    key_init, key_steps = jax.random.split(key)
    x = jnp.asarray(images.x_train)
    y = jnp.asarray(images.class_train, jnp.int32)
    size = min(config.train_batch_size, len(x))
    num_steps = config.num_epochs * -(-len(x) // size)
    robust = isinstance(config, RobustConfig)
    step = _Step(
        model,
        size,
        num_steps,
        config.learning_rate,
        images.operations != augmentation.NO_FLIP,
        threat_model if robust else None,
        config.train_attack_steps if robust else 1,
    )
    params = model.init_params(key_init, x.shape[1:], x.dtype)
    state = _State(
        params, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32)
    )
    mean, deviation = images.normal
    deviation = np.maximum(deviation, 1e-6)
    data = _Data(
        x, y, jnp.asarray(mean), jnp.asarray(deviation), _checks.key_data(key=key_steps)
    )

    def go(state: _State, done: int, callback: Callback) -> _State:
        return _loop.run(
            step,
            state,
            data,
            num_steps=num_steps,
            first_step=done,
            chunk=_CHUNK,
            callback=callback,
        )[0]

    state = stage("train", state, go, num_steps).result
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "The loss of training is not finite: lower "
            f"learning_rate={config.learning_rate}."
        )
    return Trained(model, state.params, mean, deviation)


METHODS = by_name(
    Method(
        name="plain",
        about="is trained on images as they are.",
        config=Config,
        presets={"cpu": Config},
        run=_train,
    ),
    Method(
        name="adversarial",
        about="is trained on images attacked by PGD within the bound (Madry et al.).",
        config=RobustConfig,
        presets={"cpu": RobustConfig},
        run=_train,
    ),
)
