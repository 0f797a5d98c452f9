"""Gradient matching: poisons that pull parameters where the target's gradient points.

Source: Geiping et al., ICLR 2021 (Witches' Brew, arXiv:2009.02276), released code; the
RDM-DC paper, equation 4 and algorithm 1.

Products are as coarse as an accelerator's default: with a small ConvNet the gradient in
the images is 3% off in TF32 and 9% in bfloat16, in norm. Inside of
`with jax.default_matmul_precision("highest"):` it is that of float32.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ntk_privacy import _checks, _class_checks, _tree
from ntk_privacy._types import Callback, Params
from ntk_privacy.data import augmentation
from ntk_privacy.method import Method, field
from ntk_privacy.models import fitting
from ntk_privacy.models.convnet import Network
from ntk_privacy.poisoning import bounded, perturbation
from ntk_privacy.poisoning.distribution_matching import (
    Target,
    checked,
    normalise,
    of_scene,
)
from ntk_privacy.poisoning.scenes import Scene
from ntk_privacy.resume import Stage, straight
from ntk_privacy.training import classification

__all__ = ["METHOD", "Alignment", "Config", "Ensemble", "poison", "prepare"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(bounded.Config):
    """Flags of gradient matching.

    Example:
      >>> import jax
      >>> from ntk_privacy import data, poisoning
      >>> images = data.load_set("digits").subset(num_train=100, num_test=10)
      >>> scene = poisoning.scene(images, seed=0, rate=0.02)
      >>> row = poisoning.METHODS["gradient"]
      >>> config = row.configured(width=4, attack_steps=1, num_clean=1)
      >>> row.run(scene, config, key=jax.random.key(0)).images.shape
      (2, 8, 8, 1)
    """

    num_clean: int = field(16, "Clean networks, trained for 0, 1, 2, ... epochs.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(1, num_clean=self.num_clean)


class Ensemble(NamedTuple):
    """params, target_gradients: of the clean networks, stacked on the first axis.
    label: the adversarial class. mean, deviation: of the data, per channel.
    """  # noqa: D205

    params: Params
    target_gradients: Params
    label: Int[Array, ""]
    mean: Float[Array, " d"]
    deviation: Float[Array, " d"]


def _loss(model: Network, params: Params, images: Array, label: Array) -> Array:
    logits = model.apply_fn(params, images)
    labels = jnp.broadcast_to(label, (len(images),))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@functools.partial(jax.jit, static_argnums=0)
def _gradients(model: Network, params: Params, image: Array, label: Array) -> Params:
    """Returns each network's gradient on one image, stacked as they are."""
    return jax.lax.map(
        lambda p: jax.grad(lambda q: _loss(model, q, image, label))(p), params
    )


def _check_fit(model: Network, params: Params, shape, name: str) -> None:
    outputs = _class_checks.num_outputs(model, shape)
    fitting.check_apply_fn(
        model.apply_fn, params, image_shape=shape, num_outputs=outputs, name=name
    )


