"""A ConvNet to attack: trained plainly or on adversarial images of PGD, resumable.

Source of adversarial training: Madry et al., ICLR 2018 (arXiv:1706.06083).
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _progress
from experiments._image_sets import Images
from ntk_privacy import _loop
from ntk_privacy.data import augmentation
from ntk_privacy.evasion import ThreatModel, losses, pgd
from ntk_privacy.evasion import task as tasks
from ntk_privacy.models import ConvNet, saved
from ntk_privacy.resume import Timer

_CHUNK = 20
_MOMENTUM, _DECAY = 0.9, 5e-4
# Share of the steps over which the rate rises.
_RISE = 0.2


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


def train(
    config: Any,
    images: Images,
    threat_model: ThreatModel,
    *,
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
    timer: Timer,
    class_names: tuple[str, ...],
) -> None:
    """Trains on an image set and saves the network.

    Args:
      config: of `experiments.evade`.
      images: to train on.
      threat_model: of the adversarial images.
      folder: of the network.
      checkpoints: of the training.
      timer: of the training.
      class_names: to note in the folder.

    Raises:
      ValueError: the loss is not finite.
    """
    model = ConvNet(images.num_classes, config.width)
    key_init, key_steps = jax.random.split(jax.random.key(config.seed))
    x, y = jnp.asarray(images.x), jnp.asarray(images.classes, jnp.int32)
    size = min(config.train_batch_size, len(x))
    num_steps = config.num_epochs * -(-len(x) // size)
    step = _Step(
        model,
        size,
        num_steps,
        config.learning_rate,
        images.operations != augmentation.NO_FLIP,
        threat_model if config.train == "adversarial" else None,
        config.train_attack_steps,
    )
    params = model.init_params(key_init, x.shape[1:], x.dtype)
    state = _State(
        params, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32)
    )
    deviation = np.maximum(images.deviation, 1e-6)
    data = _Data(
        x,
        y,
        jnp.asarray(images.mean),
        jnp.asarray(deviation),
        jax.random.key_data(key_steps),
    )

    def go(state, done, callback):
        return _loop.run(
            step,
            state,
            data,
            num_steps=num_steps,
            first_step=done,
            chunk=_CHUNK,
            callback=callback,
        )[0]

    stage = _progress.stage(
        config, checkpoints.parent, timer, description=f"train, {config.train}"
    )
    state = stage(checkpoints.name, state, go, num_steps).result
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "The loss of training is not finite: lower "
            f"learning_rate={config.learning_rate}."
        )
    saved.save(
        folder,
        model,
        state.params,
        image_shape=x.shape[1:],
        mean=images.mean,
        deviation=deviation,
        class_names=class_names,
        about={
            "dataset": config.dataset,
            "train": config.train,
            "num_train": len(x),
            "num_epochs": config.num_epochs,
            "seed": config.seed,
            "seconds": [timer.run, timer.compile],
        },
    )
