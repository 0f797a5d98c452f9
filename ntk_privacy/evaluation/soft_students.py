"""Students of soft labels: trained on a recovered set, attacked, and how curved.

Source: Yin, Xing & Shen, NeurIPS 2023 (SRe2L, arXiv:2306.13092); the attacks and the
top eigenvalue of the loss's Hessian in the image: GUARD (arXiv:2403.10045).
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntk_privacy import _checks, curvature, resume
from ntk_privacy._types import Params
from ntk_privacy.data.image_set import ImageSet
from ntk_privacy.distillation import squeezed
from ntk_privacy.distillation.search import Distilled
from ntk_privacy.evaluation import named_attacks
from ntk_privacy.evaluation import robust_accuracy as robust
from ntk_privacy.evaluation.evasion_budget import Budget
from ntk_privacy.evaluation.judged import Judged
from ntk_privacy.evasion import threat_model
from ntk_privacy.method import Method, field
from ntk_privacy.models import ResNet18, saved
from ntk_privacy.models.resnet import Stats
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import soft_labels as soft
from ntk_privacy.training import squeeze
from ntk_privacy.training.soft_labels import SoftLabels

__all__ = [
    "ATTACKS",
    "JUDGE",
    "SMALL",
    "Attacked",
    "Config",
    "Network",
    "accuracy",
    "attacked",
    "eigenvalues",
    "train",
    "trained",
]

ATTACKS: Mapping[str, str] = {
    "pgd100": "pgd100",
    "square": "square_rescaled",
    "autoattack": "autoattack",
    # As GUARD runs it: at its constant next to nothing happens.
    "cw": "cw_guard",
    "mim": "mim",
    "apgd_t": "apgd_t",
}
"""Column of the results and the attack it is, of `evasion.METHODS`.