def prepare(
    networks: Sequence[Params],
    target: Target,
    *,
    model: Network,
    adversarial_class: int,
) -> Ensemble:
    """Returns what the objective needs: networks, and the target's gradients in them.

    Args:
      networks: parameters of clean networks, best trained for different times.
      target: taken as it is, without augmentation.
      model: of the networks.
      adversarial_class: the label that the target shall get.

    Raises:
      ValueError: there are no networks, or one that does not fit the target and the
        model, a batch of targets or one out of [0, 1], a class that the network has no
        output for, or a gradient vanishes.
    """
    if isinstance(networks, Mapping):
        raise ValueError(  # noqa: TRY004  every fault of networks is one
            "networks is one network: give a list of clean networks."
        )
    if not networks:
        raise ValueError("networks is empty: give at least one clean network.")
    target = checked(target)
    outputs = _class_checks.num_outputs(model, target.image.shape)
    _class_checks.one_class(outputs, adversarial_class=adversarial_class)
    for i, one in enumerate(networks):
        _check_fit(model, one, target.image.shape, f"networks[{i}]")
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    label = jnp.asarray(adversarial_class, jnp.int32)
    image = normalise(target.image[None], target.mean, target.deviation)

    found = _gradients(model, params, image, label)
    sizes = jax.vmap(_tree.largest)(found)
    if not bool(jnp.all(sizes > 0) & jnp.all(jnp.isfinite(sizes))):
        raise ValueError(
            "A network's gradient on the target is zero or not finite: use networks "
            "trained for less time, or another target."
        )
    return Ensemble(params, found, label, target.mean, target.deviation)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """One less the cosine of the poisons' and the target's gradients, over networks.

    Attributes:
      model: of the networks.
      operations: of `data.augmentation`, drawn per image.
    """

    model: Network
    operations: tuple[str, ...] = augmentation.OPERATIONS

    def __call__(
        self, images: Float[Array, "p h w d"], key: Array, data: Ensemble
    ) -> Float[Array, ""]:
        """Returns its mean, in [0, 2]."""
        augmented = augmentation.augment(
            key,
            normalise(images, data.mean, data.deviation),
            operations=self.operations,
        )

        def one(pair):
            params, wanted = pair
            found = jax.grad(lambda p: _loss(self.model, p, augmented, data.label))(
                params
            )
            return 1 - _tree.cosine(found, wanted)

        # One network after the other: their second derivatives need not fit together.
        return jnp.mean(jax.lax.map(one, (data.params, data.target_gradients)))


def poison(
    images: Float[Array, "p h w d"],
    ensemble: Ensemble,
    *,
    model: Network,
    key: Array,
    operations: tuple[str, ...] = augmentation.OPERATIONS,
    **options: Any,
) -> perturbation.Poisoned:
    """Changes images of the adversarial class until training on them moves the target.

    Args:
      images: clean images whose label is the adversarial one, in [0, 1].
      ensemble: of `prepare`.
      model: of the ensemble.
      key: typed key.
      operations: of `data.augmentation`.
      **options: of `perturbation.craft`: bound, step, num_steps, num_restarts...

    Raises:
      ValueError: the ensemble or the images do not fit the network; see
        `perturbation.craft`.
    """
    _checks.typed_key(key=key)
    _class_checks.images(images=images)
    first = jax.tree.map(lambda leaf: leaf[0], ensemble.params)
    _check_fit(model, first, images.shape[1:], "ensemble.params")
    objective = Alignment(model, operations)
    return perturbation.craft(images, objective, ensemble, key=key, **options)


def _clean_networks(
    scene: Scene, config: Config, *, key: Array, stage: Stage
) -> list[Params]:
    """Returns networks of the clean images, trained in one piece."""
    images, model = scene.images, bounded.model(scene, config)

    def go(networks: Any, done: int, callback: Callback) -> list[Params]:
        if not done:
            networks = classification.staggered(
                jnp.asarray(images.normalised(images.x_train)),
                jnp.asarray(images.class_train),
                model=model,
                key=key,
                num_networks=config.num_clean,
                operations=images.operations,
            )
            callback(1, networks, {})
        return networks

    one = model.init_params(key, images.image_shape)
    return stage("clean", [one] * config.num_clean, go, 1).result


def _run(
    scene: Scene,
    config: Config,
    *,
    key: Array,
    stage: Stage = straight,
    chunk: int = bounded.CHUNK,
) -> perturbation.Poisoned:
    model = bounded.model(scene, config)
    networks = _clean_networks(
        scene, config, key=jax.random.fold_in(key, 3), stage=stage
    )
    ensemble = prepare(
        networks,
        of_scene(scene),
        model=model,
        adversarial_class=scene.adversarial_class,
    )
    attack = functools.partial(poison, ensemble=ensemble, model=model)
    return bounded.craft(
        scene, config, attack, key=jax.random.fold_in(key, 2), stage=stage, chunk=chunk
    )


METHOD = Method(
    name="gradient",
    about="matches the target's gradient in clean networks (Witches' Brew).",
    config=Config,
    presets={
        "cpu": functools.partial(Config, **bounded.SMALL, num_clean=4),
        "paper": Config,
    },
    run=_run,
    check=bounded.check,
    loss="one less the cosine of gradients",
)