Of GUARD's evaluation but apgd_t, which is the second stage of AutoAttack and decides
what it leaves, at a quarter of its cost.
"""

_CHUNK = 20
_ATTACK_BATCH = 50
_NUM_EIGENVALUES = 128
# More than the classes, of which a network of ReLUs has at most as many eigenvalues.
_EXTRA_MATVECS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Attacks on a network; the defaults are those of GUARD's evaluation.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> sre2l = distillation.METHODS["sre2l"]
      >>> sizes = {"width": 1, "blocks": (1,), "num_epochs": 1}
      >>> config = sre2l.configured(
      ...     **sizes, images_per_class=1, squeeze_epochs=1, num_steps=1
      ... )
      >>> made = sre2l.run(images, config, key=key)
      >>> judge = evaluation.JUDGES["soft_students"]
      >>> few = judge.configured(**sizes, attacks=("pgd100",), attack_steps=1)
      >>> sorted(judge.run(images, made, few, key=key).figures)
      ['accuracy', 'autoattack_left', 'top_hessian_eigenvalue']
    """

    attacks: tuple[str, ...] = field(
        ("pgd100", "square", "autoattack", "cw", "mim"),
        "Of " + ", ".join(ATTACKS) + ".",
    )
    eps: str | float = field(
        "1/255",
        "Bound of the attacks, l_inf, in intensity; number or fraction.",
        means=threat_model.bound,
    )
    attack_steps: int | None = field(
        None, "Of the attacks, but pgd100; none is their own."
    )
    width: int = field(64, "Channels of ResNet18's first stage; 64 is whole.")
    blocks: tuple[int, ...] = field(
        (2, 2, 2, 2), "Blocks of each of its stages; fewer make a smaller network."
    )
    num_epochs: int = field(400, "Of training on the distilled set, as it is labelled.")
    temperature: float = field(30.0, "Of the soft labels.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, width=self.width, num_epochs=self.num_epochs)
        _checks.positive(temperature=self.temperature)
        if self.attacks:
            _checks.named(attacks=self.attacks)
        for name in self.attacks:
            _checks.one_of(tuple(ATTACKS), attacks=name)
        _checks.positive(eps=self.threat_model.eps)


SMALL: dict[str, Any] = {"attacks": ("pgd100", "mim", "apgd_t")}
"""Attacks that two cores finish: AutoAttack takes half an hour of one."""


class Network(NamedTuple):
    """params, stats: of a network with running statistics. losses: of its training."""

    params: Params
    stats: Stats
    losses: Float[np.ndarray, " steps"] | None = None


class Attacked(NamedTuple):
    """Shares of images that are read rightly.

    accuracy: "clean", and by attack, named with what of it is not as its name tells.
    left: of attacks in stages, the share left after each.
    """

    accuracy: dict[str, float]
    left: dict[str, dict[str, float]]


def train(
    images: Float[Array, "m h w d"],
    labels: SoftLabels,
    *,
    model: ResNet18,
    key: Array,
    num_epochs: int,
    temperature: _checks.Number = 20.0,
    stage: Stage = straight,
    chunk: int = _CHUNK,
) -> Network:
    """Trains a fresh network on the views and soft labels of a recovered set.

    Args:
      images: the set, normalised.
      labels: of every view.
      model: of the student.
      key: typed key; fixes the start.
      num_epochs: that the labels have.
      temperature: of the labels.
      stage: runs the loop, `post_train`.
      chunk: steps between checkpoints.

    Raises:
      ValueError: the loss is not finite, or see `soft_labels.post_train`.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, distillation, evaluation
      >>> grey = np.linspace(0, 1, 512).reshape(8, 8, 8)
      >>> images, key = data.ImageSet.from_arrays(grey, [0, 1] * 4), jax.random.key(0)
      >>> sre2l = distillation.METHODS["sre2l"]
      >>> sizes = {"width": 1, "blocks": (1,), "num_epochs": 1}
      >>> config = sre2l.configured(
      ...     **sizes, images_per_class=1, squeeze_epochs=1, num_steps=1
      ... )
      >>> made = sre2l.run(images, config, key=key)
      >>> model = distillation.squeezed.network(images, config)
      >>> student = evaluation.soft_students.train(
      ...     made.images, made.state.soft_labels, model=model, key=key, num_epochs=1
      ... )
      >>> 0 <= evaluation.soft_students.accuracy(images, model, student) <= 1
      True
    """
    options = {"model": model, "key": key}

    def go(state, done, callback):
        del done  # the state knows
        return soft.post_train(
            images,
            labels,
            num_epochs=num_epochs,
            temperature=temperature,
            state=state,
            chunk=chunk,
            callback=callback,
            **options,
        )

    ran = resume.finite(stage, "recover images again, or lower temperature.")(
        "post_train", soft.init_student(images, **options), go, len(labels.order)
    )
    student = ran.result
    return Network(student.params, student.stats, ran.losses.astype(np.float32))


def trained(
    images: ImageSet,
    distilled: Distilled,
    config: Config | squeezed.Config,
    *,
    key: Array,
    stage: Stage = straight,
) -> Network:
    """Trains a student of the config's network on a set, see `train`.

    Args:
      images: that were distilled.
      distilled: of sre2l or cda.
      config: of the network and its training.
      key: typed key, that of the set's method.
      stage: runs the loop.

    Raises:
      ValueError: the set has no soft labels, or see `train`.
    """
    labels = getattr(distilled.state, "soft_labels", None)
    if labels is None:
        raise ValueError(
            "labels are not soft: give a set with labels of every view, of sre2l or "
            "cda."
        )
    return train(
        distilled.images,
        labels,
        model=squeezed.network(images, config),
        key=squeezed.keys(key).post_train,
        num_epochs=config.num_epochs,
        temperature=config.temperature,
        stage=stage,
    )


def accuracy(images: ImageSet, model: ResNet18, network: Network) -> float:
    """Returns the share of test images that a network reads rightly.

    Args:
      images: as `images.normal` normalises them.
      model: with running statistics.
      network: of it.

    Raises:
      ValueError: the images do not fit the network.

    Example:
      >>> import jax, numpy as np
      >>> from ntk_privacy import data, evaluation, models
      >>> grey = np.linspace(0, 1, 32).reshape(8, 2, 2)
      >>> images = data.ImageSet.from_arrays(grey, [0, 1] * 4)
      >>> model = models.ResNet18(2, 1, blocks=(1,))
      >>> params = model.init_params(jax.random.key(0), images.image_shape)
      >>> network = evaluation.soft_students.Network(params, model.init_stats())
      >>> 0 <= evaluation.soft_students.accuracy(images, model, network) <= 1
      True
    """
    x = jnp.asarray(images.normalised(images.x_test))
    read = squeeze.predict(network.params, network.stats, x, model=model)
    return float(np.mean(read == images.class_test))


def attacked(
    images: ImageSet,
    model: ResNet18,
    network: Network,
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
) -> Attacked:
    """Returns the share of test images that a network reads rightly under attacks.

    Args:
      images: see `accuracy`.
      model: likewise.
      network: likewise.
      config: the attacks; pgd100 has as many steps as its name tells.
      key: typed key.
      stage: each attack is one; it is named by its numbers and the images.
    """
    pixels = zlib.crc32(np.ascontiguousarray(images.x_test).tobytes())
    accuracy: dict[str, float] = {}
    left: dict[str, dict[str, float]] = {}
    for attack in config.attacks:
        steps = None if attack == "pgd100" else config.attack_steps
        numbers = (config.threat_model.eps, steps, config.num_queries, pixels)
        told = resume.once(
            stage,
            f"attack_{attack}_{zlib.crc32(repr(numbers).encode()):08x}",
            functools.partial(
                _attack, attack, images, model, network, config, steps, key
            ),
        )
        name = str(told["name"])
        accuracy |= {"clean": float(told["clean"]), name: float(told["accuracy"])}
        if len(told["stages"]):
            shares = map(float, told["left"])
            left[name] = dict(zip(map(str, told["stages"]), shares, strict=True))
    return Attacked(accuracy, left)


def _attack(
    attack: str,
    images: ImageSet,
    model: ResNet18,
    network: Network,
    config: Config,
    num_steps: int | None,
    key: Array,
) -> dict[str, np.ndarray]:
    name = ATTACKS[attack]
    options = {"num_steps": num_steps, "num_queries": config.num_queries}
    found = robust.robust_accuracy(
        saved.logits_fn(
            model, network.params, stats=network.stats, **images.normal._asdict()
        ),
        images.x_test,
        images.class_test,
        key=key,
        attacks=(name,),
        threat_model=config.threat_model,
        batch_size=_ATTACK_BATCH,
        **options,
    )
    left = found.left.get(name, {})
    return {
        "name": np.asarray(named_attacks.honest_name(name, shown=attack, **options)),
        "clean": np.asarray(found.clean),
        "accuracy": np.asarray(found.accuracy[name]),
        "stages": np.asarray(list(left), np.str_),
        "left": np.asarray(list(left.values()), np.float64),
    }


def _losses(model: ResNet18, network: Any, x: Any, labels: Any) -> Any:
    params, stats = network
    return squeeze.cross_entropies(model.eval_fn(params, stats, x), labels)


@functools.cache
def _losses_of(model: ResNet18) -> Callable[..., Any]:
    # One object for all calls: compiled programs are looked up by it.
    return functools.partial(_losses, model)


def eigenvalues(
    images: ImageSet, model: ResNet18, network: Network, *, key: Array
) -> Float[np.ndarray, " n"]:
    """Returns the loss's top Hessian eigenvalue at up to 128 training images each.

    Args:
      images: see `accuracy`.
      model: likewise.
      network: likewise.
      key: typed key, of the first vectors.
    """
    # Evenly from all: folders hold one class after the other.
    n = len(images.x_train)
    count = min(_NUM_EIGENVALUES, n)
    few = np.arange(count) * n // count
    x = jnp.asarray(images.normalised(images.x_train[few]))
    found = curvature.top_eigenvalues(
        _losses_of(model),
        (network.params, network.stats),
        x,
        jnp.asarray(images.class_train[few]),
        key=key,
        num_matvecs=min(images.num_classes + _EXTRA_MATVECS, x[0].size),
    )
    return np.asarray(found)


def _run(
    images: ImageSet,
    distilled: Distilled,
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
) -> Judged:
    """Trains a student on a set and judges it; `key` is that of the set's method."""
    keys, model = squeezed.keys(key), squeezed.network(images, config)
    student = trained(images, distilled, config, key=key, stage=stage)
    found = attacked(images, model, student, config, key=keys.evaluate, stage=stage)
    top = eigenvalues(images, model, student, key=keys.evaluate)
    figures = {"accuracy": found.accuracy, "autoattack_left": found.left}
    return Judged(figures | {"top_hessian_eigenvalue": float(np.mean(top))}, student)


JUDGE = Method(
    name="soft_students",
    about="trains a student on the soft labels of the set and attacks it (SRe2L, "
    "GUARD).",
    config=Config,
    presets={"cpu": functools.partial(Config, **SMALL), "paper": Config},
    run=_run,
)
